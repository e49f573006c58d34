"""Every protein embedded once, in half precision, for all the heads, arms and pictures that look at it.

    embeddings = embed_once("model", sequences, Path("embeddings"), layers=(0, -1), per_residue=True)
    embeddings.pooled("mean")               # float32 [B, h]; "mean_max": the two side by side, [B, 2 h]
    embeddings.residues(3, layer=0)         # float32 [L, h] of protein 3, read from the file

A file a layer, in the form of tape-embed's .h5 (tape.inference.files). Its name is a digest of the weights, the
sequences, the precision and the layer, so that whoever asks for the same again finds it. What must hold: identical
sequences are embedded once; a killed run goes on at its last part and ends in the same numbers; a number that float16
cannot hold stops the work by name; memory is one part, however many proteins there are.

Legend: B proteins, U different sequences, T tokens of a batch (residues + 2 each), L residues of a protein, h hidden
size.
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from probe.arms import identity_of, open_encoder
from probe.names import TOO_LONG
from proteinlm.encoder import (
    Encoder,
    Stream,
    default_batch_tokens,
    first_token,
    layer_number,
    make_stream,
    residue_mean,
    to_device,
)
from proteinlm.errors import InputError
from proteinlm.progress import Progress
from proteinlm.untrusted.array_files import H5, MADE_AGAIN
from tape.inference.encoding import TrunkEncoder
from tape.inference.fasta import Protein
from tape.inference.files import WRITERS, Contents
from tape.inference.parts import PartStore, check_room, is_per_token, plan_parts, unpack_names
from tape.inference.windows import Parts

PART_PROTEINS = 256  # what a killed run may have to do again
BATCH_PROTEINS = 1024


def _residue_extreme(states: Tensor, stream: Stream, kind: str) -> Tensor:
    residues = states[to_device(stream.residues, states.device)]
    lengths = to_device(stream.sizes - 2, states.device)
    return torch.segment_reduce(residues, kind, lengths=lengths, axis=0, unsafe=True)


POOLINGS: dict[str, Callable[[Tensor, Stream], Tensor]] = {  # [T, h] -> [B, h]
    "mean": residue_mean,
    "max": lambda states, stream: _residue_extreme(states, stream, "max"),
    "min": lambda states, stream: _residue_extreme(states, stream, "min"),
    "first": first_token,  # [CLS]; for a network that has none (T5) the mean again
}


def pooling_parts(pooling: str) -> list[str]:
    """["mean", "max"] of "mean_max"."""
    parts = pooling.split("_")
    if not all(part in POOLINGS for part in parts) or len(set(parts)) < len(parts):
        names = f"{', '.join(POOLINGS)}, or several joined by _ (mean_max)"
        raise InputError(f"pooling {pooling!r}: should be one of {names}")
    return parts


class Embeddings:
    """Vectors of B proteins in files. width: h; lengths int64 [B]: residues of each that were embedded; layers: their
    numbers, depth the last one that the encoder has; identity: a digest of weights, sequences and precision."""

    def __init__(
        self,
        files: Mapping[int, Path],
        depth: int,
        width: int,
        place: np.ndarray,
        lengths: np.ndarray,
        source: str,
        identity: str,
    ):
        self.layers, self.depth, self.width, self.lengths = tuple(files), depth, width, lengths
        self.source, self.identity = source, identity
        self._place = place  # of each protein among the U
        sizes = np.zeros(int(place.max()) + 1, np.int64)
        sizes[place] = lengths
        self._ends = np.cumsum(sizes + 2)
        self._files = {layer: H5(path) for layer, path in files.items()}
        for file in self._files.values():
            if not np.array_equal(file.read("length"), sizes):
                raise InputError(f"{file.path}: its lengths are not those of the proteins; {MADE_AGAIN}")

    def __len__(self) -> int:
        return len(self._place)

    def pooled(self, pooling: str = "mean", layer: int = -1) -> np.ndarray:
        """float32 [B, h]; [B, k h] of k poolings. InputError for a layer that was not embedded."""
        parts = [self._rows(part, layer) for part in pooling_parts(pooling)]
        return np.concatenate(parts, 1)[self._place]

    def residues(self, i: int, layer: int = -1) -> np.ndarray:
        """float32 [L, h] of protein i."""
        row = self._place[i]
        end = int(self._ends[row])
        begin = int(self._ends[row - 1]) if row else 0
        return self._rows("seq", layer, slice(begin + 1, end - 1))

    def _rows(self, name: str, layer: int, rows: slice = slice(None)) -> np.ndarray:
        number = layer_number(layer, self.depth)
        if number not in self._files:
            raise InputError(f"layer {layer}: not embedded; there are {', '.join(map(str, self.layers))}")
        file, name = self._files[number], f"{name}_layer_{number}"
        if name not in file:
            raise InputError(f"{file.path}: has no {name}; embed_once(..., per_residue=True)")
        count = self._ends[-1] if is_per_token(name) else len(self._ends)
        return file.read_half(name, rows, (int(count), self.width))


class _Pooler(TrunkEncoder):
    """tape-embed's work on a part, of any encoder of proteinlm.load and with the poolings here."""

    def __init__(self, encoder: Encoder, layers: Sequence[int], window: tuple[int, int] | None):
        self.encoder, self.device, self.padded = encoder, encoder.device, encoder.padded
        self.window = window
        self._set_depths(layers, encoder.config.num_layers)

    def embed(self, proteins: Sequence[str], outputs: Sequence[str]) -> dict[str, Tensor]:
        stream, values = make_stream(proteins, self.encoder.tokenizer), {}
        for ending, states in zip(self.depths, self._states(proteins)[0], strict=True):
            for name in outputs:
                values[name + ending] = states if name == "seq" else POOLINGS[name](states, stream)
        return values

    def _compute(self, proteins: Sequence[str]) -> Parts:
        return self.encoder.states(make_stream(proteins, self.encoder.tokenizer), list(self.depths.values())), []


