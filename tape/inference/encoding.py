"""Proteins to embeddings with the trunk of any model type, a batch at a time; proteinlm.encoder does the transformer's.

    encoder = TrunkEncoder(model, layer=-1, device=torch.device("cpu"), precision=torch.float32)
    vectors = encoder.embed(["MKV", "MKVLA"], ("pooled", "avg", "mean"))     # {"pooled": [2, h], ...}

OUTPUTS: `pooled` the model's pooled output (for the transformer the first token's state); `avg` the mean over all
tokens, <cls> and <sep> included, as TAPE's; `mean` the mean over residues alone; `seq` the state of every token, <cls>
and <sep> included, as TAPE's. Layers: 0 the embedding, N the state after layer N, -1 (the same as the last N) after the
final LayerNorm too; `pooled` of another layer is its first token's state. With a list of layers each output's name says
which it is of: mean_layer_0, mean_layer_6.

What must hold: a protein's embedding does not depend on its companions (1e-5 in fp32). The transformer runs on the flat
stream of tokens, without padding and only as deep as `layer` asks; other models get padded batches and a mask. A batch
that does not fit in memory is halved; a protein that does not fit alone, or whose numbers are not finite, is listed.

Legend: B proteins, T tokens of a batch (residues + 2 each), N tokens of the longest, h hidden size.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from proteinlm.encoder import (
    POOLINGS,
    Encoder,
    OutOfMemory,
    Stream,
    computing,
    layer_number,
    make_stream,
    to_device,
    token_batches,
)
from proteinlm.errors import InputError
from proteinlm.progress import Progress
from proteinlm.tokenizer import build_tokenizer
from tape.data.examples import summary
from tape.data.users_code import calling, refuse
from tape.inference.fasta import Protein
from tape.inference.parts import is_per_token, pack_names, split_rows
from tape.inference.windows import Parts, in_windows
from tape.models.modeling_bert import ProteinBertModel
from tape.models.modeling_huggingface import HuggingFaceModel

TOKENIZER = build_tokenizer("tape")


def model_digest(model: nn.Module, without: Sequence[str] = ()) -> str:
    """sha256 over the model's class, configuration (but for the keys in `without`) and weights."""
    digest = hashlib.sha256(type(model).__name__.encode())
    config = {key: value for key, value in model.config.to_dict().items() if key not in without}
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def pad(stream: Stream) -> tuple[np.ndarray, np.ndarray]:
    """(input_ids int64 [B, N], 0 at padding; input_mask bool [B, N])."""
    mask = np.arange(stream.sizes.max()) < stream.sizes[:, None]
    ids = np.full(mask.shape, TOKENIZER.pad_id, np.int64)
    ids[mask] = stream.tokens
    return ids, mask


