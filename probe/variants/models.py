"""The scores of an assay by each of several models, one in memory at a time, and by random weights."""

import argparse
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from probe.arms import open_encoder
from probe.names import ENSEMBLE, RANDOM
from probe.variants.mutations import WildType
from probe.variants.scoring import score
from proteinlm.encoder import Encoder
from tape.runs.flags import precision_name


def open_model(model: str, args: argparse.Namespace, random_seed: int | None) -> Encoder:
    dtype = precision_name(args.fp16, args.bf16)
    encoder = open_encoder(model, random_seed=random_seed, device=args.device, dtype=dtype)
    encoder.need_lm_head()
    return encoder


def score_all(
    models: Mapping[str, str], wild: WildType, mutants: list, args: argparse.Namespace, partial: Path
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """(scores by column, seconds by column). One model is in memory at a time. partial: holds work that was cut off."""
    scores, seconds = {}, {}
    arms = [(name, model, None) for name, model in models.items()]
    if args.random_seed is not None:
        arms.append((RANDOM, arms[0][1], args.random_seed))
    for number, (name, model, random_seed) in enumerate(arms):
        started, saved = time.monotonic(), partial / f"{number}.npz"
        print(f"{name}: {args.score} of {len(mutants):,} mutants of {wild.name}", file=sys.stderr, flush=True)
        encoder = open_model(model, args, random_seed)
        scores[name] = score(
            encoder, wild.sequence, mutants, args.score, offset=wild.offset, window=args.window,
            batch_tokens=args.tokens_per_batch, saved=saved,
        )  # fmt: skip
        del encoder
        seconds[name] = time.monotonic() - started
    if len(models) > 1:
        scores[ENSEMBLE] = np.mean([scores[name] for name in models], axis=0)
    return scores, seconds
