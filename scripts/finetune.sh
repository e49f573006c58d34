#!/usr/bin/env bash
# Finetune a model on one task with the task's recipe, then score it on every evaluation split that is there.
#
#   bash scripts/finetune.sh TASK MODEL_DIR DATA_DIR OUT [flags]
#
# TASK       secondary_structure, contact_prediction, remote_homology, fluorescence, stability (or finetune_<task>.sh)
# MODEL_DIR  a TAPE model directory (what convert.sh wrote), or `random` for the baseline (add --model_config_file)
# DATA_DIR   holds the tasks' folders
# OUT        the run's directory: weights, metrics.jsonl, one TASK-<split>.json and .npz per split
# flags      override the recipe (tape/recipes/TASK.yaml): --seed 1, --bf16, --head tape, --max_steps 500 ...
#
# A tenth of train, held out by cluster, decides when to stop; with --holdout 0 the valid split does, as in TAPE.
set -euo pipefail
if [ $# -lt 4 ]; then
    echo "usage: bash scripts/finetune.sh TASK MODEL_DIR DATA_DIR OUT [flags]" >&2
    exit 2
fi
task=$1 model=$2 data=$3 out=$4
shift 4

weights=(--from_pretrained "$model")
if [ "$model" = random ]; then
    weights=()
fi
python -m tape.train transformer "$task" ${weights[@]+"${weights[@]}"} --data_dir "$data" --output_dir "$out" \
    --patience 3 --holdout 0.1 "$@"
batch=16 # proteins scored at a time; does not change the result
if [ "$task" = contact_prediction ]; then
    batch=1 # maps of L x L
fi
python -m tape.evaluate transformer "$task" "$out" --data_dir "$data" --split all --batch_size "$batch" \
    --save_predictions