class TrunkEncoder:
    """A trunk on a device. layer: one, or a list of several. precision: float32, or the dtype of autocast."""

    def __init__(self, model: nn.Module, layer: int | Sequence[int], device: torch.device, precision: torch.dtype):
        self.model = model.to(device).eval()
        self.device, self.precision = device, precision
        self.window: tuple[int, int] | None = None  # residues of a longer protein's windows, tokens of a batch of them
        self.flat = isinstance(model, ProteinBertModel | HuggingFaceModel)
        self.last, self.depths = -1, {"": -1}  # the number of the last layer; ending of a name -> number of its layer
        self.padded = True
        if self.flat:
            self.encoder = Encoder(model.encoder, TOKENIZER, device, precision, type(model).__name__)
            self.padded = self.encoder.padded
            self._set_depths(layer, self.encoder.config.num_layers)
        elif layer != -1:
            self._set_depths(layer, self._count_layers(layer))

    def _set_depths(self, layer: int | Sequence[int], last: int) -> None:
        self.last = last
        if isinstance(layer, int):
            self.depths = {"": layer_number(layer, last, "--layer")}
        else:
            self.depths = {f"_layer_{n}": n for n in (layer_number(number, last, "--layers") for number in layer)}

    def _count_layers(self, layer: int | Sequence[int]) -> int:
        """How many layers the model has, which from now on gives their states; InputError if it cannot."""
        config = self.model.config
        depth = getattr(config, "num_hidden_layers", None)
        config.output_hidden_states = True
        outputs = self._outputs(make_stream(["A"], TOKENIZER))
        if depth is None or len(outputs) < 3 or len(outputs[2]) != depth + 1:
            config.output_hidden_states = False
            flag = f"--layer {layer}" if isinstance(layer, int) else f"--layers {' '.join(map(str, layer))}"
            raise InputError(f"{flag}: {type(self.model).__name__} gives only its last layer (-1)")
        return depth

    def widths(self, outputs: Sequence[str]) -> dict[str, int]:
        """Numbers of each output's vectors (`pooled` may be wider than the rest); found by embedding one residue."""
        return {name: value.shape[-1] for name, value in self.embed(["A"], outputs).items()}

    def embed(self, proteins: Sequence[str], outputs: Sequence[str]) -> dict[str, Tensor]:
        """fp32 on the device: `pooled`, `avg`, `mean` [B, h] and `seq` [T, h], the proteins one after the other."""
        stream, values = make_stream(proteins, TOKENIZER), {}
        states, own_pooled = self._states(proteins)
        for number, (ending, depth) in enumerate(self.depths.items()):
            tokens = states[number]
            for name in outputs:
                if name == "pooled" and depth == self.last and own_pooled:
                    values[name + ending] = own_pooled[0]
                elif name == "pooled":
                    mean = self.flat and depth == self.last and self.model.config.pooling == "mean"
                    values[name + ending] = POOLINGS["mean" if mean else "cls"](tokens, stream)
                else:
                    values[name + ending] = tokens if name == "seq" else POOLINGS[name](tokens, stream)
        return values

    def _states(self, proteins: Sequence[str]) -> Parts:
        """The states [T, h] of each layer, and of a model whose pooling is its own also that, [B, p]."""
        if self.window is None or max(map(len, proteins)) <= self.window[0]:
            return self._compute(proteins)
        return in_windows(self._compute, proteins, *self.window)

    def _compute(self, proteins: Sequence[str]) -> Parts:
        stream, depths = make_stream(proteins, TOKENIZER), list(self.depths.values())
        if self.flat:
            return self.encoder.states(stream, depths), []
        outputs = self._outputs(stream)
        real = to_device(np.flatnonzero(pad(stream)[1]), self.device)
        padded = [outputs[0] if depth == -1 else outputs[2][depth] for depth in depths]
        return [states.flatten(0, 1)[real].float() for states in padded], [outputs[1].float()]

    def _outputs(self, stream: Stream) -> tuple:
        what = f"{len(stream.sizes)} proteins, {len(stream.tokens)} tokens"
        with calling(self.model, "forward"), computing(self.device, self.precision, what):
            outputs = self.model(*(to_device(array, self.device) for array in pad(stream)))
        ids = [len(stream.sizes), int(stream.sizes.max())]
        if not isinstance(outputs, Sequence) or len(outputs) < 2 or not all(map(torch.is_tensor, outputs[:2])):
            refuse(self.model, f"forward should return (states, pooled); it returned {summary(outputs)}")
        if list(outputs[0].shape[:-1]) != ids or list(outputs[1].shape[:-1]) != ids[:1]:
            shapes, returned = f"{[*ids, 'h']} and {[*ids[:1], 'h']}", f"{summary(outputs[0])}, {summary(outputs[1])}"
            refuse(self.model, f"forward of ids {ids} should return {shapes}; it returned {returned}")
        return outputs

    def embed_part(
        self, proteins: Sequence[Protein], outputs: Sequence[str], args: argparse.Namespace, progress: Progress
    ) -> dict[str, np.ndarray]:
        """A part of a file: `ids` (packed) and `length` of the proteins, in input order, and rows of each output, one a
        protein, of `seq` one a token. `failed_numbers`, `failed_ids`, `failed_length` and `failed_reasons` list those
        that could not be embedded and have no rows. args: tape-embed's."""
        lengths = np.array([len(protein.residues) for protein in proteins], np.int32)
        batches, reasons = [], {}
        for whole in token_batches(lengths, args.tokens_per_batch, args.batch_size, padded=self.padded):
            for batch, values in self._embed_in_memory(proteins, whole, outputs):
                if values is None:
                    reasons[int(batch[0])] = f"does not fit in {self.device.type.upper()} memory, even alone"
                else:
                    batches.append((batch, values))
            progress.add(len(whole), int(lengths[whole].sum()))
        widths = {name: v.shape[1] for name, v in batches[0][1].items()} if batches else self.widths(outputs)
        arrays = _in_input_order(batches, lengths, widths, np.float16 if args.save_fp16 else np.float32)
        where = "float16 (largest: 65,504)" if args.save_fp16 else "the model's output"
        for i in sorted(_not_finite(arrays, lengths) - set(reasons)):
            reasons[i] = f"a number that is not finite in {where}"
        part = {"ids": pack_names([protein.id for protein in proteins]), "length": lengths} | arrays
        return _list_failed(part, proteins, reasons) if reasons else part

    def _embed_in_memory(
        self, proteins: Sequence[Protein], batch: np.ndarray, outputs: Sequence[str]
    ) -> Iterator[tuple[np.ndarray, dict[str, Tensor] | None]]:
        """(indices, their `embed`) of `batch` in pieces that fit in memory; None for a protein that does not fit."""
        pieces = [batch]
        while pieces:
            piece, values = pieces.pop(), None
            try:
                values = self.embed([proteins[i].residues for i in piece], outputs)
            except OutOfMemory:
                if len(piece) > 1:
                    pieces += np.array_split(piece, 2)
                    continue
            yield piece, values


