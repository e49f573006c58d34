"""`python -m pretrain --config FILE --data-path PREFIX --save DIR [flags]`; under torchrun the same line."""

import gc
import os
import sys
from collections.abc import Sequence

from proteinlm.errors import run


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, train, and say why the run ended."""
    from pretrain.config.read import parse_config
    from pretrain.trainer import Trainer
    from proteinlm.devices import denormals_as_zero

    first = os.environ.get("RANK", "0") == "0"
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    config = parse_config(argv, world_size=world_size, notify=None if first else lambda notice: None)
    if config.training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    with denormals_as_zero():
        trainer = Trainer(config)
        # What start-up made stays. Python's collector takes a tenth of a second to look through it, in whichever
        # process and step it comes to that, and all the others wait.
        gc.collect()
        gc.freeze()
        reason = trainer.run()
    trainer.say(f"finished: {reason}")
    trainer.world.leave()


def cli() -> None:
    status = run(main)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # All is on disk. Taking the interpreter down can abort in a library's thread (seen with gloo: "terminate called
        # without an active exception"), and a launcher would take that for a failed run.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    cli()
