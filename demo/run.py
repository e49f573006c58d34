"""`python -m demo.run`: every stage on a synthetic world, from a FASTA file to five numbers and a report.

    python -m demo.run [--output demo_output] [--budget full|small] [--seed 0]

generates the world, preprocesses and pretrains on its unlabelled proteins, converts and verifies, finetunes and
evaluates five tasks from the pretrained and from random weights with the same budget, prints the table and writes
OUTPUT/report.html. Every command is the one a user would type, and is printed. What must hold: the output directory
is new or empty; nothing needs a network; the last lines say which tasks' intervals exclude 0, whatever they are.
"""

import contextlib
import multiprocessing
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from demo.budget import BUDGETS, TASKS, TEST_SPLIT, Budget, Flags
from demo.datasets import CORPUS, write_world
from demo.paths import STARTS, Paths
from demo.synthetic import build_world
from proteinlm.errors import ArgumentParser, InputError, run
from proteinlm.files import write_json
from tape.runs.flags import flag_words

HEAD = "tape"
MAX_THREADS = 8  # a model this small gains nothing from more


class Phases:
    """Prints each phase as it begins and its seconds when it ends; `seconds` keeps them for the report."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        print(f"\n=== {name}", flush=True)
        begin = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - begin
        print(f"=== {name}: {self.seconds[name]:.1f} s", flush=True)


def command(module: str, words: Sequence[object], log: Path, threads: int) -> None:
    """Run `python -m module words`, echoing its output and storing it in `log`; InputError if it fails."""
    line = [sys.executable, "-m", module, *map(str, words)]
    print("$ python " + shlex.join(line[1:]), flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with (
        log.open("w") as file,
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as process,
    ):
        for text in process.stdout:
            file.write(text)
            print("  " + text, end="", flush=True)
    if process.returncode:
        raise InputError(f"python -m {module} ended with status {process.returncode}; its output is in {log}")


def bf16_is_faster(seconds: float = 0.3) -> bool:
    """Time one layer's product in both precisions: bf16 is 5 times faster with AVX512-BF16 or AMX, slower without."""
    import torch

    def rate(dtype: torch.dtype) -> float:
        a, b = torch.ones(2048, 128, dtype=dtype), torch.ones(128, 512, dtype=dtype)
        (a @ b).sum()
        count, begin = 0, time.perf_counter()
        while time.perf_counter() - begin < seconds / 10:
            a @ b
            count += 1
        return count

    # in turns, and the best of each: other work on the machine may fall on one of them alone
    turns = [(rate(torch.bfloat16), rate(torch.float32)) for _ in range(5)]
    return max(bf16 for bf16, _ in turns) > 1.5 * max(fp32 for _, fp32 in turns)


def finetune(task: str, start: str, words: tuple[list[str], list[str]], log: str) -> tuple[str, str, float]:
    """One tape-train and one tape-eval in this worker process, output to `log`; returns (task, start, seconds)."""
    import torch

    torch.set_num_threads(1)
    from tape import evaluate, train

    begin = time.perf_counter()
    with open(log, "w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        for main, line in zip((train.main, evaluate.main), words, strict=True):
            if main(line):
                raise InputError(f"{task} from {start} weights failed; see {log}")
    return task, start, time.perf_counter() - begin


def finetune_words(paths: Paths, budget: Budget, task: str, start: str, seed: int, precision: Flags):
    """The words of tape-train and of tape-eval for one task and starting point."""
    common = ["transformer", task]
    source = {"from_pretrained": paths.model} if start == "pretrained" else {"model_config_file": paths.model}
    train = {
        **source,
        "head": HEAD,
        "data_dir": paths.data,
        "output_dir": paths.run(task, start),
        "time_or_name": start,
        "seed": seed,
        "device": "cpu",
        **budget.finetune[task],
        **precision,
    }
    evaluate = {
        "data_dir": paths.data,
        "split": TEST_SPLIT[task],
        "batch_size": 16,
        "device": "cpu",
        "save_predictions": True,
    }
    return [*common, *flag_words(train)], [*common, str(paths.run(task, start)), *flag_words(evaluate)]


def finetune_all(paths: Paths, budget: Budget, seed: int, precision: Flags, cores: int) -> None:
    """All tasks from both starting points, one process a core, each on one thread."""
    jobs = [(task, start) for task in TASKS for start in STARTS]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=min(cores, len(jobs)), mp_context=context) as pool:
        futures = []
        for task, start in jobs:
            words = finetune_words(paths, budget, task, start, seed, precision)
            for name, line in zip(("tape-train", "tape-eval"), words, strict=True):
                print("$ " + shlex.join([name, *line]), flush=True)
            futures.append(pool.submit(finetune, task, start, words, str(paths.logs / f"{task}-{start}.log")))
        for future in futures:
            task, start, seconds = future.result()
            last = (paths.logs / f"{task}-{start}.log").read_text().strip().splitlines()[-1]
            print(f"  {task} from {start} weights, {seconds:.1f} s: {last}", flush=True)


