#!/usr/bin/env bash
# Pretrain on one node or several: run the same command on every node, with its own NODE_RANK.
#
#   MASTER_ADDR=node0 NNODES=4 NODE_RANK=0 bash scripts/pretrain_multinode.sh DATA_PREFIX SAVE [flags]
#
# DATA_PREFIX  what preprocessing wrote, without .bin/.idx; on a file system that every node sees
# SAVE         where checkpoints go, seen by every node too. The same command again resumes from the last one.
# flags        override the configuration: --tensor-model-parallel-size 8 --use-distributed-optimizer ...
#
# MASTER_ADDR  a node that the others reach by this name (127.0.0.1)       NNODES     how many nodes (1)
# MASTER_PORT  a free port on it, not 0 (29500)                            NODE_RANK  this node's number from 0 (0)
# GPUS_PER_NODE  processes on each node (as many as it has GPUs)           JOB_ID     differs between runs (proteinlm)
# MAX_RESTARTS   how often a run is restarted from its last checkpoint after a process died (3)
#
# Ends with 0 when the run completed, and when a SIGTERM (a scheduler's notice) made it save and leave: torchrun itself
# ends with 1 then, so SAVE/exit_reason.json is read.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: MASTER_ADDR=HOST NNODES=N NODE_RANK=R bash scripts/pretrain_multinode.sh DATA_PREFIX SAVE [flags]" >&2
    exit 2
fi
data=$1 save=$2
here=$(dirname "${BASH_SOURCE[0]}")
shift 2

started=$(mktemp)
trap 'rm -f "$started"' EXIT
# Seconds in which processes save after a SIGTERM, before torchrun kills them; Slurm is asked to warn 120 s ahead.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-110}
# A new rendezvous store at every restart: torchrun's own would hold the addresses of processes that died.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
# is_host by node number: whether this node hosts the rendezvous must not depend on what MASTER_ADDR resolves to.
is_host=$([ "${NODE_RANK:-0}" = 0 ] && echo true || echo false)
python -m torch.distributed.run \
    --nnodes "${NNODES:-1}" --nproc-per-node "${GPUS_PER_NODE:-gpu}" \
    --rdzv-backend c10d --rdzv-id "${JOB_ID:-proteinlm}" --rdzv-conf "is_host=$is_host" \
    --rdzv-endpoint "${MASTER_ADDR:-127.0.0.1}:${MASTER_PORT:-29500}" --max-restarts "${MAX_RESTARTS:-3}" \
    -m pretrain --config "$here/../pretrain/configs/proteinlm_200m.yaml" \
    --data-path "$data" --save "$save" --load "$save" "$@" &
torchrun=$!
# Passed on once: a second SIGTERM would end torchrun's wait for processes that still save. Where the sender reaches
# torchrun itself (SIGTERM_REACHES_ALL=1, as under Slurm), this script only waits.
trap '[ -n "${SIGTERM_REACHES_ALL:-}" ] || kill -TERM "$torchrun"' TERM
status=0
wait "$torchrun" || status=$?
while kill -0 "$torchrun" 2>/dev/null; do # the signal ended the wait, not the run
    status=0
    wait "$torchrun" || status=$?
done
reason=$save/exit_reason.json
if [ "$status" -ne 0 ] && [ "$reason" -nt "$started" ] && grep -q '"preempted"' "$reason"; then
    echo "preempted: saved; run the same command again to resume" >&2
    status=0
fi
exit "$status"
