#!/usr/bin/env bash
# Stability of designed miniproteins; Spearman's rho.
# Finetune a model, then score it on every evaluation split that is there.
#
#   bash scripts/finetune_stability.sh MODEL_DIR DATA_DIR OUT [flags]
#
# MODEL_DIR  a TAPE model directory (what convert.sh wrote), or `random` for the baseline (add --model_config_file)
# DATA_DIR   holds stability/stability_train.lmdb and so on
# OUT        the run's directory: weights, metrics.jsonl, one stability-<split>.json a split
# flags      override the recipe: --seed 1, --bf16, --head tape, --max_steps 500 ...
#
# A tenth of train, held out by cluster, decides when to stop; --holdout 0 gives that to the valid split, as TAPE does.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: bash scripts/finetune_stability.sh MODEL_DIR DATA_DIR OUT [flags]" >&2
    exit 2
fi
model=$1 data=$2 out=$3
shift 3

weights=(--from_pretrained "$model")
if [ "$model" = random ]; then
    weights=()
fi
python -m tape.train transformer stability ${weights[@]+"${weights[@]}"} --data_dir "$data" --output_dir "$out" \
    --batch_size 64 --learning_rate 1e-4 \
    --num_train_epochs 10 --patience 3 --holdout 0.1 \
    "$@"

splits=()
for split in valid test; do
    if [ -d "$data/stability/stability_$split.lmdb" ]; then
        splits+=("$split")
    fi
done
if [ ${#splits[@]} -gt 0 ]; then
    python -m tape.evaluate transformer stability "$out" --data_dir "$data" --split "${splits[@]}" \
        --metrics spearmanr --batch_size 64 --save_predictions
fi
