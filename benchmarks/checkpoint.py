"""What a checkpoint of a run costs: saved at once, saved while training goes on, loaded, loaded into other processes.

    python benchmarks/checkpoint.py                                                  # proteinlm_8m on the CPU
    python benchmarks/checkpoint.py --config pretrain/configs/proteinlm_200m.yaml --device cuda --work DIR

The state is a run's: fp32 weights and Adam's two moments, 12 bytes a parameter, with random values. In one process: a
save until it is in place and synced to disk; with --async-save how long training stands still (the second save, whose
memory is there already) and until it is in place; a load. Then --processes CPU processes, each with its part of every
tensor (Shard(0), as full sharding has it), load what the one saved, save it again, and the one loads that. Files just
written are in the system's cache: loading is without the disk. Medians of --repeats, with the range.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.comparison import machine
from pretrain.checkpoint.files import load_checkpoint, save_checkpoint
from pretrain.checkpoint.saving import Saver
from pretrain.config.options import Checkpoint
from pretrain.config.read import parse_config
from proteinlm.devices import choose_device
from proteinlm.files import write_json
from proteinlm.network.config import ModelConfig
from proteinlm.network.model import ProteinBert
from proteinlm.tokenizer import build_tokenizer
from proteinlm.untrusted.json_files import read_json

CONFIG = Path(__file__).resolve().parent.parent / "pretrain/configs/proteinlm_8m.yaml"


def run_state(config: ModelConfig, device: torch.device, seed: int) -> dict:
    """Weights and moments by name, as a run has them."""
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in ProteinBert(config).named_parameters()}
    generator = torch.Generator(device).manual_seed(seed)

    def tensors() -> dict[str, Tensor]:
        return {name: torch.rand(shape, generator=generator, device=device) for name, shape in shapes.items()}

    return {"model": tensors(), "optimizer": {"exp_avg": tensors(), "exp_avg_sq": tensors()}}


def leaves(state: dict) -> Iterator[Tensor]:
    for value in state.values():
        yield from leaves(value) if isinstance(value, dict) else (value,)


def equal(state: dict, other: dict) -> bool:
    return all(torch.equal(a, b) for a, b in zip(leaves(state), leaves(other), strict=True))


def timed(function: Callable[[], object], device: torch.device) -> float:
    began = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def alone(config: ModelConfig, device: torch.device, folder: Path, repeats: int) -> dict[str, list[float]]:
    """Seconds of each repeat: save, async_stall, async_in_place, load."""
    state, other = run_state(config, device, 1), run_state(config, device, 2)
    seconds: dict[str, list[float]] = {name: [] for name in ("save", "async_stall", "async_in_place", "load")}
    saver = Saver(Checkpoint(save=str(folder / "asynchronous"), async_save=True), None)
    for repeat in range(repeats + 1):  # the first one warms up
        times = {"save": timed(lambda: save_checkpoint(folder / "one", 1, state, {}), device)}
        began = time.perf_counter()
        times["async_stall"] = timed(lambda: saver.save(1, state, {}, None), device)
        saver.wait()
        times["async_in_place"] = time.perf_counter() - began
        times["load"] = timed(lambda: load_checkpoint(folder / "one", 1, other), device)
        assert equal(state, other), "what was loaded is not what was saved"
        for name in seconds if repeat else ():
            seconds[name].append(times[name])
    return seconds


def sharded(rank: int, size: int, config: ModelConfig, folder: str, repeats: int) -> None:
    """One of `size` processes: its part of the state loaded from one/, and saved to many/ (times in many.json)."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
    mesh = init_device_mesh("cpu", (size,))

    def split(value: dict | Tensor) -> dict | Tensor:
        if isinstance(value, dict):
            return {name: split(inner) for name, inner in value.items()}
        return distribute_tensor(value, mesh, [Shard(0)], src_data_rank=None)

    state, cpu = split(run_state(config, torch.device("cpu"), 3)), torch.device("cpu")
    seconds: dict[str, list[float]] = {"load_sharded": [], "save_sharded": []}
    for repeat in range(repeats + 1):
        for name, work in (
            ("load_sharded", lambda: load_checkpoint(f"{folder}/one", 1, state)),
            ("save_sharded", lambda: save_checkpoint(f"{folder}/many", 1, state, {})),
        ):
            dist.barrier()
            passed = timed(lambda work=work: (work(), dist.barrier()), cpu)
            if repeat:
                seconds[name].append(passed)
    if rank == 0:
        write_json(f"{folder}/many.json", seconds)
    dist.destroy_process_group()


def resharded(config: ModelConfig, folder: Path, processes: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of each repeat: load_sharded, save_sharded, load_merged. one/ must be there."""
    arguments = (processes, config, str(folder), repeats)
    torch.multiprocessing.spawn(sharded, arguments, processes)
    seconds, cpu = read_json(folder / "many.json"), torch.device("cpu")
    state, merged = run_state(config, cpu, 4), run_state(config, cpu, 5)
    load_checkpoint(folder / "one", 1, state)
    seconds["load_merged"] = [
        timed(lambda: load_checkpoint(folder / "many", 1, merged), cpu) for _ in range(repeats + 1)
    ][1:]
    assert equal(state, merged), "resharding changed the state"
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default=str(CONFIG), help="the model's shape")
    parser.add_argument("--device", default="cpu", help="where the one process has its state")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--work", help="a directory on the disk to measure; the system's temporary one when absent")
    parser.add_argument("--output", help="also write the numbers here, as JSON")
    args = parser.parse_args()
    device = choose_device(args.device, 0)
    config = parse_config(["--config", args.config, "--data-path", "unused", "--save", "unused", "--device", "cpu"])
    model = config.model_config(build_tokenizer())
    folder = Path(tempfile.mkdtemp(prefix="checkpoint-", dir=args.work))
    try:
        seconds = alone(model, device, folder, args.repeats)
        size = sum(path.stat().st_size for path in (folder / "one").rglob("*.distcp"))
        seconds |= resharded(model, folder, args.processes, args.repeats)
    finally:
        shutil.rmtree(folder)
    rows = {
        name: {
            "seconds": round(statistics.median(values), 3),
            "range": [round(min(values), 3), round(max(values), 3)],
            "mb_per_second": round(size / 1e6 / statistics.median(values)),
        }
        for name, values in seconds.items()
    }
    print(f"{size / 1e6:,.0f} MB of {Path(args.config).stem} on {device}, resharded over {args.processes} processes")
    for name, row in rows.items():
        print(f"{name:15} {row['seconds']:8.3f} s  {row['mb_per_second']:8,} MB/s")
    if args.output:
        about = machine("benchmarks/checkpoint.py", device)
        shape = {"config": Path(args.config).stem, "bytes": size, "processes": args.processes}
        write_json(args.output, about | shape | {"rows": rows})


if __name__ == "__main__":
    main()
