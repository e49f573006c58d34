#!/usr/bin/env bash
# Five TAPE tasks, pretrained against random weights, with the same head, steps and data: the table of docs/results.md.
#
#   bash benchmarks/real_table.sh MODEL_DIR DATA_DIR OUT [ARM ...]
#
# MODEL_DIR  a TAPE model directory; its config.json gives the random arm its shape
# DATA_DIR   holds the five tasks' folders, each with train and valid
# OUT        one run directory per arm and task, and OUT/minutes.tsv
# ARM        pretrained and/or random; both without it
#
# Sized for one CPU core with bf16: about 20 minutes an arm. A tenth of train, held out by cluster, picks the best
# evaluation; valid is read once, after training.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: bash benchmarks/real_table.sh MODEL_DIR DATA_DIR OUT [ARM ...]" >&2
    exit 2
fi
model=$1 data=$2 out=$3
shift 3
arms=("$@")
if [ ${#arms[@]} -eq 0 ]; then
    arms=(pretrained random)
fi
mkdir -p "$out"

# task, proteins a step, steps, learning rate, further flags
recipes=(
    "stability 64 400 5e-4"
    "secondary_structure 16 240 5e-4"
    "remote_homology 32 500 5e-4"
    "fluorescence 32 160 5e-4"
    "contact_prediction 4 80 5e-4 --head tape --gradient_accumulation_steps 4"
)
for arm in "${arms[@]}"; do
    source=$model
    if [ "$arm" = random ]; then
        source=random
    fi
    for recipe in "${recipes[@]}"; do
        read -r task batch steps rate further <<<"$recipe"
        if [ -e "$out/$arm-$task/$task-valid.json" ]; then
            continue # done by an earlier call
        fi
        begin=$(date +%s)
        # shellcheck disable=SC2086  # further flags are words
        bash "scripts/finetune_$task.sh" "$source" "$data" "$out/$arm-$task" --model_config_file "$model/config.json" \
            --time_or_name "$arm" --batch_size "$batch" --max_steps "$steps" --learning_rate "$rate" \
            --eval_steps $((steps / 4)) --patience -1 --holdout 0.1 --max_length 1022 --too_long crop --bf16 \
            --device cpu --seed 42 $further
        printf '%s\t%s\t%s\n' "$arm" "$task" "$((($(date +%s) - begin) / 60))" >>"$out/minutes.tsv"
    done
done
