"""A pretrained encoder for Python: proteins in; vectors, logits and hidden states out. tape-embed runs on it too.

    encoder = proteinlm.load("model")                     # proteinlm.model_dir.load
    encoder.embed(["MKV", "MKVLA"])                       # numpy float32 [2, h]: the mean over each protein's residues
    encoder.embed(["MKV", "MKVLA"], pooling=None)         # a list of [L, h]: a row a residue
    encoder.logits("MKV")                                 # a list of one, [3, V]
    encoder.hidden_states("MKV", tensors=True)            # a list of one torch tensor, [layers + 1, 3, h]
    encoder.contacts("MKV")                               # a list of one, [3, 3]: ESM models

Proteins are sorted by length and run in batches of at most `batch_tokens` tokens, each batch one flat stream without
padding (which another project's encoder makes a padded rectangle of; its tokens are counted then). What must hold: a
protein's numbers do not depend on its companions (1e-5 in fp32) and come in input order; a device holds one batch at a
time; results are fp32 also where less is computed in.

Legend: B proteins, T tokens of a batch (residues + 2 each), L residues of a protein, h hidden size, V vocabulary.
"""

import contextlib
import functools
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from proteinlm.errors import InputError
from proteinlm.huggingface.trunk import Trunk, TrunkConfig
from proteinlm.network.attention.maps import Reduce
from proteinlm.network.config import ModelConfig
from proteinlm.network.contacts import ContactRegression, contact_probabilities
from proteinlm.network.model import ProteinBert
from proteinlm.progress import Progress
from proteinlm.tokenizer import Tokenizer

HALVES = (torch.bfloat16, torch.float16)
Proteins = str | Iterable[str]
Computed = TypeVar("Computed")


@dataclass(frozen=True)
class Stream:
    """B proteins as `[CLS] residues [SEP]`, one after the other."""

    tokens: np.ndarray  # int64 [T]
    sizes: np.ndarray  # int64 [B], tokens of each

    @property
    def ends(self) -> np.ndarray:
        return np.cumsum(self.sizes)

    @property
    def starts(self) -> np.ndarray:
        return self.ends - self.sizes

    @property
    def positions(self) -> np.ndarray:
        """int64 [T], 0 at every [CLS]."""
        return np.arange(len(self.tokens)) - np.repeat(self.starts, self.sizes)

    @property
    def bounds(self) -> np.ndarray:
        """int32 [B + 1], where each protein begins and the last one ends."""
        return np.concatenate(([0], self.ends)).astype(np.int32)

    @property
    def residues(self) -> np.ndarray:
        """int64 [T - 2B], where the residues are."""
        is_residue = np.ones(len(self.tokens), bool)
        is_residue[self.starts] = is_residue[self.ends - 1] = False
        return np.flatnonzero(is_residue)


def make_stream(proteins: Sequence[str], tokenizer: Tokenizer) -> Stream:
    """Tokens of proteins of one residue or more; a letter outside the vocabulary becomes the unknown token."""
    joined = "".join(proteins).encode("latin-1", "replace")
    ids, lengths = tokenizer.encode_many(joined, np.fromiter(map(len, proteins), np.int64, len(proteins)))
    sizes = lengths + 2
    ends = np.cumsum(sizes)
    tokens = np.full(int(sizes.sum()), -1, np.int64)
    tokens[ends - sizes], tokens[ends - 1] = tokenizer.cls_id, tokenizer.sep_id
    tokens[tokens < 0] = ids
    return Stream(tokens, sizes)


def token_batches(
    lengths: np.ndarray, tokens_per_batch: int, batch_size: int | None = None, padded: bool = False
) -> list[np.ndarray]:
    """Index arrays of the proteins of each batch, longest first; every protein once.

    lengths [N]: residues; a protein has two tokens more. A batch holds at most `tokens_per_batch` tokens (with `padded`
    as many as its padded rectangle has) and `batch_size` proteins; a protein longer than the budget goes alone.
    """
    order = np.argsort(-lengths, kind="stable")
    sizes = (lengths[order] + 2).tolist()
    cap = batch_size or len(sizes)
    batches, begin, used = [], 0, 0
    for place, size in enumerate(sizes):
        used += sizes[begin] if padded else size
        if place > begin and (used > tokens_per_batch or place - begin == cap):
            batches.append(order[begin:place])
            begin, used = place, size
    return [*batches, order[begin:]] if len(order) else []


