"""What a step does, written down while it runs: bytes sent, memory in use, matrix products, bytes moved.

    with Ledger(world) as ledger:
        ...                       # a real step over gloo or NCCL, or one on fake tensors over a fake process group

A dispatch mode, so it sees the operators that PyTorch runs, whoever called them: FSDP2's hooks, DTensor, a pipeline's
schedule. Must hold: it changes nothing, and counts the same bytes on fake tensors as on real ones.
"""

import math
import weakref
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain.parallel.mesh import AXES, World
from pretrain.plan.fakes import FakeTensor, group_name, in_backward, whole_view
from pretrain.train_step import TrainStep
from proteinlm.muon import local_part

# c10d's and the functional collectives' names, without underscores -> one word; the first that is contained counts
COLLECTIVES = {
    "allreduce": "all_reduce",
    "allgather": "all_gather",
    "reducescatter": "reduce_scatter",
    "broadcast": "broadcast",
    "send": "send",
    "recv": "recv",
}
CATEGORIES = ("weights", "gradients", "optimizer", "activations", "communication")
PHASES = ("forward", "backward", "step")


class Ledger(TorchDispatchMode):
    """traffic: (axis, collective, dtype, phase) -> [calls, bytes]. A collective's bytes are those of its largest side:
    what is reduced, what a gather ends with, what a reduce-scatter begins with.

    work: (kind, phase, ...) -> number, with the kinds of `_work`.
    peaks: segment of the step -> bytes by category where their sum was largest. Before the optimizer's first step its
    state is not there.
    """

    def __init__(self, world: World, tokens: Iterable[int] = ()):
        super().__init__()
        self.axes = axes_of_groups(world)
        self.tokens = tuple(tokens)  # sizes that are numbers of tokens; the others of a product are the weight's
        self.traffic: dict[tuple[str, ...], list[int]] = defaultdict(lambda: [0, 0])
        self.work: Counter = Counter()
        self.live = dict.fromkeys(CATEGORIES, 0)
        self.peaks: dict[str, dict[str, int]] = {}
        self.stepping = False  # the micro-batches are done
        self.state: dict[str, int] = {}  # live when the optimizer has stepped
        self.saved: dict[str, int] | None = None  # live when the first stage's first forward pass is done
        self._segment = "forward"
        self._held: dict[int, tuple[weakref.ref, str, int]] = {}  # storage -> (itself, category, bytes)

    # ---- where in the step we are

    @property
    def phase(self) -> str:
        return "step" if self.stepping else "backward" if in_backward() else "forward"

    def enter(self, segment: str) -> None:
        """What comes now is counted as `segment`."""
        self._segment = segment
        self._look()

    def begin(self, step: TrainStep) -> None:
        """Count from here on what `step` does."""
        self.traffic.clear()
        self.work.clear()
        self.peaks.clear()
        self.hold(step.model.parameters(), "weights")
        self._hold_state(step.optimizer)
        for part in step.model:
            self._watch(part)
        finish = step.gradients.finish

        def reduce() -> None:
            self.stepping = True
            self.enter("reduction")
            finish()

        step.gradients.finish = reduce
        step.optimizer.register_step_pre_hook(lambda *call: self.enter("optimizer"))
        step.optimizer.register_step_post_hook(lambda optimizer, *call: self._end(optimizer, step.model))

    def _end(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        self._hold_state(optimizer)
        self.hold((p.grad for p in model.parameters() if p.grad is not None), "gradients")
        self._look()
        self.state = dict(self.live)

    def _hold_state(self, optimizer: torch.optim.Optimizer) -> None:
        values = (value for state in optimizer.state.values() for value in state.values())
        self.hold((value for value in values if isinstance(value, Tensor)), "optimizer")

    def _watch(self, part: nn.Module) -> None:
        """Segments by a stage's layers: forward, loss, backward of its last, its inner and its first layer."""
        layers = list(part.layers.values())
        for number, layer in enumerate(layers):
            place = "last" if number == len(layers) - 1 else "first" if number == 0 else "inner"
            layer.register_forward_hook(self._after(f"backward of the {place} layer", place == "last"))
        for module in (*layers, part):
            module.register_forward_pre_hook(self._expect_gradients)

    def _after(self, segment: str, is_last: bool):
        def hook(module: nn.Module, inputs: tuple, output: Tensor) -> None:
            if in_backward():  # recomputed
                return
            self.enter("loss" if is_last else "forward")
            if is_last and self.saved is None:
                self.saved = dict(self.live)
            if output.requires_grad:
                output.register_hook(lambda gradient: self.enter(segment))

        return hook

    def _expect_gradients(self, module: nn.Module, inputs: tuple) -> None:
        """While a module runs its parameters are whole: FSDP2 has put them in place."""
        for parameter in module.parameters():
            if not hasattr(parameter, "_in_ledger"):
                parameter._in_ledger = True
                parameter.register_post_accumulate_grad_hook(lambda p: self.hold([p.grad], "gradients"))

    # ---- memory

    def hold(self, tensors: Iterable[Tensor], category: str) -> None:
        """Count the memory of these tensors, allocated or not before now, as `category`."""
        for tensor in tensors:
            storage = local_part(tensor).untyped_storage()
            self._forget(storage._cdata)
            self._add(storage, category)

    def _add(self, storage: torch.UntypedStorage, category: str) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._held[key] = weakref.ref(storage, lambda _: self._forget(key)), category, size
        self.live[category] += size

    def _forget(self, key: int) -> None:
        if entry := self._held.pop(key, None):
            self.live[entry[1]] -= entry[2]

    def _resized(self, storage: torch.UntypedStorage) -> None:
        """FSDP2 lets gathered weights go, and gets room for them again, by the size of their storage."""
        if entry := self._held.get(storage._cdata):
            self._forget(storage._cdata)
            self._add(storage, entry[1])
            self._look()

    def _look(self) -> None:
        peak = self.peaks.get(self._segment)
        if peak is None or sum(self.live.values()) > sum(peak.values()):
            self.peaks[self._segment] = dict(self.live)

    def _track(self, tensors: list[Tensor], category: str) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            known = self._held.get(storage._cdata)
            if known is None:
                self._add(storage, category)
            elif known[1] == "activations" != category:
                self._forget(storage._cdata)
                self._add(storage, category)

    # ---- operators

    def __enter__(self):
        self._view = whole_view(self._resized)
        self._view.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._view.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not all(kind in (Tensor, nn.Parameter, FakeTensor) for kind in types):
            return NotImplemented  # a DTensor runs on its local tensors, and those come here
        result = func(*args, **(kwargs or {}))
        if func.namespace == "prim" or func._schema.name == "aten::detach":
            return result
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        collective = _collective(func)
        if func.namespace in ("c10d", "_c10d_functional", "fsdp"):
            name = func._schema.name
            if name.endswith("_wrap_tensor_autograd"):  # what the wrapper holds is counted
                return result
            sides = [_tensors(value) for value in (*args, *(kwargs or {}).values(), outputs)]
            self._track([tensor for side in sides for tensor in side], "communication")
            if collective and func.namespace != "fsdp":
                self._send(collective, args, sides)
            if name.endswith("wait_tensor"):  # a fake one is a copy, and the original goes now
                return result
        else:
            inputs = [tensor for value in (*args, *(kwargs or {}).values()) for tensor in _tensors(value)]
            # A view of a batch is no new memory; but what Python's numbers became is.
            old = [] if func._schema.name == "aten::lift_fresh" else inputs
            before = {tensor.untyped_storage()._cdata for tensor in old}
            new = [tensor for tensor in outputs if tensor.untyped_storage()._cdata not in before]
            self._track(new, "optimizer" if self._segment == "optimizer" else "activations")
            self._count(func, args, inputs, outputs)
        self._look()
        return result

    def _send(self, collective: str, args: tuple, sides: list[list[Tensor]]) -> None:
        axis = next(filter(None, (self.axes.get(group_name(value) or "") for value in args)), "other")
        size, largest = max(((sum(map(_nbytes, side)), side) for side in sides if side), key=lambda pair: pair[0])
        dtype = str(largest[0].dtype).removeprefix("torch.")
        phase = self.phase
        if phase == "forward" and axis.startswith("dp") and collective in ("reduce_scatter", "all_reduce"):
            phase = "backward"  # a pipeline's schedule sums FSDP2's gradients when the backward passes are done
        entry = self.traffic[axis, collective, dtype, phase]
        entry[0] += 1
        entry[1] += size

    def _count(self, func, args: tuple, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        kind, written = _kind(func)
        if kind == "none":
            return
        phase, work = self.phase, self.work
        moved = sum(map(_nbytes, inputs))
        moved += sum(_nbytes(t) for place in written if place < len(args) for t in _tensors(args[place]))
        moved += 0 if written else sum(map(_nbytes, outputs))
        work["kernels", phase] += 1
        if kind == "attention":
            work["attention", phase] += 1
        elif kind == "product":
            first, second = inputs[-2:]
            batch = first.shape[0] if first.dim() == 3 else 1
            m, k, n = first.shape[-2], first.shape[-1], second.shape[-1]
            sizes = sorted((m, k, n), key=lambda size: (size not in self.tokens, size))
            weight = tuple(sorted(sizes[1:]))
            work["product", phase, *weight, "calls"] += batch
            work["product", phase, *weight, "flops"] += 2 * batch * m * k * n
            work["product", phase, *weight, "bytes"] += moved
        else:
            work["bytes", phase] += moved


def axes_of_groups(world: World) -> dict[str, str]:
    """The names of a World's process groups -> axis of the mesh; the two ends of a pipeline count as pp."""
    if world.alone:
        return {}
    groups = {"dp": world.dp_group, "pp": world.ends_group, "world": torch.distributed.group.WORLD}
    groups = {axis: group for axis, group in groups.items() if group is not None}
    pairs = [*groups.items(), *((axis, world.mesh.get_group(axis)) for axis in AXES)]
    return {group.group_name: axis for axis, group in pairs}


@cache
def _collective(func) -> str | None:
    name = func._schema.name.split("::")[1].replace("_", "")
    return next((word for key, word in COLLECTIVES.items() if name.startswith(key) or name == key), None)


@cache
def _kind(func) -> tuple[str, tuple[int, ...]]:
    """(none, product, attention or other; the arguments that it writes)."""
    schema, name = func._schema, func._schema.name.split("::")[1]
    written = tuple(i for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write)
    aliases = [value.alias_info is not None for value in schema.returns]
    if (all(aliases) and not written) or name.startswith(("empty", "new_empty", "_unsafe_view", "_local_scalar")):
        return "none", ()
    if name in ("mm", "addmm", "bmm", "baddbmm"):
        return "product", written
    if "attention" in name or "varlen_attn" in name:
        return "attention", written
    return "other", written


def _tensors(value: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


def _nbytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()
