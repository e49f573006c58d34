"""Tensor parallelism: how each weight is cut over the tp axis, and the loss over a cut vocabulary.

Megatron's cut (Shoeybi et al. 2019): query_key_value, dense_h_to_4h and its gate by output columns (whole heads: rows
are [H, 3, D]), attention.dense and dense_4h_to_h by input rows, the word embedding, the LM head's bias and a decoder of
its own by rows of the vocabulary; all else is whole on every rank. A layer sends two all-reduces forward and two
backward. With --sequence-parallel (Korthikanti et al. 2022) norms, dropout and the residual stream hold T / tp tokens a
rank, and each all-reduce becomes a reduce-scatter and an all-gather: the same bytes, activations tp times smaller.
--qk-layernorm is over all heads, so it gathers the queries and the keys, and keeps this rank's part of the result.

Must hold: the plan names every parameter, so that all of them are DTensors on one mesh; and every rank ends with the
same loss. Activations between modules are plain tensors, so the model's code knows nothing of this.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from proteinlm.loss import IGNORE
from proteinlm.network.model import ProteinBert

WHOLE, TOKENS, COLUMNS = Replicate(), Shard(0), Shard(-1)


class Placed(ParallelStyle):
    """A module whose own parameters lie as `weights` says; what enters lies as `input`, is computed on as `compute`,
    and leaves as `output` (None: as it comes, still a DTensor)."""

    def __init__(self, input=WHOLE, compute=WHOLE, output: Placement | None = WHOLE, weights: Placement = WHOLE):
        super().__init__()
        self.input, self.compute, self.output, self.weights = input, compute, output, weights

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        return distribute_module(module, device_mesh, self._partition, self._enter, self._leave)

    def _partition(self, name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        for key, parameter in list(module.named_parameters(recurse=False)):
            if not isinstance(parameter, DTensor):
                module.register_parameter(key, nn.Parameter(distribute_tensor(parameter, mesh, [self.weights])))

    def _enter(self, module: nn.Module, inputs: tuple, mesh: DeviceMesh) -> tuple:
        first, *others = inputs
        if not isinstance(first, DTensor):
            first = DTensor.from_local(first, mesh, [self.input], run_check=False)
        return (first.redistribute(placements=[self.compute]), *others)

    def _leave(self, module: nn.Module, output: DTensor, mesh: DeviceMesh) -> Tensor:
        return output if self.output is None else output.redistribute(placements=[self.output]).to_local()


def plan(sequence_parallel: bool) -> dict[str, ParallelStyle]:
    """Module name (of `ProteinBert`, * for a layer's number) -> how it is cut. Covers every parameter."""
    stream = TOKENS if sequence_parallel else WHOLE  # how the residual stream lies between modules
    norm, norm_of_heads = Placed(stream, stream, stream), Placed(COLUMNS, WHOLE, COLUMNS)
    return {
        "word_embeddings": RowwiseParallel(input_layouts=WHOLE, output_layouts=stream),
        "position_embeddings": Placed(WHOLE, stream, stream),
        "embedding_layernorm": norm,
        "layers.*.input_layernorm": norm,
        "layers.*.attention.query_key_value": ColwiseParallel(input_layouts=stream),
        "layers.*.attention.q_layernorm": norm_of_heads,
        "layers.*.attention.k_layernorm": norm_of_heads,
        "layers.*.attention.dense": RowwiseParallel(output_layouts=stream),
        "layers.*.post_attention_layernorm": norm,
        "layers.*.mlp.dense_h_to_4h_gate": ColwiseParallel(input_layouts=stream),
        "layers.*.mlp.dense_h_to_4h": ColwiseParallel(input_layouts=stream),
        "layers.*.mlp.dense_4h_to_h": RowwiseParallel(output_layouts=stream),
        "final_layernorm": Placed(stream, stream, WHOLE),  # masked positions index the whole stream
        "lm_head.dense": Placed(output=None),
        "lm_head.layernorm": Placed(output=None),
        "lm_head": Placed(output=COLUMNS, weights=Shard(0)),  # bias, decoder; logits are [M, V / tp] a rank
    }


def parallelize(model: ProteinBert, mesh: DeviceMesh, sequence_parallel: bool) -> None:
    """Cut `model` (or the stage it is) over the one-dimensional `mesh` in place."""
    present = {name: style for name, style in plan(sequence_parallel).items() if _has(model, name)}
    parallelize_module(model, mesh, present)
    rank = mesh.get_local_rank()
    model.vocab_start = rank * (model.config.padded_vocab_size // mesh.size())
    if sequence_parallel:
        model.own_tokens = lambda values: values.chunk(mesh.size())[rank]
    else:  # with sequence parallelism every rank's default generator differs as it is
        for layer in model.layers.values():
            layer.attention.dropout_rng = lambda: sharded_rng(rank)
    plain = [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]
    assert not plain, f"the tensor-parallel plan forgets {plain}"


def _has(model: ProteinBert, name: str) -> bool:
    module: nn.Module | None = model
    for part in name.split("."):
        module = next(module.children()) if part == "*" else getattr(module, part, None)
    return module is not None


def is_partial(tensor: Tensor) -> bool:
    """Whether a DTensor's ranks each hold a term of a sum that is not taken yet."""
    return isinstance(tensor, DTensor) and any(isinstance(placement, Partial) for placement in tensor.placements)


@contextlib.contextmanager
def sharded_rng(tp_rank: int) -> Iterator[None]:
    """Inside, every tp rank draws other numbers; outside, they go on drawing the same ones.

    The inner seed is drawn from the outer CPU generator, so whoever saves and restores that one (a checkpoint of the
    run, recomputation of a layer) repeats the inner numbers too.
    """
    seed = int(torch.randint(2**62, ())) ^ (tp_rank + 1) * 0x9E3779B97F4A7C  # an odd-looking stride: no two ranks meet
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield


class _SumOverShards(torch.autograd.Function):
    """All-reduce. Every rank computes the same loss from the sum, so each passes the sum's gradient to its own term."""

    @staticmethod
    def forward(ctx, term: Tensor, group: dist.ProcessGroup) -> Tensor:
        total = term.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return gradient, None


def vocabulary_parallel_loss(group: dist.ProcessGroup, vocab_start: int) -> Callable[[Tensor, Tensor], Tensor]:
    """`proteinlm.loss.masked_lm_loss` for logits [M, V / tp] whose columns begin at `vocab_start`."""

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        logits = logits if logits.dtype == torch.float64 else logits.float()
        largest = logits.detach().amax(-1)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group)
        logits = logits - largest[:, None]
        normaliser = _SumOverShards.apply(logits.exp().sum(-1), group).log()
        columns = labels - vocab_start
        here = (columns >= 0) & (columns < logits.shape[-1])
        picked = logits.gather(1, torch.where(here, columns, 0)[:, None])[:, 0]
        right = _SumOverShards.apply(torch.where(here, picked, 0.0), group)
        return torch.where(labels == IGNORE, 0.0, normaliser - right).sum()

    return loss


def vocabulary_parallel_num_correct(group: dist.ProcessGroup, vocab_start: int) -> Callable[[Tensor, Tensor], Tensor]:
    """`proteinlm.loss.num_correct` for logits [M, V / tp] whose columns begin at `vocab_start`."""

    def count(logits: Tensor, labels: Tensor) -> Tensor:
        value, column = logits.max(-1)
        largest = value.clone()
        dist.all_reduce(largest, dist.ReduceOp.MAX, group)
        # The lowest id that has the largest logit, as argmax takes it.
        token = torch.where(value == largest, column + vocab_start, torch.iinfo(torch.int64).max)
        dist.all_reduce(token, dist.ReduceOp.MIN, group)
        return ((token == labels) & (labels != IGNORE)).sum()

    return count