def embed_once(
    model: str | Encoder,
    sequences: Sequence[str],
    directory: str | Path,
    *,
    layers: Sequence[int] | str = (-1,),
    per_residue: bool = False,
    random_seed: int | None = None,
    device: str | torch.device | None = "auto",
    dtype: str = "fp32",
    max_length: int | None = None,
    too_long: str = "error",
    where: Sequence[str] | None = None,
    batch_tokens: int | None = None,
    quiet: bool = False,
) -> Embeddings:
    """The embeddings of B proteins, from `directory` where they are there, else computed.

    model: what proteinlm.load opens, or an open Encoder. layers: numbers as of Encoder.embed, or "all". per_residue:
    also every residue's state. random_seed: of weights in the place of the model's (probe.arms.open_encoder).
    max_length: residues that are embedded (None: all that the model takes); too_long: of a longer protein its first
    residues are ("crop"), or windows of so many are ("window", tape.inference.windows), or it stops the work ("error");
    where: what messages call each protein. InputError for it, an empty protein, and a vector that float16 cannot hold.
    """
    if isinstance(model, Encoder):
        encoder = model
    else:
        encoder = open_encoder(model, random_seed=random_seed, device=device, dtype=dtype)
    limit = encoder.residue_limit(max_length)
    sequences = _cut(list(sequences), limit, too_long, where)
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    number = {sequence: i for i, sequence in enumerate(dict.fromkeys(sequences))}
    place = np.array([number[sequence] for sequence in sequences], np.int64)
    depth = encoder.config.num_layers
    layers = range(depth + 1) if layers == "all" else layers
    layers = list(dict.fromkeys(layer_number(layer, depth) for layer in layers))
    identity = {
        "encoder": identity_of(encoder),
        "sequences": hashlib.sha256("\n".join(number).encode()).hexdigest(),
        "precision": str(encoder.dtype).removeprefix("torch."),
    }
    if limit is not None and lengths.max() > limit:
        identity["window"] = limit
    files = {layer: _existing(Path(directory), identity, layer, per_residue) for layer in layers}
    if None in files.values():
        files = _embed(encoder, list(number), Path(directory), identity, layers, per_residue, batch_tokens, quiet)
    else:
        _parts(Path(directory), identity, layers, per_residue).clear()
    name = _name(identity, [], False)[:16]
    return Embeddings(files, depth, encoder.config.hidden_size, place, lengths, encoder.source, name)


def _cut(sequences: list[str], limit: int | None, too_long: str, where: Sequence[str] | None) -> list[str]:
    """In capitals, none empty, none longer than may be."""
    where = [f"sequence {i}" for i in range(len(sequences))] if where is None else where
    if too_long not in TOO_LONG:
        raise InputError(f"too_long {too_long!r}: should be one of {', '.join(TOO_LONG)}")
    if not sequences or not all(sequences):
        what = "no sequences" if not sequences else f"{where[sequences.index('')]}: empty"
        raise InputError(f"{what}; should be one residue or more")
    if limit is not None and too_long == "error":
        over = [i for i, sequence in enumerate(sequences) if len(sequence) > limit]
        if over:
            size = len(sequences[over[0]])
            text = f"{size:,} residues, at most {limit:,} are embedded ({len(over):,} such proteins)"
            raise InputError(f"{where[over[0]]}: {text}; --too_long {'|'.join(TOO_LONG[1:])}")
    return [(sequence if too_long == "window" else sequence[:limit]).upper() for sequence in sequences]


def _name(identity: Mapping, layers: Sequence[int], per_residue: bool) -> str:
    kind = "residues" if per_residue else "pooled"
    text = f"{sorted(identity.items())} {list(layers)} {kind}"
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.h5"


