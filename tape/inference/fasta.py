"""Proteins of a user's FASTA file for tape-embed and tape-predict: scanned once, then streamed.

    scan = scan_fasta("in.fasta.gz", Rules(max_length=1022, too_long="crop"))
    for protein in read_proteins(scan): ...            # id, residues, its number in the file; input order

What must hold: everything that could stop a long run (a name met twice, a protein too long for the model) is found by
the scan, before the model does anything; what is left out or cut is counted and reported; memory is 29 bytes a protein
plus a megabyte of text, however large the file.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from proteinlm.errors import ArgumentParser, InputError
from proteinlm.files import reread
from proteinlm.sequences import read_fasta, residues_of
from proteinlm.tables import is_fasta, is_table, read_table
from tape.data import lengths
from tape.own_data.columns import find_id, find_sequence
from tape.runs.flags import add_flags, positive
from tape.runs.results import file_sha256

TOO_LONG = (*lengths.TOO_LONG, "window")
DUPLICATES = ("error", "first", "keep")
LONGEST_NAME = 10_000  # letters; an .npz or a .tar holds a name of at most 65,535 bytes
DIGEST = 16  # bytes of a name's digest: two of 10^9 names share one with a probability below 10^-20


@dataclass(frozen=True)
class Rules:
    """What happens to proteins that cannot simply be taken."""

    max_length: int | None = None  # residues the model may see; None: any number
    too_long: str = "error"  # or "crop" (its first max_length residues), "skip", "window" (tape.inference.windows)
    duplicates: str = "error"  # or "first" (later ones of a name are left out), "keep"
    sequence: str | None = None  # of a table: the column of sequences, and that of names ("none": there is none)
    id: str | None = None


@dataclass(frozen=True)
class Protein:
    """One record that is selected. residues: as the model is to see them."""

    number: int  # of the record in the file, from 1
    id: str  # the first word of its header, as in TAPE; of a table, its name there
    residues: str


@dataclass(frozen=True)
class Scan:
    """What a FASTA file holds. Arrays are over its N records."""

    path: str
    rules: Rules
    bytes: int
    sha256: str
    selected: np.ndarray  # bool [N]
    lengths: np.ndarray  # int32 [N], residues as the model sees them
    counts: dict[str, int]  # empty, cropped, skipped_too_long, windowed, duplicates: how many records

    def __len__(self) -> int:
        """Proteins that are selected."""
        return int(self.selected.sum())

    @property
    def selected_lengths(self) -> np.ndarray:
        """int32 [len(self)], in input order."""
        return self.lengths[self.selected]

    def summary(self) -> str:
        """'', or what was left out or cut, for the last line of a command."""
        words = {
            "empty": "{} without residues skipped",
            "skipped_too_long": f"{{}} longer than {self.rules.max_length} skipped",
            "duplicates": "{} of a name met before skipped",
            "cropped": f"{{}} cropped to {self.rules.max_length} residues",
            "windowed": f"{{}} read in windows of {self.rules.max_length} residues",
        }
        return "".join(f", {words[key].format(count)}" for key, count in self.counts.items() if count)


def read_records(path: str, rules: Rules) -> Iterator[tuple[str, str]]:
    """(name, residues) of every record of a FASTA file (the first word of its header, as in TAPE), or of a table (its
    column of names; without one line2, line3 ...). InputError for a record without a name, or with one that no file of
    results could hold."""
    if is_fasta(path) or not is_table(path):
        for number, (header, residues) in enumerate(read_fasta(path), 1):
            words = header.split(maxsplit=1)
            if not words:
                raise InputError(f"{path}, record {number}: no name after '>'; every protein needs one")
            if len(words[0]) > LONGEST_NAME or "\0" in words[0]:
                fault = "a NUL byte" if "\0" in words[0] else f"{len(words[0]):,} letters"
                raise InputError(f"{path}, record {number}: a name with {fault}; is this a FASTA file?")
            yield words[0], residues
        return
    table = read_table(path)
    column, sequences = find_id(table, rules.id), table.column(find_sequence(table, rules.sequence))
    names = table.column(column) if column else [f"line{line}" for line in table.lines]
    for row, (name, sequence) in enumerate(zip(names, sequences, strict=True)):
        if not name:
            raise InputError(f"{table.where(row, column)}: empty; every protein needs a name (or --id none)")
        yield " ".join(name.split()), residues_of(sequence)


def scan_fasta(
    path: str | Path, rules: Rules, key: Callable[[str], str] = str, choices: Sequence[str] = TOO_LONG
) -> Scan:
    """Scan the whole file; path: also "-", standard input, or another pipe.

    InputError for what `rules` refuse, a nameless record and a file of no proteins. key: what is made of a name for the
    output; duplicates are those of it. choices: of --too_long, in the command.
    """
    path, sizes, digests = reread(str(path)), [], []
    records = read_records(path, rules)
    while chunk := list(itertools.islice(records, 1 << 16)):  # lists of a chunk only: arrays are smaller
        sizes.append(np.array([len(residues) for _, residues in chunk], np.int32))
        digests.append(
            np.array([hashlib.blake2b(key(n).encode(), digest_size=DIGEST).digest() for n, _ in chunk], "S16")
        )
    length = np.concatenate(sizes) if sizes else np.zeros(0, np.int32)
    selected = length > 0
    counts = {"empty": int((~selected).sum())}
    over = length > (np.iinfo(np.int32).max if rules.max_length is None else rules.max_length)
    if over.any() and rules.too_long == "error":
        first = int(over.argmax())
        raise InputError(
            f"{path}: {int(over.sum()):,} of {len(length):,} proteins exceed {rules.max_length} residues, the first is "
            f"record {first + 1} ({_name(path, rules, first)}) of {length[first]}; "
            f"--too_long {'|'.join(choice for choice in choices if choice != 'error')}"
        )
    if rules.too_long == "skip":
        selected &= ~over
    name = {"crop": "cropped", "window": "windowed"}.get(rules.too_long, "skipped_too_long")
    counts[name] = int(over.sum())
    if rules.duplicates != "keep":
        counts["duplicates"] = _leave_out_duplicates(path, selected, np.concatenate(digests or [[]]), rules)
    if not selected.any():
        raise InputError(f"{path}: no protein to work on among {len(length)} records")
    whole = rules.max_length is None or rules.too_long == "window"
    seen = length if whole else np.minimum(length, rules.max_length)
    return Scan(path, rules, Path(path).stat().st_size, file_sha256(path), selected, seen, counts)


def _leave_out_duplicates(path: str, selected: np.ndarray, digests: np.ndarray, rules: Rules) -> int:
    """Clear `selected` [N] where the record has the name of an earlier selected one; returns how many there are."""
    where = np.flatnonzero(selected)
    _, first, inverse = np.unique(digests[where], return_index=True, return_inverse=True)
    later = first[inverse] != np.arange(len(where))
    if later.any() and rules.duplicates == "error":
        second = int(later.argmax())
        places = int(where[first[inverse[second]]]) + 1, int(where[second]) + 1
        names = [_name(path, rules, place - 1) for place in places]
        both = f"both named {names[0]}" if names[0] == names[1] else f"{names[0]} and {names[1]}, one key in the output"
        raise InputError(
            f"{path}: records {places[0]} and {places[1]} are {both} "
            f"({int(later.sum())} names repeated); --duplicates first leaves out the later ones"
        )
    selected[where[later]] = False
    return int(later.sum())


def _name(path: str, rules: Rules, index: int) -> str:
    return next(itertools.islice(read_records(path, rules), index, None))[0]


def left_out(scan: Scan) -> Iterator[tuple[int, str, int, str]]:
    """(number in the file, name, residues, why) of every record that is not selected, in the file's order."""
    limit = scan.rules.max_length
    records = zip(read_records(scan.path, scan.rules), scan.selected.tolist(), strict=False)
    for number, ((name, residues), selected) in enumerate(records, 1):
        if not selected:
            reason = "a name met before" if residues else "no residues"
            if limit is not None and len(residues) > limit and scan.rules.too_long == "skip":
                reason = f"longer than {limit} residues"
            yield number, name, len(residues), reason


