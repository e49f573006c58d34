"""`python -m pretrain --config FILE --data-path PREFIX --save DIR [flags]`; under torchrun the same line.

`--nproc-per-node 8` (and --nnodes, --node-rank, --master-addr, --master-port) has it start torchrun itself; then flags
are checked before any process starts, and a mistake is one line and exit status 2, without torchrun's report.
"""

import contextlib
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pretrain.config.options import Config
from pretrain.config.read import parse_config
from pretrain.data.sources import require_shards
from proteinlm.errors import process_count, process_number, run
from proteinlm.files import writing
from proteinlm.running import launch
from proteinlm.running.locks import locked
from proteinlm.tokenizer import build_tokenizer


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the flags, train (or have processes do it), and say why the run ended."""
    argv = sys.argv[1:] if argv is None else [str(word) for word in argv]
    words, rest, processes = launch.split_flags("python -m pretrain", argv)
    if rest != argv:
        require_files(parse_config(rest, world_size=processes, notify=lambda notice: None))
        return launch.start_processes(words, "pretrain", rest)
    first = process_number() == 0
    config = parse_config(argv, world_size=process_count(), notify=None if first else lambda notice: None)
    require_files(config)
    if config.training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    # One run, one directory: the first process writes the log and publishes the checkpoints, and has the lock.
    with locked(config.checkpoint.save, "--save") if first else contextlib.nullcontext():
        train(config)
    return 0


def require_files(config: Config) -> None:
    """InputError for a file that is not there, before torch is imported, which takes seconds."""
    require_shards(config.data.data_path, config.data.valid_data_path)
    build_tokenizer(config.data.tokenizer_type, config.data.vocab_file)


def train(config: Config) -> None:
    """The whole run, on every process. KeyboardInterrupt once it was interrupted and has saved."""
    from pretrain.checkpoint.files import clear_leftovers
    from pretrain.trainer import Trainer
    from proteinlm.devices import denormals_as_zero

    if process_number() == 0:  # the others wait for it before they read anything; a finished run makes no save
        with writing(config.checkpoint.save):
            clear_leftovers(Path(config.checkpoint.save))
    with denormals_as_zero():
        trainer = Trainer(config)
        # What start-up made stays. Python's collector takes a tenth of a second to look through it, in whichever
        # process and step it comes to that, and all the others wait.
        gc.collect()
        gc.freeze()
        reason = trainer.run()
    if reason != "interrupted":
        trainer.say(f"finished: {reason}")
    trainer.world.leave()
    if reason == "interrupted":
        raise KeyboardInterrupt(trainer.how_to_go_on())


def cli() -> None:
    status = run(main, resumes=True)
    if process_count() > 1:
        # All is on disk. Taking the interpreter down can abort in a library's thread (seen with gloo: "terminate called
        # without an active exception"), and a launcher would take that for a failed run.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    cli()