def prepare(output: Path) -> Paths:
    """The output directory, new or empty."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"{output}: already exists and is not an empty directory; give --output another name")
    paths = Paths(output)
    paths.logs.mkdir(parents=True)
    return paths


def parse(argv: Sequence[str] | None):
    parser = ArgumentParser("python -m demo.run", description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="directory to write; new or empty")
    parser.add_argument("--budget", choices=tuple(BUDGETS), default="full", help="small: a quick pass over every part")
    parser.add_argument("--seed", type=int, default=0, help="of the world, the models and the batches")
    args = parser.parse_args(argv)
    if args.seed < 0:
        raise InputError(f"--seed {args.seed}: should be at least 0")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """The job from end to end. Returns 0 when every part ran; what the numbers are decides nothing here."""
    args = parse(argv)
    budget, paths, phases = BUDGETS[args.budget], prepare(args.output), Phases()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = min(cores, MAX_THREADS)
    begin = time.perf_counter()
    with phases("generate the world"):
        counts = write_world(paths.data, build_world(budget.world, args.seed), budget.tasks, args.seed)
        for name, count in counts.items():
            print(f"  {name}: {count:,}")
    with phases("preprocess"):
        words = {"input": paths.data / CORPUS, "output-prefix": paths.shard}
        command("pretrain.preprocess", flag_words(words), paths.logs / "preprocess.log", threads)
    with phases("pretrain"):
        bf16 = bf16_is_faster()
        print(f"  on this machine {'bf16 is faster than fp32' if bf16 else 'fp32 is faster than bf16'}, so it is used")
        flags = {**budget.pretrain, "seed": args.seed + 1, "data-path": f"{paths.shard}_text_document"}
        flags |= {"save": paths.checkpoint, "bf16": bf16}
        command("pretrain", flag_words(flags), paths.logs / "pretrain.log", threads)
    with phases("convert and verify"):
        words = {"load": paths.checkpoint, "save": paths.model, "target": "tape", "verify": True}
        command("converter", flag_words(words), paths.logs / "convert.log", threads)
    with phases("finetune and evaluate"):
        finetune_all(paths, budget, args.seed + 1, {"bf16": bf16}, cores)
    with phases("table and report"):
        facts = {"budget": args.budget, "seed": args.seed, "cores": cores, "counts": counts, "seconds": phases.seconds}
        write_json(paths.root / "facts.json", facts)
        from demo.report import write_report

        verdicts = write_report(paths, facts)
    print(f"\ntotal {time.perf_counter() - begin:.0f} s; report: {paths.root / 'report.html'}")
    print("\n".join(verdicts), flush=True)
    return 0


def cli() -> int:
    return run(main)


if __name__ == "__main__":
    sys.exit(cli())
