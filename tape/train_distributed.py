"""tape-train on several devices of one machine, or of several: torchrun inside, TAPE's flags outside.

    tape-train-distributed transformer secondary_structure --from_pretrained MODEL_DIR --data_dir data \\
        --output_dir RUN_DIR --batch_size 64 --nproc_per_node 4
    tape-train-distributed ... --nnodes 2 --node_rank 0 --master_addr HOST --master_port 29500     on each machine

Every other flag is tape-train's. --batch_size is the whole batch, whatever the number of processes. Several machines
need one file system for --output_dir and --data_dir. What must hold: a wrong flag is reported once, before any process
starts; the exit status is that of the processes.
"""

import sys
from collections.abc import Sequence
from functools import partial

from proteinlm import errors
from proteinlm.running import launch
from tape.finetuning.options import parse_options, require_files
from tape.runs.plugins import load_plugins, model_types, task_names


def main(argv: Sequence[str] | None = None) -> int:
    """Check the flags, start the processes, wait for them; returns their status."""
    argv = sys.argv[1:] if argv is None else [str(word) for word in argv]
    words, rest, _ = launch.split_flags("tape-train-distributed", argv)
    if {"-h", "--help"} & set(rest):
        print("beside tape-train's: --nproc_per_node --nnodes --node_rank --master_addr --master_port\n")
    load_plugins(rest)
    options = parse_options(rest, task_names(), model_types())
    require_files(options)
    if options.csv is None:
        from tape.registry import resolve_task

        resolve_task(options.task, options.model_type)
    return launch.start_processes(words, "tape.train", rest)


cli = partial(errors.run, main, resumes=True)  # the console command


if __name__ == "__main__":
    sys.exit(cli())
