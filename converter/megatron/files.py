"""Finds the shards of a Megatron checkpoint and opens them: which files there are, and what each contains.

    files = find_shards(path, iteration)       # every shard present, or an InputError that names the missing one
    shard = open_shard(files.paths[tp, pp])    # `model` as dotted names, `args` as a dict; tensors are mapped

Legend: tp and pp are tensor- and pipeline-parallel ranks. Shards are opened through `proteinlm.untrusted.safe_load`
only.
"""

import argparse
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pretrain.checkpoint.files import ITERATION_NAME, TRACKER, checkpoint_name, read_tracker
from proteinlm.errors import InputError
from proteinlm.model_dir.esm.fair_esm import is_fair_esm
from proteinlm.untrusted.safe_load import safe_torch_load

FILE_NAME = "model_optim_rng.pt"
RELEASE = "release"
RANK_NAME = re.compile(r"mp_rank_(\d{2,3})(?:_(\d{3}))?")
VERSIONS = (0, 1.0, 2.0, 3.0)
DEEPEST = 8  # levels of dicts below `model`


@dataclass(frozen=True)
class ShardFiles:
    """The files of one checkpoint: paths[tp, pp]; `iteration` is that of the directory's name, if any."""

    where: str
    paths: dict[tuple[int, int], Path]
    tensor_parallel: int
    pipeline_parallel: int
    iteration: int | None = None

    def path_of(self, tp: int, pp: int, pipeline_parallel: int) -> Path:
        """Where a shard would be in a checkpoint of so many stages."""
        return Path(self.where) / rank_name(tp, pp, pipeline_parallel) / FILE_NAME

    def check_complete(self, tensor_parallel: int, pipeline_parallel: int, authority: str) -> None:
        """Every rank of TP x PP has its file, and no more files are there."""
        sizes = f"TP {tensor_parallel} x PP {pipeline_parallel}"
        if len(self.paths) == 1 and Path(self.where).is_file():
            if (tensor_parallel, pipeline_parallel) != (1, 1):
                raise InputError(f"{self.where}: one shard of {sizes} ({authority}); give --load the directory of them")
            return
        for pp in range(pipeline_parallel):
            for tp in range(tensor_parallel):
                path = self.paths.get((tp, pp)) or self.path_of(tp, pp, pipeline_parallel)
                if not path.is_file():
                    raise InputError(f"{path}: this shard is missing; the checkpoint is {sizes} ({authority})")
        if (self.tensor_parallel, self.pipeline_parallel) != (tensor_parallel, pipeline_parallel):
            stored = f"files of TP {self.tensor_parallel} x PP {self.pipeline_parallel}"
            raise InputError(f"{self.where}: {stored}, but {authority} says {sizes}; two checkpoints are mixed")


@dataclass(frozen=True)
class Shard:
    """One file. chunks: one dict of tensors by dotted name a model chunk (several when pipelining is interleaved)."""

    path: Path
    chunks: list[dict[str, Tensor]]
    args: dict[str, object] | None
    version: float
    iteration: int | None
    others: tuple[str, ...]  # top-level keys that are not weights


def rank_name(tp: int, pp: int, pipeline_parallel: int) -> str:
    return f"mp_rank_{tp:02d}_{pp:03d}" if pipeline_parallel > 1 else f"mp_rank_{tp:02d}"


def iteration_name(iteration: int | None) -> str:
    """The directory of an iteration; None: weights that are no run's."""
    return RELEASE if iteration is None else checkpoint_name(iteration)


def recognises_megatron(path: Path) -> bool:
    """A file that is not fair-esm's is taken for a model_optim_rng.pt: reading it says what else it is."""
    if path.is_file():
        return path.name == FILE_NAME or not is_fair_esm(path)
    if (path / FILE_NAME).is_file() or _has_shards(path):
        return True
    return any(_has_shards(entry) for entry in [*path.glob("iter_*"), path / RELEASE] if entry.is_dir())


def _has_shards(directory: Path) -> bool:
    return any(RANK_NAME.fullmatch(path.name) for path in directory.iterdir())


def find_shards(path: Path, iteration: int | None) -> ShardFiles:
    """The checkpoint at `path`: a run's directory, one of its iterations, or a bare model_optim_rng.pt."""
    if path.is_file() or (path / FILE_NAME).is_file():
        if iteration is not None:
            raise InputError(f"--iteration {iteration}: {path} is one file, which holds one iteration")
        file = path if path.is_file() else path / FILE_NAME
        return ShardFiles(str(path), {(0, 0): file}, 1, 1)
    directory = path if _has_shards(path) else _directory_of(path, iteration)
    if not directory.is_dir() or not _has_shards(directory):
        raise InputError(f"{directory}: holds no mp_rank_* directory; not a Megatron checkpoint")
    return _shards_in(directory)


