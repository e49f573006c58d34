"""torchrun inside a command: its flags taken out of the command line, its processes started and waited for.

    launch, rest, processes = split_flags("tape-train-distributed", argv)
    status = start_processes(launch, "tape.train", rest)

What must hold: the processes' own lines say what went wrong, so torchrun's report is left out; the exit status is
theirs.
"""

import logging
from collections.abc import Sequence

from proteinlm.errors import ArgumentParser, InputError

PORT = 29500  # TAPE's and PyTorch's


def split_flags(command: str, argv: Sequence[str]) -> tuple[list[str], list[str], int]:
    """(torchrun's words, the command's words, processes on all machines). A flag's name may have dashes too."""
    parser = ArgumentParser(command, add_help=False)
    for name, kind, default in (
        *(("nproc_per_node", int, 1), ("nnodes", int, 1), ("node_rank", int, 0)),
        *(("master_addr", str, "127.0.0.1"), ("master_port", int, None)),
    ):
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", type=kind, default=default)
    args, rest = parser.parse_known_args(argv)
    for name, least in (("nproc_per_node", 1), ("nnodes", 1), ("node_rank", 0)):
        if getattr(args, name) < least:
            raise InputError(f"--{name} {getattr(args, name)}: should be {least} or more")
    if args.node_rank >= args.nnodes:
        raise InputError(f"--node_rank {args.node_rank}: should be below --nnodes {args.nnodes}")
    words = [f"--nproc-per-node={args.nproc_per_node}", f"--nnodes={args.nnodes}", f"--node-rank={args.node_rank}"]
    if args.nnodes == 1 and args.master_port is None:
        words.append("--standalone")  # a free port, so that two runs on one machine do not meet
    else:
        words += [f"--master-addr={args.master_addr}", f"--master-port={args.master_port or PORT}"]
    return words, rest, args.nproc_per_node * args.nnodes


def start_processes(launch: Sequence[str], module: str, rest: Sequence[str]) -> int:
    """`torchrun LAUNCH -m MODULE REST`; returns the processes' exit status."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.getLogger("torch.distributed.run").setLevel(logging.ERROR)
    for name in list(logging.root.manager.loggerDict):  # each has a level of its own
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        run.main([*launch, "--module", module, *rest])
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return next((code for code in codes if code > 0), 1)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)
    return 0
