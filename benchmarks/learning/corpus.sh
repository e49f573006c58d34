#!/usr/bin/env bash
# The corpus of the encoder that is shipped, and what its recipe is chosen by.
#
#   bash benchmarks/learning/corpus.sh TRAIN.fasta VALID.fasta TAPE DEEPLOC OUT [JUDGED ...]
#
# TRAIN, VALID   proteins; the second word of a header is the Pfam accession where there is one
# TAPE           TAPE's data directory; DEEPLOC: a directory with {train,valid}.csv.gz
# JUDGED         more files of proteins that encoders are judged by (a FASTA, a table, an LMDB)
# OUT            shards {train,choose_families,choose_diverse}_text_document and choose/{structure,location}.csv to choose
#                by, {heldout,valid_families,valid_diverse}_text_document to report
#
# Twenty whole families are held out, and what shares three 8-mers with a task's valid protein or a judged one is left
# out. Of the rest, twenty more families and every 60th protein of no family are held out to choose recipes by, so that
# no choice is made by what is reported; choose/*.csv are parts of two tasks' train splits.
set -euo pipefail
if [ $# -lt 5 ]; then
    echo "usage: bash benchmarks/learning/corpus.sh TRAIN.fasta VALID.fasta TAPE DEEPLOC OUT [JUDGED ...]" >&2
    exit 2
fi
train=$1 valid=$2 tape=$3 deeploc=$4 out=$5
shift 5
mkdir -p "$out/choose"
if [ ! -e "$out/clean.fasta" ]; then
    python benchmarks/heldout_families.py split "$train" "$out"
    gzip -cd "$deeploc/valid.csv.gz" >"$out/deeploc_valid.csv"
    mv "$out/train.fasta" "$out/rest.fasta"
    python benchmarks/balanced_corpus.py "$out/rest.fasta" "$out/clean.part" --per-family 1000000 \
        --away-from "$out/deeploc_valid.csv" \
        "$tape"/{secondary_structure,remote_homology,fluorescence,stability,proteinnet}/*_valid.lmdb "$@"
    mv "$out/clean.part" "$out/clean.fasta"
fi
if [ ! -e "$out/train.fasta" ]; then
    python benchmarks/heldout_families.py split "$out/clean.fasta" "$out/choose" --seed 1
    mv "$out/choose/heldout.fasta" "$out/choose_families.fasta"
    awk '/^>/ {keep = ($2 !~ /^PF/ && ++n % 60 == 0)} keep' "$out/choose/train.fasta" >"$out/choose_diverse.fasta"
    awk '/^>/ {keep = !($2 !~ /^PF/ && ++n % 60 == 0)} keep' "$out/choose/train.fasta" >"$out/train.part"
    mv "$out/train.part" "$out/train.fasta"
fi
awk '/^>/ {keep = ($2 ~ /^PF/)} keep' "$valid" >"$out/valid_families.fasta"
awk '/^>/ {keep = ($2 !~ /^PF/)} keep' "$valid" >"$out/valid_diverse.fasta"
for name in train choose_families choose_diverse heldout valid_families valid_diverse; do
    if [ ! -e "$out/${name}_text_document.idx" ]; then
        python -m pretrain.preprocess --tokenizer-type esm --input "$out/$name.fasta" --output-prefix "$out/$name" \
            --group-by pfam
    fi
done
python benchmarks/learning/choosing.py "$tape" "$deeploc/train.csv.gz" "$out/choose"