def _directory_of(path: Path, iteration: int | None) -> Path:
    """The directory of the iteration asked for, else the tracker's, else the only one."""
    tracker = path / TRACKER
    if iteration is None and not tracker.is_file():
        directories = list(_iterations(path))
        if len(directories) != 1:
            raise InputError(f"{path}: no {TRACKER}, and {_listed(path)}; name one with --iteration")
        return directories[0]
    if iteration is None:
        text = read_tracker(tracker)
        if text != RELEASE and not re.fullmatch(r"[0-9]{1,12}", text):
            raise InputError(f"{tracker}: holds {text[:40]!r}, neither an iteration number nor 'release'")
        directory = path / iteration_name(None if text == RELEASE else int(text))
        missing = f"{tracker}: names {directory.name}, which is missing"
    else:
        directory = path / iteration_name(iteration)
        missing = f"--iteration {iteration}: {directory} is missing"
    if not directory.is_dir():
        raise InputError(f"{missing}; there are {_listed(path)}")
    return directory


def _iterations(path: Path) -> Iterator[Path]:
    for entry in sorted(path.iterdir()):
        if entry.is_dir() and (entry.name == RELEASE or ITERATION_NAME.fullmatch(entry.name)):
            yield entry


def _listed(path: Path) -> str:
    names = [entry.name for entry in _iterations(path)]
    if not names:
        return "no iter_* directory"
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "")


def _shards_in(directory: Path) -> ShardFiles:
    paths: dict[tuple[int, int], Path] = {}
    names = sorted(entry.name for entry in directory.iterdir() if RANK_NAME.fullmatch(entry.name))
    for name in names:
        tp, pp = RANK_NAME.fullmatch(name).groups()
        rank = (int(tp), int(pp or 0))
        if rank in paths or (pp is None) != (RANK_NAME.fullmatch(names[0])[2] is None):
            raise InputError(f"{directory}: {names[0]} and {name} are of two layouts; the files of two runs are mixed")
        paths[rank] = directory / name / FILE_NAME
    tensor_parallel, pipeline_parallel = (1 + max(rank[i] for rank in paths) for i in (0, 1))
    name = ITERATION_NAME.fullmatch(directory.name)
    files = ShardFiles(str(directory), paths, tensor_parallel, pipeline_parallel, int(name[1]) if name else None)
    files.check_complete(tensor_parallel, pipeline_parallel, "the highest ranks there")
    return files


def open_shard(path: Path) -> Shard:
    """Read one file. Its tensors are mapped, not copied: they live as long as the file does."""
    content = safe_torch_load(path, mmap=True)
    if not isinstance(content, Mapping):
        raise InputError(f"{path}: holds a {type(content).__name__}; a Megatron checkpoint is a dict")
    count = sum(re.fullmatch(r"model\d{1,3}", str(key)) is not None for key in content)
    names = ["model"] if "model" in content else [f"model{i}" for i in range(count)]
    if not names or any(name not in content for name in names):
        keys = ", ".join(str(key)[:40] for key in list(content)[:8])
        raise InputError(f"{path}: no 'model' in it, only {keys or 'nothing'}; not a Megatron checkpoint")
    chunks = [dict(_flat(content[name], "", path, DEEPEST)) for name in names]
    others = tuple(str(key) for key in content if key not in (*names, "args", "checkpoint_version", "iteration"))
    return Shard(path, chunks, _args(content, path), _version(content, path), _iteration(content, path), others)


def _flat(value: object, prefix: str, path: Path, depth: int) -> Iterator[tuple[str, Tensor]]:
    """Nested dicts as (dotted name, tensor)."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.dim() > 2:
            raise InputError(f"{path}: model.{prefix} has shape {tuple(value.shape)}; a vector or matrix is expected")
        yield prefix, value
        return
    if not isinstance(value, Mapping) or depth == 0:
        what = "nested too deeply" if isinstance(value, Mapping) else f"a {type(value).__name__}, not a tensor"
        raise InputError(f"{path}: model.{prefix[:80]} is {what}")
    for key, inner in value.items():
        if not isinstance(key, str):
            raise InputError(f"{path}: model.{prefix[:80]} has a key that is not text: {ascii(key)[:40]}")
        yield from _flat(inner, f"{prefix}.{key}" if prefix else key, path, depth - 1)


def _args(content: Mapping, path: Path) -> dict[str, object] | None:
    args = content.get("args")
    if args is None:
        return None
    if isinstance(args, argparse.Namespace):
        args = vars(args)
    if isinstance(args, Mapping) and all(isinstance(key, str) for key in args):
        return dict(args)
    raise InputError(f"{path}: args is a {type(args).__name__}; an argparse.Namespace is expected")


def _version(content: Mapping, path: Path) -> float:
    version = content.get("checkpoint_version", 0)
    if type(version) not in (int, float) or version not in VERSIONS:
        known = ", ".join(map(str, VERSIONS))
        raise InputError(f"{path}: checkpoint_version {ascii(version)[:40]} is not one of {known}")
    return float(version)


def _iteration(content: Mapping, path: Path) -> int | None:
    iteration = content.get("iteration", content.get("total_iters"))
    if iteration is not None and (type(iteration) is not int or not 0 <= iteration < 10**12):
        raise InputError(f"{path}: iteration is {ascii(iteration)[:40]}, not a whole number")
    return iteration