def _in_input_order(batches: list, lengths: np.ndarray, widths: dict[str, int], dtype: type) -> dict[str, np.ndarray]:
    """Rows of each output from what `embed` gave of batches, which is used up. What is in no batch has rows of 0."""
    rows, arrays = list(split_rows(lengths)), {}
    for name, width in widths.items():
        arrays[name] = np.zeros((rows[-1].stop if is_per_token(name) else len(lengths), width), dtype)
        for batch, tensors in batches:
            values = tensors.pop(name).cpu().numpy()
            with np.errstate(over="ignore"):  # what is beyond float16 is listed afterwards
                if is_per_token(name):
                    for i, tokens in zip(batch, split_rows(lengths[batch]), strict=True):
                        arrays[name][rows[i]] = values[tokens]
                else:
                    arrays[name][batch] = values
    return arrays


def _not_finite(arrays: dict[str, np.ndarray], lengths: np.ndarray) -> set[int]:
    """The proteins with an infinity or a NaN in any output."""
    ends, bad = np.cumsum(lengths + 2, dtype=np.int64), set()
    for name, values in arrays.items():
        # the extremes hold every NaN and infinity, and need no memory for a truth value of each number
        rows = np.flatnonzero(~(np.isfinite(values.min(1)) & np.isfinite(values.max(1))))
        bad |= set((np.searchsorted(ends, rows, "right") if is_per_token(name) else rows).tolist())
    return bad


def _list_failed(part: dict, proteins: Sequence[Protein], reasons: dict[int, str]) -> dict[str, np.ndarray]:
    """The part without the rows of the proteins in `reasons`, which are listed instead."""
    failed = sorted(reasons)
    embedded = np.ones(len(proteins), bool)
    embedded[failed] = False
    tokens = np.repeat(embedded, part["length"] + 2)
    outputs = {name: rows[tokens if is_per_token(name) else embedded] for name, rows in part.items() if rows.ndim == 2}
    return {
        "ids": pack_names([proteins[i].id for i in np.flatnonzero(embedded)]),
        "length": part["length"][embedded],
        **outputs,
        "failed_numbers": np.array([proteins[i].number for i in failed], np.int64),
        "failed_ids": pack_names([proteins[i].id for i in failed]),
        "failed_length": part["length"][failed],
        "failed_reasons": pack_names([reasons[i] for i in failed]),
    }
