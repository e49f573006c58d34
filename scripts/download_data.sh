#!/usr/bin/env bash
# TAPE's public archives, and Pfam's sequences: fetched with resume, checked, unpacked.
#
#   bash scripts/download_data.sh DATA_DIR [NAME ...] [flags]
#
# DATA_DIR  gets one folder per name, and archives/ with the downloads and their SHA256SUMS
# NAME      secondary_structure proteinnet remote_homology fluorescence stability (default: these five);
#           pfam: TAPE's pretraining corpus, 8 GB; pfam_fasta: Pfam-A.fasta.gz of the current Pfam release
# flags     --raw               the JSON form instead of LMDB
#           --base-url URL      another place that has NAME.tar.gz
#           --pfam-url URL      another place that has Pfam-A.fasta.gz
#           --checksums FILE    sha256sum's format; every file must be in it. Without it, the sum of the first download
#                               is recorded in archives/SHA256SUMS and later ones must equal it
#           --retries N         after a broken connection (default 20)
#           --delete-archives   once they are unpacked
#
# A file has its name only when it is complete: until then it is NAME.part, which the next call continues. What exists
# is skipped: remove a folder or an archive to fetch it again.
set -euo pipefail
base=https://s3.amazonaws.com/songlabdata/proteindata
pfam=https://ftp.ebi.ac.uk/pub/databases/Pfam/current_release
form=data_pytorch checksums="" retries=20 delete=""

fail() {
    echo "error: $*" >&2
    exit "${status:-1}"
}

usage() {
    echo "usage: bash scripts/download_data.sh DATA_DIR [NAME ...] [--raw] [--base-url URL] [--pfam-url URL]" \
        "[--checksums FILE] [--retries N] [--delete-archives]" >&2
    exit 2
}

# attempt URL FILE: one try, going on from what FILE holds
attempt() {
    local bar=(--silent)
    if [ -t 2 ]; then
        bar=(--progress-bar)
    fi
    curl --fail --location --continue-at - --connect-timeout 30 --speed-limit 1 --speed-time 60 "${bar[@]}" \
        --output "$2" "$1"
}

# announced URL: the size that the server says it has
announced() {
    curl --fail --silent --location --head "$1" |
        awk 'tolower($1) == "content-length:" { gsub(/[^0-9]/, "", $2); size = $2 } END { print size }'
}

# fetch URL FILE: all of it, however often the connection breaks
fetch() {
    local tries=0 result before after
    while true; do
        before=$(size "$2")
        result=0
        attempt "$1" "$2" || result=$?
        after=$(size "$2")
        case $result in
        0) return ;;
        22) # HTTP error; for a file that was complete already it means that nothing comes after its end
            if [ "$before" != 0 ] && [ "$before" = "$(announced "$1")" ]; then
                return
            fi
            rm -f "$2" # of another size than what is there now
            if [ "$before" = 0 ] || [ "$tries" -gt 0 ]; then
                fail "$1: the server refuses it (HTTP error); another place: --base-url, --pfam-url"
            fi
            after=0
            ;;
        33) rm -f "$2" ;; # no ranges there: from the beginning
        3 | 6) fail "$1: no such address; another place: --base-url, --pfam-url" ;;
        23) fail "$2: cannot be written (disk full?)" ;;
        esac
        if [ "$after" -gt "$before" ]; then
            tries=0 # it gets on
        fi
        tries=$((tries + 1))
        if [ "$tries" -gt "$retries" ]; then
            fail "$1: the connection broke $tries times without progress (curl $result);" \
                "run the command again to resume"
        fi
        echo "$1: connection broke at $after bytes (curl $result), resuming" >&2
        sleep "$((tries < 10 ? tries - 1 : 10))"
    done
}

size() {
    if [ -e "$1" ]; then
        wc -c <"$1" | tr -d ' '
    else
        echo 0
    fi
}

sum_of() {
    sha256sum "$1" | cut -d ' ' -f 1
}

# recorded NAME FILE: the sum of NAME in a list in sha256sum's format, or nothing
recorded() {
    if [ -e "$2" ]; then
        awk -v name="$1" '{ file = $2; sub(/^\*/, "", file) } file == name { print $1; exit }' "$2"
    fi
}

