#!/usr/bin/env bash
# What an encoder knows before anyone finetunes it, beside its twin with random weights, on one page: secondary
# structure, location and membrane, neighbours, contacts from attention, mutations; published numbers beside them.
#
#   bash scripts/reproduce_prottrans.sh MODEL DATA [OUT] [--preset quick|full] [flags]
#
# MODEL     whatever proteinlm.load opens
# DATA      those that are there of: TAPE's folders secondary_structure/, proteinnet/, fluorescence/ (here or in tape/),
#           deeploc/{train,valid}.csv, scope/scope35.csv, variants/NAME.{fasta,csv} (a .csv may be .csv.gz)
# OUT       gets prottrans.html, prottrans.md, prottrans.json and each step's own files (default: prottrans)
# --preset  full (default): everything, three seeds; quick: some hundred proteins, one seed, to see that it runs
# flags     for every step: --device cuda, --bf16
#
# Called again it skips the steps that are done and goes on with the one that was cut off. A step that fails ends it;
# the page has what is done by then. `python -m probe.tables OUT` writes the page again.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: bash scripts/reproduce_prottrans.sh MODEL DATA [OUT] [--preset quick|full] [flags]" >&2
    exit 2
fi
model=$1 data=$2 out=prottrans preset=full flags=()
shift 2
if [ $# -gt 0 ] && [[ $1 != --* ]]; then
    out=$1
    shift
fi
while [ $# -gt 0 ]; do
    if [ "$1" = --preset ]; then
        preset=${2-}
        shift
    else
        flags+=("$1")
    fi
    shift
done
case $preset in
full)
    seeds=(--seeds 0 1 2) residues=(--heads cnn logistic) proteins=(--heads fnn logistic)
    probe=() map=() fit=() chains=()
    ;;
quick)
    seeds=(--seeds 0) residues=(--heads cnn) proteins=(--heads fnn)
    probe=(--limit 150) map=(--limit 400 --method pca) fit=(--proteins 5) chains=(--limit 20)
    ;;
*)
    echo "--preset '$preset': should be quick or full" >&2
    exit 2
    ;;
esac
tape=$data
if [ -d "$data/tape" ]; then
    tape=$data/tape
fi
crop=(--too_long crop)
long=("${crop[@]}" --max_length 1022)
mkdir -p "$out/steps" "$out/variants" "$out/assays"
: >"$out/not_run.txt"
# A directory's bytes: another model at the same place is not taken for this one.
weights="a model by name"
if [ -d "$model" ]; then
    weights=$(find -L "$model" -type f -exec cksum {} + | LC_ALL=C sort | cksum)
fi

# fail NAME STATUS: the page of what is done, and an end.
fail() {
    echo "$1: stopped with status $2; the same command goes on from there" | tee -a "$out/not_run.txt" >&2
    python -m probe.tables "$out" || true
    exit "$2"
}

# step NAME RESULT WORDS...: python -m WORDS, unless it made OUT/RESULT already.
step() {
    local name=$1 result=$out/$2 made=$out/steps/$1.txt
    shift 2
    local command="python -m $*${flags[*]:+ ${flags[*]}}"
    if [ -e "$made" ] && [ "$(<"$made")" != "$command"$'\n'"$weights" ]; then
        echo "$made: step $name was begun by another command or with other weights; give another OUT, or remove it" >&2
        exit 2
    fi
    if [ -e "$made" ] && [ -e "$result" ]; then
        echo "$name: was done"
        return
    fi
    printf '%s\n%s\n' "$command" "$weights" >"$made"
    echo "$name: $command"
    python -m "$@" ${flags[@]+"${flags[@]}"} || fail "$name" $?
}

# have NAME PATH: whether it is there; else the page says that step NAME was not run.
have() {
    if [ -e "$2" ]; then
        return 0
    fi
    echo "$1: no ${2#"$data/"} in DATA" | tee -a "$out/not_run.txt"
    return 1
}

# table PATH: the .csv, or the .csv.gz beside it.
table() {
    if [ ! -e "$1" ] && [ -e "$1.gz" ]; then
        echo "$1.gz"
    else
        echo "$1"
    fi
}

embeddings=(--embeddings_dir "$out/embeddings")
if have secondary_structure "$tape/secondary_structure"; then
    step secondary_structure secondary_structure/results.json probe probe "$model" "$tape" "${residues[@]}" \
        "${seeds[@]}" "${long[@]}" ${probe[@]+"${probe[@]}"} "${embeddings[@]}" --output "$out/secondary_structure"
fi

train=$(table "$data/deeploc/train.csv") valid=$(table "$data/deeploc/valid.csv")
if have deeploc "$train" && have deeploc "$valid"; then
    step deeploc deeploc/results.json probe probe "$model" "$train" --test "$valid" --target location membrane \
        "${proteins[@]}" "${seeds[@]}" "${long[@]}" ${probe[@]+"${probe[@]}"} "${embeddings[@]}" --output "$out/deeploc"
fi

arms=(--arms pretrained random composition)
scope=$(table "$data/scope/scope35.csv")
if have scope_map "$scope"; then
    step scope_map scope_map.json probe project "$model" "$scope" --column class domain "${arms[@]}" "${long[@]}" \
        ${map[@]+"${map[@]}"} "${embeddings[@]}" --output "$out/scope_map"
fi
if have deeploc_map "$valid"; then
    step deeploc_map deeploc_map.json probe project "$model" "$valid" --column location membrane \
        --ignore Cytoplasm-Nucleus U --exclude_relatives "${arms[@]}" "${long[@]}" ${map[@]+"${map[@]}"} \
        "${embeddings[@]}" --output "$out/deeploc_map"
fi

# TAPE's test chains where they are there, else valid.
test=$tape/proteinnet/proteinnet_test.lmdb
if [ ! -e "$test" ]; then
    test=$tape/proteinnet/proteinnet_valid.lmdb
fi
if have contacts "$tape/proteinnet/proteinnet_train.lmdb" && have contacts "$test"; then
    step contacts contacts.json probe contacts "$model" --fit "$tape/proteinnet/proteinnet_train.lmdb" --test "$test" \
        "${seeds[@]}" "${crop[@]}" ${fit[@]+"${fit[@]}"} ${chains[@]+"${chains[@]}"} --output "$out/contacts"
    step heads contacts.heads.json probe contacts "$model" --heads "$test" "${crop[@]}" \
        ${chains[@]+"${chains[@]}"} --output "$out/contacts"
fi

if have variants "$data/variants"; then
    for wild in "$data"/variants/*.fasta; do
        name=$(basename "$wild" .fasta)
        assay=$(table "${wild%.fasta}.csv")
        if have variants "$wild" && have variants "$assay"; then
            step "variants_$name" "variants/$name.json" probe variants "$model" "$wild" "$assay" --random_seed 0 \
                --output "$out/variants/$name.csv"
        fi
    done
fi
if have gfp "$tape/fluorescence"; then
    if [ ! -e "$out/assays/gfp.csv" ]; then
        python -m probe.tables.fluorescence "$tape" "$out/assays/gfp" || fail gfp $?
    fi
    step gfp variants/gfp.json probe variants "$model" "$out/assays/gfp.fasta" "$out/assays/gfp.csv" --random_seed 0 \
        --output "$out/variants/gfp.csv"
fi

python -m probe.tables "$out"
echo "done: $out/prottrans.html, prottrans.md, prottrans.json"
