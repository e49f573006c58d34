"""Proteins to embeddings: the trunk of any model type, one batch at a time.

    encoder = Encoder(model, layer=-1, device=torch.device("cpu"), precision=torch.float32)
    vectors = encoder.embed(["MKV", "MKVLA"], ("pooled", "avg", "mean"))     # {"pooled": [2, h], ...}

Kinds: `pooled` the model's pooled output (for the transformer the first token's state); `avg` the mean over all tokens,
<cls> and <sep> included, as TAPE's; `mean` the mean over residues alone; `seq` the state of every token, <cls> and
<sep> included, as TAPE's. Layers: 0 the embedding, N the state after layer N, -1 (the same as the last N) after the
final LayerNorm too; `pooled` of another layer is its first token's state.

What must hold: a protein's embedding does not depend on its companions (1e-5 in fp32). The transformer runs on the flat
stream of tokens, without padding and only as deep as `layer` asks; other models get padded batches and a mask.

Legend: B proteins, T tokens of a batch (residues + 2 each), N tokens of the longest, h hidden size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from proteinlm.errors import InputError
from proteinlm.tokenizer import build_tokenizer
from tape.models.modeling_bert import ProteinBertModel

TOKENIZER = build_tokenizer("tape")
KINDS = ("pooled", "avg", "mean", "seq")


@dataclass(frozen=True)
class Stream:
    """B proteins as `<cls> residues <sep>`, one after the other."""

    tokens: np.ndarray  # int64 [T]
    sizes: np.ndarray  # int64 [B], tokens of each

    @property
    def ends(self) -> np.ndarray:
        return np.cumsum(self.sizes)

    @property
    def starts(self) -> np.ndarray:
        return self.ends - self.sizes

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """(input_ids int64 [B, N], 0 at padding; input_mask bool [B, N])."""
        mask = np.arange(self.sizes.max()) < self.sizes[:, None]
        ids = np.full(mask.shape, TOKENIZER.pad_id, np.int64)
        ids[mask] = self.tokens
        return ids, mask


def make_stream(proteins: Sequence[str]) -> Stream:
    """Tokens of proteins of one residue or more; a letter outside the vocabulary becomes <unk>."""
    joined = "".join(proteins).encode("latin-1", "replace")
    ids, lengths = TOKENIZER.encode_many(joined, np.fromiter(map(len, proteins), np.int64, len(proteins)))
    sizes = lengths + 2
    ends = np.cumsum(sizes)
    tokens = np.full(int(sizes.sum()), -1, np.int64)
    tokens[ends - sizes], tokens[ends - 1] = TOKENIZER.cls_id, TOKENIZER.sep_id
    tokens[tokens < 0] = ids
    return Stream(tokens, sizes)


class Encoder:
    """A trunk on a device. precision: float32, or the dtype of autocast."""

    def __init__(self, model: nn.Module, layer: int, device: torch.device, precision: torch.dtype):
        self.model = model.to(device).eval()
        self.device, self.precision = device, precision
        self.flat = isinstance(model, ProteinBertModel)
        self.last = True
        self.layer = -1
        if self.flat:
            self._cut(layer)
        elif layer != -1:
            self._choose(layer)

    def _cut(self, layer: int) -> None:
        """Take away the layers above the one asked for, and the final norm unless it is the last."""
        encoder = self.model.encoder
        depth = _layer_number(layer, len(encoder.layers))
        self.last = depth == len(encoder.layers)
        if not self.last:
            encoder.layers = nn.ModuleDict({str(i): encoder.layers[str(i)] for i in range(depth)})
            encoder.final_layernorm = None

    def _choose(self, layer: int) -> None:
        config = self.model.config
        depth = getattr(config, "num_hidden_layers", None)
        config.output_hidden_states = True
        found = self._outputs(make_stream(["A"]))
        if depth is None or len(found) < 3 or len(found[2]) != depth + 1:
            config.output_hidden_states = False
            raise InputError(f"--layer {layer}: {type(self.model).__name__} gives only its last layer (-1)")
        self.layer = _layer_number(layer, depth)
        self.last = self.layer == depth

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers of each kind of vector; found by embedding one residue."""
        return {kind: value.shape[-1] for kind, value in self.embed(["A"], KINDS).items()}

    @torch.no_grad()
    def embed(self, proteins: Sequence[str], kinds: Sequence[str]) -> dict[str, Tensor]:
        """fp32 on the device: `pooled`, `avg`, `mean` [B, h] and `seq` [T, h], the proteins one after the other."""
        stream = make_stream(proteins)
        try:
            with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                states, pooled = self._states(stream)
        except torch.OutOfMemoryError as error:
            size = f"{len(stream.sizes)} proteins, {len(stream.tokens)} tokens"
            raise InputError(f"a batch of {size} does not fit in GPU memory; lower --tokens_per_batch") from error
        states = states.float()
        found = {"pooled": lambda: pooled.float(), "seq": lambda: states}
        found["avg"] = lambda: segment_mean(states, self._tensor(stream.sizes))
        found["mean"] = lambda: self._residue_mean(states, stream)
        return {kind: found[kind]() for kind in kinds}

    def _tensor(self, array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return tensor if self.device.type == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)

    def _residue_mean(self, states: Tensor, stream: Stream) -> Tensor:
        residue = np.ones(len(stream.tokens), bool)
        residue[stream.starts] = residue[stream.ends - 1] = False
        return segment_mean(states[self._tensor(np.flatnonzero(residue))], self._tensor(stream.sizes - 2))

    def _states(self, stream: Stream) -> tuple[Tensor, Tensor]:
        """([T, h], [B, h])."""
        starts = self._tensor(stream.starts)
        if self.flat:
            positions = np.arange(len(stream.tokens)) - np.repeat(stream.starts, stream.sizes)
            bounds = np.concatenate(([0], stream.ends)).astype(np.int32)
            states = self.model.encoder(*map(self._tensor, (stream.tokens, positions, bounds)))
            if self.last and getattr(self.model.config, "pooling", "first") == "mean":
                return states, self._residue_mean(states.float(), stream)
            return states, states[starts]
        mask = stream.padded()[1]
        outputs = self._outputs(stream)
        where = self._tensor(np.flatnonzero(mask))
        chosen = outputs[0] if self.layer == -1 else outputs[2][self.layer]
        states = chosen.flatten(0, 1)[where]
        return states, outputs[1] if self.last else states[starts]

    @torch.no_grad()
    def _outputs(self, stream: Stream) -> tuple:
        return self.model(*map(self._tensor, stream.padded()))


def _layer_number(layer: int, depth: int) -> int:
    """0 ... depth of a --layer value; negative ones count from the last."""
    number = layer + depth + 1 if layer < 0 else layer
    if not 0 <= number <= depth:
        raise InputError(f"--layer {layer}: the model has {depth} layers; 0 (embedding) to {depth}, or -1 (the last)")
    return number


def segment_mean(values: Tensor, sizes: Tensor) -> Tensor:
    """[T, h] -> [B, h], the means of `sizes` [B] rows each, in order; the same bits every time, on a GPU too."""
    return torch.segment_reduce(values, "mean", lengths=sizes, axis=0, unsafe=True)
