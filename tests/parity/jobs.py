"""What the parity tests run on every process of a job: real training steps in float64, looked at from inside."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from pretrain.config import parse_config
from pretrain.data.loader import PackedLoader
from pretrain.progress import BatchCounts
from pretrain.trainer import Trainer

TINY = [
    *("--num-layers", "4", "--hidden-size", "16", "--num-attention-heads", "4", "--max-position-embeddings", "32"),
    *("--seq-length", "32", "--micro-batch-size", "2", "--global-batch-size", "8", "--train-iters", "8"),
    *("--make-vocab-size-divisible-by", "32", "--init-method-std", "0.2", "--lr", "1e-3", "--clip-grad", "0.5"),
    *("--hidden-dropout", "0", "--attention-dropout", "0", "--num-workers", "0", "--device", "cpu"),
    *("--split", "80,20,0", "--log-interval", "1", "--eval-interval", "1000", "--eval-iters", "0"),
]


def make_trainer(flags: list[str], dtype: torch.dtype = torch.float64) -> Trainer:
    """A Trainer of this job on the tiny model; the last of a repeated flag counts."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    torch.set_default_dtype(dtype)
    try:
        return Trainer(parse_config([*TINY, *flags], world_size=size, notify=lambda notice: None))
    finally:
        torch.set_default_dtype(torch.float32)


def steps(trainer: Trainer, count: int):
    """Yield the values of `count` optimizer steps."""
    training = trainer.config.training
    loader = PackedLoader(
        trainer.train_data, training.micro_batch_size, trainer.schedule.batch_size,
        trainer.counters.consumed_train_samples, dp_rank=trainer.world.dp_rank, dp_size=trainer.world.dp_size,
    )  # fmt: skip
    for _, micro_batches in zip(range(count), loader, strict=False):
        counts = BatchCounts.of(micro_batches, trainer.world.sum_over_replicas)
        values = trainer.train_step(micro_batches, counts)
        trainer._count(counts, values)
        yield values


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(trainer: Trainer, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors by name, of every stage. Copies that must be equal (tied embedding, replicas) are checked to be."""
    mine = {name: whole(tensor.detach()).clone() for name, tensor in tensors.items()}
    if trainer.world.alone:
        return mine
    everyone: list = [None] * trainer.world.size
    dist.all_gather_object(everyone, mine)
    merged: dict[str, Tensor] = {}
    for theirs in everyone:
        for name, tensor in theirs.items():
            first = merged.setdefault(name, tensor)
            assert torch.allclose(first, tensor, rtol=0, atol=1e-14), f"copies of {name} differ"
    return merged


def train(flags: list[str], count: int = 3, sabotage=None) -> dict:
    """`count` steps: per step loss, norm and every gradient (of the first), and the weights and validation loss after.

    sabotage(trainer) breaks something on purpose before the first step.
    """
    trainer = make_trainer(flags)
    if sabotage:
        sabotage(trainer)
    gradients, honest = [], trainer._unscale_and_clip

    def looked_at(*arguments):
        if not gradients:
            gradients.append(gathered(trainer, {n: p.grad for n, p in trainer.gradients.named.items()}))
        return honest(*arguments)

    trainer._unscale_and_clip = looked_at
    values = list(steps(trainer, count))
    validation = trainer.evaluate(trainer.valid_sets["valid"])
    return {
        "loss": [v["lm_loss"] for v in values],
        "norm": [v["grad_norm"] for v in values],
        "gradients": gradients[0],
        "weights": gathered(trainer, dict(trainer.model.named_parameters())),
        "validation": validation,
    }
