"""Results of a long run as numbered part files beside the output, so that a killed run goes on where it was.

    store = PartStore("out.h5", manifest)        # out.h5.parts/manifest.json
    with store.open() as resumed:                # checks that one that is there is of the same input, model and flags
        store.save(3, {"ids": ..., "avg": ...})  # out.h5.parts/part_000003.npz, whole or not at all
        store.finish({Path("out.h5"): write})    # write(path) makes the output, which then replaces out.h5

What must hold: a part is a function of input, model and flags alone, so it does not matter which process made it, or
when; a directory begun by something else, or open in another run, is refused by name and never touched; work that
fails before its first part leaves no directory.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from proteinlm.errors import InputError
from proteinlm.files import atomic_path, check_writable, fsync_path, write_json, writing
from proteinlm.running.locks import locked
from proteinlm.untrusted.array_files import read_kept, write_kept
from proteinlm.untrusted.json_files import read_json

MANIFEST = "manifest.json"
PART_BYTES = 256 << 20  # of per-residue states in one part
PART_TOKENS = 1 << 23  # bounds the text of a part of giants


def plan_parts(lengths: np.ndarray, part_proteins: int, token_bytes: int) -> np.ndarray:
    """int64 [P + 1]: part p holds the proteins bounds[p] ... bounds[p + 1] - 1, in input order.

    lengths [N]: residues; token_bytes: of each token's states (0: vectors only). A part has at most `part_proteins`
    proteins, and about PART_BYTES or less.
    """
    room = PART_TOKENS if token_bytes == 0 else min(PART_TOKENS, max(1, PART_BYTES // token_bytes))
    return cut_parts(lengths.astype(np.int64) + 2, room, part_proteins)


def cut_parts(sizes: np.ndarray, room: int, most: int) -> np.ndarray:
    """int64 [P + 1]: parts of at most `most` items, whose sizes [N] add up to `room` or less, or of one item."""
    bounds, ends = [0], np.cumsum(sizes)
    while bounds[-1] < len(sizes):
        begin = bounds[-1]
        before = ends[begin - 1] if begin else 0
        fitting = int(np.searchsorted(ends, before + room, "right"))
        bounds.append(min(max(fitting, begin + 1), begin + most))
    return np.array(bounds, np.int64)


def split_rows(lengths: np.ndarray) -> Iterator[slice]:
    """Where each protein's tokens (residues + 2) lie in the rows of `seq`."""
    end = 0
    for length in lengths.tolist():
        yield slice(end, end + length + 2)
        end += length + 2


class PartStore:
    """The part files of one output. manifest: everything that decides their contents, in JSON's types; others: files
    that are written in its place or beside it."""

    def __init__(self, output: str | Path, manifest: Mapping, others: Iterable[Path] = ()):
        self.output, self.others = Path(output), list(others)
        self.directory = self.output.with_name(self.output.name + ".parts")
        self.manifest = json.loads(json.dumps(manifest))

    @contextlib.contextmanager
    def open(self, wait: bool = False) -> Iterator[bool]:
        """Hold the directory, by one process of a run: True if parts of this run may be there. InputError if it is
        another's, cannot be made, or is in use (wait: until it is not)."""
        path = self.directory / MANIFEST
        for file in (self.output, *self.others):
            check_writable(file)
        with locked(self.directory, "output name", wait):
            if path.is_file():
                self._compare(read_json(path, f"a run's manifest (or remove {self.directory})"))
            # a killed run may have been just writing the manifest
            elif not all(own.name.startswith(f".{MANIFEST}.") for own in self.directory.iterdir()):
                raise InputError(
                    f"{self.directory}: exists without {MANIFEST}; move it away or give another output name"
                )
            yield path.is_file()

    def _begin(self) -> None:
        if not (self.directory / MANIFEST).is_file():
            self.directory.mkdir(parents=True, exist_ok=True)
            write_json(self.directory / MANIFEST, self.manifest)

    def _compare(self, saved: dict) -> None:
        for name in {**self.manifest, **saved}:
            if saved.get(name) != self.manifest.get(name):
                raise InputError(
                    f"{self.directory}: begun with {name} {saved.get(name)}, this run has {self.manifest.get(name)}; "
                    "start the same command, remove that directory, or give another output name"
                )

    def path(self, part: int) -> Path:
        return self.directory / f"part_{part:06d}.npz"

    def has(self, part: int) -> bool:
        return self.path(part).is_file()

    def save(self, part: int, arrays: Mapping[str, np.ndarray]) -> None:
        self._begin()
        write_kept(self.path(part), arrays)

    def load(self, part: int) -> dict[str, np.ndarray]:
        return read_kept(self.path(part))

    def load_one(self, part: int, name: str) -> np.ndarray | None:
        """One array of a part; None where the part has none of that name."""
        return read_kept(self.path(part), name.__eq__).get(name)

    def finish(self, outputs: Mapping[Path, Callable[[Path], None]]) -> None:
        """Have each output written inside the directory, then move all to their names, and remove the directory."""
        self._begin()
        written = {output: self.directory / f"whole_{number}" for number, output in enumerate(outputs)}
        for output, write in outputs.items():
            with writing(output, written[output]), atomic_path(written[output]) as temporary:
                write(temporary)
        for output, whole in written.items():
            whole.replace(output)
        fsync_path(self.output.parent)
        self._remove()

    def clear(self) -> None:
        """Where all outputs are there: remove the parts, if a kill came before `finish` had done so."""
        if self.directory.is_dir():
            with contextlib.suppress(InputError), self.open():  # another run's, or in use
                self._remove()

    def _remove(self) -> None:
        for path in self.directory.iterdir():  # the manifest last: what a kill leaves here is still known by it
            if path.name != MANIFEST:
                path.unlink()
        shutil.rmtree(self.directory)


def kept_array(path: Path, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """What `compute` makes, from the file `path` (.npz) if it is there, else kept there."""
    if not path.is_file():
        write_kept(path, {"array": compute()})
    return read_kept(path)["array"]


def check_room(directory: Path, needed: int, advice: str) -> None:
    """InputError where fewer bytes than `needed` are free for it. advice: what would help."""
    check_writable(directory / "part")
    free = shutil.disk_usage(next(above for above in (directory, *directory.absolute().parents) if above.exists())).free
    if needed > free:
        size, unit = (1e9, "GB") if needed >= 1e9 else (1e6, "MB")
        sizes = f"the encoder's states need {needed / size:,.1f} {unit} and {free / size:,.1f} {unit} are free"
        raise InputError(f"{directory}: {sizes}; {advice}")


def pack_names(names: list[str]) -> np.ndarray:
    """Names without white space as bytes: no row is as wide as the longest."""
    return np.frombuffer("\n".join(names).encode(), np.uint8)


def unpack_names(packed: np.ndarray) -> list[str]:
    return packed.tobytes().decode().split("\n") if len(packed) else []


def is_per_token(name: str) -> bool:
    """Whether an output has a row a token (`seq`, seq_layer_6), not one a protein."""
    return name.startswith("seq")
