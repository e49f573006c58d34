"""What the tests of whole pretraining runs share: a model of seconds, its Trainer, and reading what it logged."""

import json
from pathlib import Path

import torch

from pretrain.config.read import parse_config
from pretrain.trainer import Trainer

MODEL = [
    *("--num-layers", "2", "--hidden-size", "32", "--num-attention-heads", "4", "--max-position-embeddings", "64"),
    *("--seq-length", "64", "--micro-batch-size", "4", "--global-batch-size", "8", "--lr", "2e-3"),
    *("--log-interval", "1", "--num-workers", "0", "--device", "cpu", "--split", "90,10,0"),
]


def trainer(prefix, save, *flags: str) -> Trainer:
    return Trainer(parse_config([*MODEL, "--data-path", prefix, "--save", str(save), *flags]))


def lines(save: Path) -> list[dict]:
    return [json.loads(line) for line in (save / "metrics.jsonl").read_text().splitlines()]


def steps(save: Path) -> list[dict]:
    return [line for line in lines(save) if "lm_loss" in line]


def losses(save: Path) -> list[float]:
    return [line["lm_loss"] for line in steps(save)]


def weights(run: Trainer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])
