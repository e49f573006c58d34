"""`python -m pretrain --config FILE --data-path PREFIX --save DIR [flags]`; under torchrun the same line."""

import os
import sys
from collections.abc import Sequence

from pretrain.errors import InputError, run


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, train, and say why the run ended."""
    from pretrain.config import parse_config
    from pretrain.trainer import Trainer

    config = parse_config(argv)
    _refuse_what_needs_more_processes(config, int(os.environ.get("WORLD_SIZE", "1")))
    reason = Trainer(config).run()
    print(f"finished: {reason}", flush=True)


def _refuse_what_needs_more_processes(config, world_size: int) -> None:
    """This version trains in one process: a second rank would silently train the same model again."""
    parallel = config.parallel
    for what, size in (
        ("WORLD_SIZE", world_size),
        ("tensor-model-parallel-size", parallel.tensor_model_parallel_size),
        ("pipeline-model-parallel-size", parallel.pipeline_model_parallel_size),
    ):
        if size > 1:
            raise InputError(f"{what} {size}: this version trains in 1 process")
    if config.checkpoint.async_save:
        raise InputError("--async-save: this version saves synchronously; leave the flag out")


def cli() -> None:
    sys.exit(run(main))


if __name__ == "__main__":
    cli()