# check FILE NAME: the file is complete and has the expected checksum
check() {
    local sum expected list=${checksums:-$archives/SHA256SUMS}
    sum=$(sum_of "$1")
    expected=$(recorded "$2" "$list")
    if [ -n "$expected" ] && [ "$sum" != "$expected" ]; then
        [ "$1" = "$archives/$2" ] || rm -f "$1"
        fail "$archives/$2: sha256 is $sum, should be $expected ($list)"
    fi
    if ! gzip --test "$1" 2>/dev/null; then
        [ "$1" = "$archives/$2" ] || rm -f "$1"
        fail "$archives/$2: not a complete gzip file; run the command again to fetch it from the start"
    fi
    if [ -z "$expected" ] && [ -z "$checksums" ]; then
        echo "$sum  $2" >>"$archives/SHA256SUMS"
        echo "$2: no published checksum; sha256 $sum written to $archives/SHA256SUMS"
    fi
}

# unpack NAME: archives/NAME.tar.gz becomes DATA_DIR/NAME in one step
unpack() {
    local work="$data/.unpacking_$1"
    rm -rf "$work"
    mkdir -p "$work"
    tar -xzf "$archives/$1.tar.gz" -C "$work" || { rm -rf "$work" && fail "$archives/$1.tar.gz: cannot be unpacked"; }
    if [ -d "$work/$1" ]; then
        mv "$work/$1" "$data/$1"
    else
        mv "$work" "$data/$1"
    fi
    rm -rf "$work"
}

if [ $# -lt 1 ] || [[ $1 == -* ]]; then
    usage
fi
data=$1
shift
names=() base_url=""
while [ $# -gt 0 ]; do
    case $1 in
    --raw) form=data_raw_pytorch ;;
    --delete-archives) delete=yes ;;
    --base-url | --pfam-url | --checksums | --retries)
        [ $# -gt 1 ] || { status=2 && fail "$1: should be followed by a value"; }
        case $1 in
        --base-url) base_url=${2%/} ;;
        --pfam-url) pfam=${2%/} ;;
        --checksums) checksums=$2 ;;
        --retries) retries=$2 ;;
        esac
        shift
        ;;
    secondary_structure | proteinnet | remote_homology | fluorescence | stability | pfam | pfam_fasta) names+=("$1") ;;
    *)
        status=2
        fail "$1: unknown; should be secondary_structure, proteinnet, remote_homology, fluorescence, stability, pfam," \
            "pfam_fasta or a flag"
        ;;
    esac
    shift
done
status=2
[[ $retries =~ ^[0-9]+$ ]] || fail "--retries $retries: should be a number"
[ -z "$checksums" ] || [ -r "$checksums" ] || fail "--checksums $checksums: cannot be read"
for tool in curl sha256sum gzip tar awk; do
    command -v "$tool" >/dev/null || fail "$tool is not installed"
done
status=1
if [ ${#names[@]} -eq 0 ]; then
    names=(secondary_structure proteinnet remote_homology fluorescence stability)
fi
base=${base_url:-$base/$form}
archives=$data/archives
missing=() path=$archives
while [ ! -d "$path" ]; do
    missing+=("$path")
    path=$(dirname "$path")
done
# What was made here and is empty at the end goes again.
leave() {
    local made
    find "$archives" -name '*.part' -size 0 -delete 2>/dev/null || true
    for made in ${missing[@]+"${missing[@]}"}; do
        rmdir "$made" 2>/dev/null || true
    done
}
trap leave EXIT
trap 'echo "interrupted; the same command goes on" >&2; exit 130' INT
mkdir -p "$archives"

for name in "${names[@]}"; do
    file=$name.tar.gz url=$base/$name.tar.gz
    if [ "$name" = pfam_fasta ]; then
        file=Pfam-A.fasta.gz url=$pfam/Pfam-A.fasta.gz
    elif [ -e "$data/$name" ]; then
        echo "$data/$name: exists, skipped"
        continue
    fi
    if [ -n "$checksums" ] && [ -z "$(recorded "$file" "$checksums")" ]; then
        fail "$checksums: no line for $file"
    fi
    if [ -e "$archives/$file" ]; then
        check "$archives/$file" "$file"
    else
        fetch "$url" "$archives/$file.part"
        check "$archives/$file.part" "$file"
        mv "$archives/$file.part" "$archives/$file"
    fi
    if [ "$name" = pfam_fasta ]; then
        echo "$archives/$file: complete"
        continue
    fi
    unpack "$name"
    echo "$data/$name: unpacked"
    if [ -n "$delete" ]; then
        rm "$archives/$file"
    fi
done
