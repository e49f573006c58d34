"""What the planner counts for the steps of the parity tests, in one process on fake tensors, and what real steps do."""

import contextlib
from datetime import timedelta
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.nn.functional as F
from parity_jobs import STEPS, TINY, train, with_default_dtype
from torch import Tensor

from pretrain.config.read import parse_config
from pretrain.parallel.mesh import Layout, World
from pretrain.plan.count import Counted, count, fake_batch, run_step, token_sizes
from pretrain.plan.ledger import Ledger
from pretrain.trainer import Trainer
from proteinlm.masking import num_to_mask
from proteinlm.network import attention
from proteinlm.network import model as network
from proteinlm.tokenizer import build_tokenizer


def counted(size: int, flags: list[str], rank: int, dtype: torch.dtype = torch.float64) -> Counted:
    """A step of one process of a parity job."""
    config = parse_config([*TINY, *flags], (), world_size=size, notify=lambda notice: None)
    layout = Layout.of(config, size)
    model_config = config.model_config(build_tokenizer(config.data.tokenizer_type))
    rows = config.training.micro_batch_size * layout.dp_replicate * layout.dp_shard
    with with_default_dtype(dtype), without_boundaries():
        return count(config, model_config, layout, rank, config.training.global_batch_size // rows)


def planned(size: int, flags: list[str]) -> list[dict]:
    """What every process sends in a step. Replicas send alike, and so do tp ranks: one of each is counted."""
    config = parse_config([*TINY, *flags], (), world_size=size, notify=lambda notice: None)
    of_a_stage = size // config.parallel.pipeline_model_parallel_size
    stages = [counted(size, flags, rank).traffic for rank in range(0, size, of_a_stage)]
    return [stages[rank // of_a_stage] for rank in range(size)]


# ---- jobs of real processes


def train_counted(flags: list[str]) -> tuple[dict, dict]:
    """As `train`; and what this process sent in the last step, (axis, collective, dtype, phase) -> calls and bytes."""
    ledgers: list[Ledger] = []

    def count_last_step(trainer: Trainer) -> None:
        honest, left = trainer.train_step, iter(range(STEPS, 0, -1))

        def train_step(micro_batches):
            if next(left) > 1:
                return honest(micro_batches)
            ledgers.append(Ledger(trainer.world))
            with ledgers[0]:
                ledgers[0].begin(trainer.step)
                return honest(micro_batches)

        trainer.train_step = train_step

    return train(flags, count_last_step), dict(ledgers[0].traffic)


def attend_to_all(qkv: Tensor, plan, dropout_p: float) -> Tensor:
    """Attention that needs no values and runs anywhere: the stream as one protein."""
    query, key, value = qkv.permute(2, 1, 0, 3)[:, None]
    return F.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1)


@contextlib.contextmanager
def without_boundaries():
    """Inside, a GPU's kernel's place is taken by `attend_to_all`, on a CPU too."""
    with (
        patch.dict(attention._ON_THE_STREAM, efficient=attend_to_all),
        patch.object(network, "choose_backend", lambda *values: "efficient"),
    ):
        yield


def memory_of_a_step(flags: list[str], micro_batches: int) -> Counted:
    """What the ledger of a real first step holds, on the planner's batches."""
    size = dist.get_world_size() if dist.is_initialized() else 1
    config = parse_config([*TINY, *flags], (), world_size=size, notify=lambda notice: None)
    layout, device = Layout.of(config, size), torch.device("cpu")
    world = World.over_all(layout, device, timedelta(seconds=60)) if size > 1 else World(layout, device)
    rows, length = config.training.micro_batch_size, config.data.seq_length
    masked = num_to_mask(config.data.mask_prob, length)
    batches = [fake_batch(rows, length, masked)] * micro_batches
    model_config = config.model_config(build_tokenizer(config.data.tokenizer_type))
    with without_boundaries(), Ledger(world, token_sizes(config, layout)) as ledger:
        return run_step(config, model_config, world, batches, ledger)
