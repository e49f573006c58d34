#!/usr/bin/env bash
# Finetune a model on one task, then score it on every evaluation split that is there. finetune_<task>.sh calls it with a recipe.
#
#   bash scripts/finetune.sh TASK METRIC LMDB "SPLITS" EVAL_BATCH "RECIPE" MODEL_DIR DATA_DIR OUT [flags]
#
# MODEL_DIR  a TAPE model directory (what convert.sh wrote), or `random` for the baseline (add --model_config_file)
# DATA_DIR   holds LMDB_train.lmdb and so on
# OUT        the run's directory: weights, metrics.jsonl, one TASK-<split>.json a split
# flags      override the recipe: --seed 1, --bf16, --head tape, --max_steps 500 ...
#
# A tenth of train, held out by cluster, decides when to stop; --holdout 0 gives that to the valid split, as TAPE does.
set -euo pipefail
if [ $# -lt 6 ]; then
    echo "usage: bash scripts/finetune.sh TASK METRIC LMDB SPLITS EVAL_BATCH RECIPE MODEL_DIR DATA_DIR OUT [flags]" >&2
    exit 2
fi
task=$1 metric=$2 lmdb=$3
read -ra names <<<"$4"
eval_batch=$5
read -ra recipe <<<"$6"
shift 6
if [ $# -lt 3 ]; then
    echo "usage: bash scripts/finetune_$task.sh MODEL_DIR DATA_DIR OUT [flags]" >&2
    exit 2
fi
model=$1 data=$2 out=$3
shift 3

weights=(--from_pretrained "$model")
if [ "$model" = random ]; then
    weights=()
fi
python -m tape.train transformer "$task" ${weights[@]+"${weights[@]}"} --data_dir "$data" --output_dir "$out" "${recipe[@]}" "$@"

splits=()
for split in "${names[@]}"; do
    if [ -d "$data/${lmdb}_$split.lmdb" ]; then
        splits+=("$split")
    fi
done
if [ ${#splits[@]} -gt 0 ]; then
    python -m tape.evaluate transformer "$task" "$out" --data_dir "$data" --split "${splits[@]}" \
        --metrics "$metric" --batch_size "$eval_batch" --save_predictions
fi
