#!/usr/bin/env bash
# Everything worth knowing about this project on one GPU, in stages of under nine minutes each.
#
#   bash benchmarks/gpu.sh OUT [STAGE ...] [flags]
#   bash benchmarks/gpu.sh OUT --rehearse            # every stage on a CPU, tiny shapes, five minutes
#
# OUT    gets a JSON a stage, written after every row of it, so a run cut off loses nothing; gpu.json (all of them) and
#        gpu.md (the tables for docs/results.md) after every call. Stages of earlier calls stay.
# STAGE  correctness   the tests marked `gpu`
#        ladder-200m   the step at 200M, 4 and 16 rows, one improvement a row; a profile of the fastest
#        ladder-3b     the same at 3B's width, fewer layers
#        peers         beside a dense mask, MegatronBert and ESM-2 of Hugging Face; attention alone; the planner's rates
#        pretrain      pretraining on --fasta for the minutes there are; its weights stay in OUT/pretrain
#        tasks         TAPE's five tasks from those weights and random ones (needs lmdb)
#        ladder means both; without a stage: all that the flags given allow, in this order. What takes longer than its
#        minutes is named in the results; peers, pretrain and tasks go on from there when they are called again.
# flags  --minutes N           of a stage (8.5; with nine or less a limit of ten minutes a command is never hit)
#        --fasta FILE          for pretrain            --config FILE    its shape (pretrain/configs/proteinlm_35m.yaml)
#        --pretrain-flags "…"  further flags of it     --workers N      that prepare batches (6)
#        --tape-data DIR       for tasks               --model DIR      instead of OUT/pretrain/model
#        --preset NAME         for tasks (full)        --tasks-flags "…" further flags of tape.reproduce
#        --jobs N              tasks side by side (4)
# PYTHON which interpreter (python, or python3)
#
# Status 0: every stage gave a result; 1: one did not, or a test failed; 2: wrong use.
set -euo pipefail
usage="usage: bash benchmarks/gpu.sh OUT [correctness|ladder-200m|ladder-3b|peers|pretrain|tasks ...] [--rehearse] [flags]"
wrong() {
    echo "gpu.sh: $1; $usage" >&2
    exit 2
}
[ $# -gt 0 ] && [[ $1 != -* ]] || wrong "OUT, the folder of the results, comes first"
out=$1
shift
absolute() { # FLAG PATH: the same path from anywhere
    [ -e "$2" ] || wrong "$1 $2 is not there"
    echo "$(cd "$(dirname "$2")" && pwd)/$(basename "$2")"
}
stages=() common=() pretrain=() tasks=() rehearse='' fasta='' tape_data='' config=''
while [ $# -gt 0 ]; do
    case $1 in
    --rehearse) rehearse=1 && shift && continue ;;
    correctness | ladder-200m | ladder-3b | peers | pretrain | tasks) stages+=("$1") && shift && continue ;;
    ladder) stages+=(ladder-200m ladder-3b) && shift && continue ;;
    --*) [ $# -gt 1 ] || wrong "$1 needs a value" ;;
    *) wrong "$1 is no stage" ;;
    esac
    case $1 in
    --minutes)
        [[ $2 =~ ^[0-9]+(\.[0-9]+)?$ ]] || wrong "--minutes $2 is no number"
        common+=(--minutes "$2")
        ;;
    --fasta) fasta=$(absolute "$1" "$2") ;;
    --tape-data) tape_data=$(absolute "$1" "$2") ;;
    --config) config=$(absolute "$1" "$2") ;;
    --model) tasks+=(--model "$(absolute "$1" "$2")") ;;
    --workers | --pretrain-flags) pretrain+=("$1=$2") ;;
    --preset | --jobs | --tasks-flags) tasks+=("$1=$2") ;;
    *) wrong "$1 is no flag" ;;
    esac
    shift 2
done
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-$(command -v python || command -v python3)}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

if [ -n "$rehearse" ]; then
    "$python" benchmarks/gpu/rehearsal.py "$out/rehearsal"
    common+=(--rehearse --device cpu)
    fasta=$out/rehearsal/corpus.fasta tape_data=$out/rehearsal/tasks config=$PWD/pretrain/configs/debug.yaml
    [ ${#pretrain[@]} -gt 0 ] || pretrain=(--workers 0)
    tasks=(--preset "$out/rehearsal/preset.yaml" --jobs 1 "--tasks-flags=--tasks stability secondary_structure")
    [[ " ${common[*]} " == *" --minutes "* ]] || common+=(--minutes 3)
fi
if [ ${#stages[@]} -eq 0 ]; then
    stages=(correctness ladder-200m ladder-3b peers)
    [ -z "$fasta" ] || stages+=(pretrain)
    [ -z "$tape_data" ] || stages+=(tasks)
fi
failed=0
for stage in "${stages[@]}"; do
    echo "=== $stage"
    case $stage in
    correctness | peers) words=("$stage.py") ;;
    ladder-*) words=(ladder.py --shape "${stage#ladder-}") ;;
    pretrain)
        [ -n "$fasta" ] || wrong "stage pretrain needs --fasta"
        words=(pretraining.py --fasta "$fasta" ${config:+--config "$config"} "${pretrain[@]}")
        ;;
    tasks)
        [ -n "$tape_data" ] || wrong "stage tasks needs --tape-data"
        words=(tasks.py --tape-data "$tape_data" "${tasks[@]}")
        ;;
    esac
    status=0
    "$python" "benchmarks/gpu/${words[0]}" "$out" "${words[@]:1}" "${common[@]}" || status=$?
    [ $status -ne 2 ] || exit 2
    [ $status -eq 0 ] || failed=1
    "$python" benchmarks/gpu/report.py "$out"
done
exit $failed
