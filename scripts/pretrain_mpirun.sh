#!/usr/bin/env bash
# Pretrain under Open MPI: mpirun starts one process a GPU, each of which runs this script.
#
#   mpirun -np 16 -H node0:8,node1:8 -x MASTER_ADDR=node0 bash scripts/pretrain_mpirun.sh DATA_PREFIX SAVE [flags]
#
# DATA_PREFIX  what preprocessing wrote, without .bin/.idx; on a file system that every node sees
# SAVE         where checkpoints go. The same command again resumes from the last one.
# flags        override the configuration: --tensor-model-parallel-size 8 --use-distributed-optimizer ...
#
# MASTER_ADDR  the node of the first process (127.0.0.1), MASTER_PORT a free port on it (29500). mpirun does not restart
# a run when a process dies, and after a SIGTERM it gives processes only seconds to save: set a short --save-interval.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: mpirun -np N bash scripts/pretrain_mpirun.sh DATA_PREFIX SAVE [flags]" >&2
    exit 2
fi
data=$1 save=$2
here=$(dirname "${BASH_SOURCE[0]}")
shift 2

export RANK=${OMPI_COMM_WORLD_RANK:?is not set: start this script with mpirun}
export WORLD_SIZE=$OMPI_COMM_WORLD_SIZE LOCAL_RANK=$OMPI_COMM_WORLD_LOCAL_RANK
export MASTER_ADDR=${MASTER_ADDR:-127.0.0.1} MASTER_PORT=${MASTER_PORT:-29500}
exec python -m pretrain \
    --config "$here/../pretrain/configs/proteinlm_200m.yaml" \
    --data-path "$data" --save "$save" --load "$save" "$@"
