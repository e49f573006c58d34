"""`python -m pretrain --config FILE --data-path PREFIX --save DIR [flags]`; under torchrun the same line."""

import gc
import os
import sys
from collections.abc import Sequence

from pretrain.config.read import parse_config
from pretrain.data.sources import require_shards
from proteinlm.errors import run
from proteinlm.tokenizer import build_tokenizer


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, train, and say why the run ended."""
    first = os.environ.get("RANK", "0") == "0"
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    config = parse_config(argv, world_size=world_size, notify=None if first else lambda notice: None)
    require_shards(config.data.data_path, config.data.valid_data_path)
    build_tokenizer(config.data.tokenizer_type, config.data.vocab_file)
    from pretrain.trainer import Trainer
    from proteinlm.devices import denormals_as_zero

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