def default_batch_tokens(device: torch.device) -> int:
    """Enough to keep a device busy; on a CPU no more, for what a core works on is to stay in its cache."""
    return 65536 if device.type == "cuda" else min(8192, 2048 * torch.get_num_threads())


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class OutOfMemory(InputError):
    """A batch needs more memory than the device has."""


@contextlib.contextmanager
def computing(device: torch.device, dtype: torch.dtype, batch: str, alone: bool = False) -> Iterator[None]:
    """No gradients; autocast to `dtype` where it is a half. Too little memory for `batch` (alone: one protein, which no
    other batches divide) is OutOfMemory."""
    try:
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype in HALVES):
            yield
    except RuntimeError as error:  # on a CPU torch has no class of its own for it
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        batch, advice = f"a batch of {batch}", "lower --tokens_per_batch (in Python: batch_tokens)"
        if alone:
            batch, advice = f"{batch.removeprefix('a batch of ')}, even alone,", "should be cropped or left out"
        raise OutOfMemory(f"{batch} does not fit in {device.type.upper()} memory; {advice}") from error


def at_least_fp32(values: Tensor) -> Tensor:
    """Half precision as fp32; fp64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def segment_mean(values: Tensor, sizes: Tensor) -> Tensor:
    """[T, h] -> [B, h], the means of `sizes` [B] rows each, in order; the same bits every time, on a GPU too."""
    return torch.segment_reduce(values, "mean", lengths=sizes, axis=0, unsafe=True)


def residue_mean(states: Tensor, stream: Stream) -> Tensor:
    """[T, h] -> [B, h]: over each protein's residues."""
    residues = states[to_device(stream.residues, states.device)]
    return segment_mean(residues, to_device(stream.sizes - 2, states.device))


def token_mean(states: Tensor, stream: Stream) -> Tensor:
    """[T, h] -> [B, h]: over each protein's tokens, [CLS] and [SEP] included, which is TAPE's `avg`."""
    return segment_mean(states, to_device(stream.sizes, states.device))


def first_token(states: Tensor, stream: Stream) -> Tensor:
    """[T, h] -> [B, h]: the state of each protein's [CLS]."""
    return states[to_device(stream.starts, states.device)]


POOLINGS = {"mean": residue_mean, "cls": first_token, "avg": token_mean}


