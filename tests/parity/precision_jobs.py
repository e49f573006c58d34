"""What the tests of memory and precision run on every process: what a step computes in, sums in, and takes to build."""

import gc
import weakref
from datetime import timedelta

import parity_jobs as jobs
import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pretrain.config.read import parse_config
from pretrain.parallel import apply, replicas
from pretrain.parallel.mesh import Layout, World
from pretrain.parallel.pipeline import Parts
from proteinlm.network.config import ModelConfig

WIDE = ["--hidden-size", "64", "--num-layers", "8", "--make-vocab-size-divisible-by", "8"]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of CPU storages that operators make, as long as they live."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if type(tensor) is torch.Tensor and tensor.device.type == "cpu":
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage) -> None:
        if storage in self.known:
            return
        self.known.add(storage)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self.live -= size


def bytes_to_build(flags: list[str], whole_first: bool = False) -> tuple[int, int, int]:
    """(bytes that building this process's part took at most, of the whole model, of its largest weight).

    whole_first: the model gets its memory before it is cut.
    """
    config = parse_config([*jobs.TINY, *WIDE, *flags], world_size=torch.distributed.get_world_size())
    world = World.join(config, torch.device("cpu"))
    model_config = ModelConfig(vocab_size=31, **vars(config.model))
    honest = apply.shard

    def later(model, *arguments):
        model.to_empty(device="cpu")
        honest(model, *arguments)

    apply.shard = later if whole_first else honest
    try:
        gc.collect()
        with LiveBytes() as counted:
            parts, _, _ = apply.build_model(config, model_config, world)
    finally:
        apply.shard = honest
    sizes = [parameter.numel() * parameter.itemsize for parameter in parts.parameters()]
    return counted.peak, sum(sizes), max(sizes)


def dtypes_of_a_step(flags: list[str]) -> dict[str, str]:
    """In what the weights, the residual stream, the logits, the gradients and the rotation of a step are."""
    trainer = jobs.make_trainer(flags, torch.float32)
    seen: dict[str, object] = {}
    layer = trainer.model[0].layers["0"]

    def look(module, inputs, output):
        x, plan = inputs
        seen.update(stream=x.dtype, out=output.dtype, autocast=torch.is_autocast_enabled("cpu"))
        seen.update(angles=plan.rotary[0].dtype if plan.rotary else None)

    layer.register_forward_hook(look)
    last = layer.mlp.dense_4h_to_h  # the layer itself has let its gathered weights go when its hooks are called
    last.register_forward_hook(lambda module, *call: seen.update(weight=module.weight.dtype))
    honest = trainer.step.loss

    def loss(logits, labels):
        value = honest(logits, labels)
        seen.update(logits=logits.dtype, loss=value.dtype)
        return value

    trainer.step.loss = loss
    finish = trainer.step.gradients.finish

    def finished():
        finish()
        seen.update(gradient=next(iter(trainer.step.gradients.named.values())).grad.dtype)

    trainer.step.gradients.finish = finished
    list(jobs.steps(trainer, 1))
    return {name: str(value).removeprefix("torch.") for name, value in seen.items()}


class Ones(nn.Module):
    """Its gradient is 1 for every micro-batch."""

    def __init__(self):
        super().__init__()
        self.weight, self.layers = nn.Parameter(torch.zeros(2, 2)), nn.ModuleDict()

    def forward(self):
        return self.weight.sum()


def sum_of_ones(count: int, naive: bool, param_dtype: torch.dtype | None) -> float:
    """The gradient after `count` micro-batches, sent in bf16. naive: FSDP2's own reduce_dtype."""
    world = World.over_all(Layout(dp_shard=2), torch.device("cpu"), timedelta(minutes=1))
    model = Parts([Ones()])
    if naive:
        policy = MixedPrecisionPolicy(param_dtype, torch.bfloat16)
        fully_shard(model[0], mesh=world.mesh["dp_shard"], mp_policy=policy)
        model[0].set_gradient_divide_factor(1.0)
        model[0].set_force_sum_reduction_for_comms(True)
    else:
        replicas.shard(model[0], world, False, False, param_dtype, torch.bfloat16)
    for number in range(1, count + 1):
        replicas.communicate(model, number == count, False)
        model[0]().backward()
    return float(model[0].weight.grad.to_local()[0, 0])
