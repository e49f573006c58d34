"""tape-train on several devices of one machine, or of several: torchrun inside, TAPE's flags outside.

    tape-train-distributed transformer secondary_structure --from_pretrained MODEL_DIR --data_dir data \\
        --output_dir RUN_DIR --batch_size 64 --nproc_per_node 4
    tape-train-distributed ... --nnodes 2 --node_rank 0 --master_addr HOST --master_port 29500     on each machine

Every other flag is tape-train's. --batch_size is the whole batch, whatever the number of processes. Several machines
need one file system for --output_dir and --data_dir. What must hold: a wrong flag is reported once, before any process
starts; the exit status is that of the processes.
"""

import logging
import sys
from collections.abc import Sequence
from functools import partial

from proteinlm import errors
from proteinlm.errors import ArgumentParser, InputError
from tape.finetuning.options import parse_options
from tape.registry import resolve_task
from tape.runs.flags import count, positive
from tape.runs.plugins import load_plugins, model_types, task_names

PORT = 29500  # TAPE's and PyTorch's


def split_flags(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(torchrun's words, tape-train's words)."""
    parser = ArgumentParser("tape-train-distributed", add_help=False)
    parser.add_argument("--nproc_per_node", type=positive, default=1)
    parser.add_argument("--nnodes", type=positive, default=1)
    parser.add_argument("--node_rank", type=count, default=0)
    parser.add_argument("--master_addr", default="127.0.0.1")
    parser.add_argument("--master_port", type=positive)
    args, rest = parser.parse_known_args(argv)
    if args.node_rank >= args.nnodes:
        raise InputError(f"--node_rank {args.node_rank}: should be below --nnodes {args.nnodes}")
    words = [f"--nproc-per-node={args.nproc_per_node}", f"--nnodes={args.nnodes}", f"--node-rank={args.node_rank}"]
    if args.nnodes == 1 and args.master_port is None:
        return [*words, "--standalone"], rest  # a free port, so that two runs on one machine do not meet
    return [*words, f"--master-addr={args.master_addr}", f"--master-port={args.master_port or PORT}"], rest


def main(argv: Sequence[str] | None = None) -> int:
    """Check the flags, start the processes, wait for them; returns their status."""
    launch, rest = split_flags(sys.argv[1:] if argv is None else [str(word) for word in argv])
    if {"-h", "--help"} & set(rest):
        print("beside tape-train's: --nproc_per_node --nnodes --node_rank --master_addr --master_port\n")
    load_plugins(rest)
    options = parse_options(rest, task_names(), model_types())
    if options.csv is None:
        resolve_task(options.task, options.model_type)
    return start_processes([*launch, "--module", "tape.train", *rest])


def start_processes(words: list[str]) -> int:
    """torchrun with these words; the processes' own lines say what went wrong, so torchrun's report is left out."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    logging.getLogger("torch.distributed.run").setLevel(logging.ERROR)
    try:
        run.main(words)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return next((code for code in codes if code > 0), 1)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    return 0


cli = partial(errors.run, main)  # the console command


if __name__ == "__main__":
    sys.exit(cli())