def whole_number(value: object, name: str) -> int:
    """`value` (numpy's integers too) as an int; InputError for another thing. name: of the argument."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise InputError(f"{name} {value!r}: should be a whole number")
    return int(value)


def layer_number(layer: int, depth: int, name: str = "layer") -> int:
    """0 ... depth of a layer asked for; negative ones count from the last. `name`: of the argument, for the error."""
    layer = whole_number(layer, name)
    number = layer + depth + 1 if layer < 0 else layer
    if not 0 <= number <= depth:
        raise InputError(f"{name} {layer}: the model has {depth} layers; 0 (embedding) to {depth}, or -1 (the last)")
    return number


class Encoder:
    """An encoder with its tokenizer on a device. source: where it is from. Of `model` it uses `config`, `states_after`,
    `lm_head` (None for none) and `lm_logits`.

    dtype: float32, or a half: autocast to it for a ProteinBert, whose weights stay fp32; for a Trunk its weights are
    rounded to it, as the users of ProtT5 do (half the memory). contact_head: what its attention maps say about
    contacts, where that is known.

    Every method takes a list of proteins, or one as a string, which is a list of one. A protein is a string with a
    character a residue: lower case is upper case, and what is no token (J, *, a space) is the unknown one, so
    row i is always character i. InputError, with the protein's place in the list, for an empty one and one longer than
    the model. `tensors`: torch tensors on the CPU instead of numpy arrays. `quiet`: no progress, which long work shows.
    """

    def __init__(
        self,
        model: ProteinBert | Trunk,
        tokenizer: Tokenizer,
        device: torch.device,
        dtype: torch.dtype,
        source: str,
        contact_head: ContactRegression | None = None,
    ):
        self.padded = isinstance(model, Trunk)
        self.autocast = torch.float32 if self.padded else dtype
        self.model = model.to(device, dtype=dtype if self.padded and dtype in HALVES else None).eval()
        self.tokenizer, self.device, self.dtype, self.source = tokenizer, device, dtype, source
        self.contact_head = contact_head

    @property
    def config(self) -> ModelConfig | TrunkConfig:
        return self.model.config

    def residue_limit(self, max_length: int | None = None) -> int | None:
        """Residues of a protein that are read: max_length, or all that the model takes (None: no limit). InputError for
        more than it takes."""
        limit = self.config.max_tokens and self.config.max_tokens - 2
        if max_length is not None and limit is not None and max_length > limit:
            raise InputError(f"max_length {max_length}: {self.source} takes {limit} residues")
        return limit if max_length is None else max_length

    def embed(
        self,
        sequences: Proteins,
        pooling: str | None = "mean",
        layer: int = -1,
        *,
        batch_tokens: int | None = None,
        tensors: bool = False,
        quiet: bool = False,
    ) -> np.ndarray | Tensor | list:
        """[N, h], a vector a protein; with pooling=None a list of [L, h], a row a residue.

        pooling: "mean" over the residues, "cls" the first token's state, "avg" the mean over all tokens, as TAPE's.
        layer: 0 the embedding, n the state after layer n, -1 (the same as the last) with the final LayerNorm.
        """
        depth = layer_number(layer, self.config.num_layers)
        if pooling is None:
            return self._rows(functools.partial(self._state_after, depth), sequences, batch_tokens, tensors, quiet)
        if not isinstance(pooling, str) or pooling not in POOLINGS:
            raise InputError(f"pooling {pooling!r}: should be one of {', '.join(POOLINGS)}, or None")
        proteins = self.check(sequences)
        vectors = torch.empty(len(proteins), self.config.hidden_size)
        for indices, stream in self._batches(proteins, batch_tokens, quiet):
            (states,) = self.states(stream, [depth])
            vectors[torch.from_numpy(indices)] = POOLINGS[pooling](states, stream).to("cpu", vectors.dtype)
        return vectors if tensors else vectors.numpy()

    def logits(self, sequences: Proteins, *, batch_tokens: int | None = None, tensors=False, quiet=False) -> list:
        """A list of [L, V]: the masked-LM head's score of every token of the vocabulary at each residue."""
        self.need_lm_head()
        return self._rows(self._token_logits, sequences, batch_tokens, tensors, quiet)

    def need_lm_head(self) -> None:
        """InputError for an encoder without one."""
        if self.model.lm_head is None:
            raise InputError(f"{self.source}: no usable masked-LM head, so no logits; embed does without")

    def logits_at(self, stream: Stream, places: np.ndarray) -> Tensor:
        """[M, V] on the CPU: the masked-LM head's scores at `places`, int64 [M], of a batch, which may hold masks."""
        self.need_lm_head()
        where = to_device(places, self.device)
        return at_least_fp32(self.run(lambda *inputs: self._token_logits(*inputs, where=where), stream)).cpu()

    def _token_logits(self, *inputs: Tensor, where: Tensor | None = None) -> Tensor:
        """[T, V] of a batch, or [M, V] of the tokens at `where` [M]; without the padding rows of the vocabulary."""
        states = self._state_after(self.config.num_layers, *inputs)
        states = states if where is None else states.index_select(0, where)
        return self.model.lm_logits(states)[:, : self.config.vocab_size]

    def hidden_states(
        self, sequences: Proteins, *, batch_tokens: int | None = None, tensors=False, quiet=False
    ) -> list:
        """A list of [layers + 1, L, h]: the embedding, then the state after each layer, the last one normalised."""

        def compute(*inputs: Tensor) -> Tensor:
            return torch.stack(self.model.states_after(range(self.config.num_layers + 1), *inputs))

        return self._rows(compute, sequences, batch_tokens, tensors, quiet)

    @property
    def num_maps(self) -> int:
        """layers * heads, the attention maps of a protein; InputError for an encoder whose attention has no heads."""
        maps = self.config.num_layers * self.config.num_attention_heads
        if not maps:
            raise InputError(f"{self.source}: no attention heads, so no attention maps")
        return maps

    def need_contacts(self) -> None:
        """InputError for an encoder without a contact regression."""
        if self.contact_head is None:
            known = "ESM-1b, 1v and 2 come with one, proteinlm contacts MODEL --fit makes one"
            raise InputError(f"{self.source}: no contact regression, so no contacts; {known}")

    def set_contacts(self, regression: ContactRegression, source: str = "the regression") -> None:
        """What `contacts` uses from now on; InputError for one of another number of maps."""
        if regression.weight.shape != (1, self.num_maps):
            shape, layers = list(regression.weight.shape), self.config.num_layers
            heads = self.config.num_attention_heads
            own = f"{self.source} has {layers} layers x {heads} heads"
            raise InputError(f"{source}: weight of shape {shape}; {own}, so it should be [1, {self.num_maps}]")
        self.contact_head = regression

    def attention_sums(self, reduce: Reduce, stream: Stream) -> list[Tensor | None]:
        """What `reduce` makes of the attention maps, added up over all heads: one sum a protein of the batch."""
        return self.run(functools.partial(self.model.attention_sums, reduce), stream)

    def contacts(self, sequences: Proteins, *, batch_tokens: int | None = None, tensors=False, quiet=False) -> list:
        """A list of [L, L]: the probability that two residues touch, from all attention maps; what touching means is
        the regression's (ESM's: C-beta within 8 A)."""
        self.need_contacts()
        compute = functools.partial(contact_probabilities, self.model, self.contact_head)
        proteins = self.check(sequences)
        maps: list = [None] * len(proteins)
        for indices, stream in self._batches(proteins, batch_tokens, quiet):
            for i, own in zip(indices, self.run(compute, stream), strict=True):
                maps[i] = own.cpu() if tensors else own.cpu().numpy()
        return maps

    def states(self, stream: Stream, depths: Sequence[int]) -> list[Tensor]:
        """[T, h] on the device for each depth: the states of one batch after so many layers, in one pass."""
        return list(map(at_least_fp32, self.run(functools.partial(self.model.states_after, depths), stream)))

    def _state_after(self, depth: int, *inputs: Tensor) -> Tensor:
        return self.model.states_after([depth], *inputs)[0]

    def run(self, compute: Callable[..., Computed], stream: Stream) -> Computed:
        """compute(tokens, positions, bounds) of one batch."""
        inputs = (to_device(array, self.device) for array in (stream.tokens, stream.positions, stream.bounds))
        alone = len(stream.sizes) == 1
        batch = f"{'a protein' if alone else f'{len(stream.sizes)} proteins'}, {len(stream.tokens):,} tokens"
        with computing(self.device, self.autocast, batch, alone):
            return compute(*inputs)

    def _rows(
        self, compute: Callable[..., Tensor], sequences: Proteins, batch_tokens: int | None, tensors: bool, quiet: bool
    ) -> list:
        """Each protein's part [..., L, width] of what `compute` makes of a batch, [..., T, width]."""
        proteins = self.check(sequences)
        rows: list = [None] * len(proteins)
        for indices, stream in self._batches(proteins, batch_tokens, quiet):
            values = at_least_fp32(self.run(compute, stream)).cpu()
            for i, begin, end in zip(indices, stream.starts + 1, stream.ends - 1, strict=True):
                own = values[..., begin:end, :].clone()  # a view would keep the whole batch in memory
                rows[i] = own if tensors else own.numpy()
        return rows

    def check(self, sequences: Proteins) -> list[str]:
        """The proteins as a list; InputError for one that the model cannot take, and for what has no order."""
        if isinstance(sequences, Mapping | set | frozenset | bytes) or not np.iterable(sequences):
            raise InputError(f"sequences: a {type(sequences).__name__}; should be a string, or a list of strings")
        proteins = [sequences] if isinstance(sequences, str) else list(sequences)
        limit = self.residue_limit()
        for i, protein in enumerate(proteins):
            if not isinstance(protein, str) or not protein:
                value = "empty" if protein == "" else f"a {type(protein).__name__}"
                raise InputError(f"sequence {i}: {value}; should be a string of one residue or more")
            if limit is not None and len(protein) > limit:
                raise InputError(f"sequence {i}: {len(protein)} residues, the model takes {limit}; crop or omit it")
        return proteins

    def _batches(self, proteins: list[str], batch_tokens: int | None, quiet: bool) -> Iterator[tuple]:
        """(which proteins int64 [B], their Stream) of each batch."""
        if batch_tokens is not None and whole_number(batch_tokens, "batch_tokens") < 1:
            raise InputError(f"batch_tokens {batch_tokens}: should be 1 or more")
        lengths = np.fromiter(map(len, proteins), np.int64, len(proteins))
        with Progress("proteins", len(proteins), quiet=quiet) as progress:
            budget = batch_tokens or default_batch_tokens(self.device)
            for indices in token_batches(lengths, budget, padded=self.padded):
                yield indices, make_stream([proteins[i] for i in indices], self.tokenizer)
                progress.add(len(indices), int(lengths[indices].sum()))