def _existing(directory: Path, identity: Mapping, layer: int, per_residue: bool) -> Path | None:
    """The file of a layer; one with the residues has the pooled vectors too."""
    names = [_name(identity, [layer], kind) for kind in (True, False)[: 1 if per_residue else 2]]
    return next((directory / name for name in names if (directory / name).is_file()), None)


def _parts(directory: Path, identity: Mapping, layers: list[int], per_residue: bool) -> PartStore:
    settings = {"layers": layers, "per_residue": per_residue, "torch": torch.__version__}
    output = directory / f"embedding-{_name(identity, layers, per_residue)}"
    return PartStore(output, {**identity, **settings}, _files(directory, identity, layers, per_residue).values())


def _files(directory: Path, identity: Mapping, layers: list[int], per_residue: bool) -> dict[int, Path]:
    return {layer: directory / _name(identity, [layer], per_residue) for layer in layers}


def _embed(
    encoder: Encoder,
    sequences: list[str],
    directory: Path,
    identity: Mapping,
    layers: list[int],
    per_residue: bool,
    batch_tokens: int | None,
    quiet: bool,
) -> dict[int, Path]:
    """Compute the parts that are not there, join them to a file a layer, and return the files."""
    outputs = (*POOLINGS, "seq") if per_residue else tuple(POOLINGS)
    budget = batch_tokens or default_batch_tokens(encoder.device)
    pooler = _Pooler(encoder, layers, (identity["window"], budget) if "window" in identity else None)
    widths = pooler.widths(outputs)
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    token_bytes = 2 * sum(width for name, width in widths.items() if is_per_token(name))
    vectors = 2 * sum(width for name, width in widths.items() if not is_per_token(name))
    # the parts and the whole
    needed = 2 * (int((lengths + 2).sum()) * token_bytes + len(sequences) * vectors)
    check_room(directory, needed, "should be a directory on a larger disk, or fewer layers")
    bounds = plan_parts(lengths, PART_PROTEINS, token_bytes)
    files = _files(directory, identity, layers, per_residue)
    store = _parts(directory, identity, layers, per_residue)
    with store.open() as resumed:
        _embed_parts(pooler, store, sequences, bounds, outputs, budget, resumed, quiet)
        _join(store, len(bounds) - 1, files, identity, widths)
    return files


def _embed_parts(
    pooler: _Pooler,
    store: PartStore,
    sequences: list[str],
    bounds: np.ndarray,
    outputs: Sequence[str],
    budget: int,
    resumed: bool,
    quiet: bool,
) -> None:
    encoder = pooler.encoder
    todo = [part for part in range(len(bounds) - 1) if not store.has(part)]
    if not quiet:
        done = f" ({len(bounds) - 1 - len(todo)} of {len(bounds) - 1} parts are done)" if resumed else ""
        print(f"{encoder.source}: {len(sequences):,} proteins are embedded once{done}", file=sys.stderr, flush=True)
    flags = argparse.Namespace(tokens_per_batch=budget, batch_size=BATCH_PROTEINS, save_fp16=True)
    with Progress("proteins", len(sequences), _done(bounds, todo), quiet=quiet) as progress:
        for part in todo:
            own = [Protein(i, str(i), sequences[i]) for i in range(int(bounds[part]), int(bounds[part + 1]))]
            arrays = pooler.embed_part(own, outputs, flags, progress)
            if "failed_reasons" in arrays:
                first, reason = arrays["failed_numbers"][0], unpack_names(arrays["failed_reasons"])[0]
                text = f"a protein of {len(sequences[first])} residues ({sequences[first][:20]} ...)"
                layers = ", ".join(map(str, pooler.depths.values()))
                raise InputError(f"{encoder.source}, layers {layers}: {text} has {reason}")
            store.save(part, arrays)


def _done(bounds: np.ndarray, todo: Sequence[int]) -> int:
    return int(bounds[-1]) - sum(int(bounds[part + 1] - bounds[part]) for part in todo)


def _join(store: PartStore, parts: int, files: Mapping[int, Path], identity: Mapping, widths: Mapping) -> None:
    lengths = np.concatenate([store.load_one(part, "length") for part in range(parts)])
    tokens = int(lengths.sum(dtype=np.int64)) + 2 * len(lengths)

    def writer(layer: int) -> Callable[[Path], None]:
        own = {name: width for name, width in widths.items() if name.endswith(f"_layer_{layer}")}
        contents = Contents(len(lengths), tokens, own, "float16", {**identity, "layer": layer})
        columns = ({name: store.load_one(part, name) for name in ("ids", "length", *own)} for part in range(parts))
        return lambda path: WRITERS["hdf5"](path, contents, columns)

    store.finish({path: writer(layer) for layer, path in files.items()})