def read_proteins(scan: Scan) -> Iterator[Protein]:
    """The selected proteins in input order; InputError if the file is no longer the one that was scanned."""
    number = 0
    for number, (name, residues) in enumerate(read_records(scan.path, scan.rules), 1):
        if number > len(scan.selected):
            break
        if scan.selected[number - 1]:
            residues = residues if scan.rules.too_long == "window" else residues[: scan.rules.max_length]
            if len(residues) != scan.lengths[number - 1]:
                break
            yield Protein(number, name, residues)
    else:
        if number == len(scan.selected):
            return
    raise InputError(f"{scan.path}: changed at record {number} while it was being read; start again")


def read_windows(scan: Scan, bounds: np.ndarray, windows: Sequence[int]) -> Iterator[tuple[int, list[Protein]]]:
    """(window, its proteins) for each of `windows`, which increase, in one reading of the file.

    bounds [W + 1]: window w is the selected proteins bounds[w] ... bounds[w + 1] - 1.
    """
    proteins, at = read_proteins(scan), 0
    for window in windows:
        begin, end = int(bounds[window]), int(bounds[window + 1])
        yield window, list(itertools.islice(proteins, begin - at, end - at))
        at = end


def add_fasta_flags(parser: ArgumentParser) -> None:
    """--max_length, --too_long, --duplicates, --sequence, --id, --tokens_per_batch, --batch_size, --log_interval."""
    add_flags(parser, "max_length")
    parser.add_argument("--sequence", metavar="COLUMN", help="of a table: where the sequences are")
    parser.add_argument("--id", metavar="COLUMN", help="of a table: where the names are; none: nowhere")
    parser.add_argument(
        "--tokens_per_batch", type=positive, help="residues + 2 of a batch (2048 a thread, up to 8192; on a GPU 65536)"
    )
    parser.add_argument("--batch_size", type=positive, default=1024, help="at most so many proteins a batch")
    parser.add_argument(
        "--too_long", choices=TOO_LONG, default="error", help="a longer protein: stop, cut, leave out, read in windows"
    )
    parser.add_argument(
        "--duplicates", choices=DUPLICATES, default="error", help="a name met twice: stop, take the first, keep both"
    )
    parser.add_argument("--log_interval", type=float, default=30.0, help="seconds between lines of progress")
