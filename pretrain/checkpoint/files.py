"""A run's checkpoints: whole or absent, loadable into any layout, opened without running anything hidden in them.

    <save>/iter_0001000/            DCP shards, `.metadata`, meta.json (written last)
    <save>/latest_checkpointed_iteration.txt      the tracker: the iteration to go on from

What must hold: a kill at any instant leaves the previous checkpoint loadable. Everything is written under a hidden
temporary name, synced, renamed; only then is the tracker replaced. Where `iter_*` exists already (a run went back),
the old one is kept under `.iter_*.replaced` until the new one is in place, and readers know that name.
With a process group every rank writes its own shards and rank 0 renames; with none, one process does both.
"""

import contextlib
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.tensor import DTensor

from pretrain.torch_internals import flatten_state_dict
from proteinlm.errors import InputError
from proteinlm.files import fsync_path, write_json, write_text, writing
from proteinlm.model_dir.files import check_finite, count_not_finite
from proteinlm.model_dir.find import CONFIG_NAME
from proteinlm.untrusted.json_files import read_json
from proteinlm.untrusted.safe_dcp import SafePlanner, SafeReader

TRACKER = "latest_checkpointed_iteration.txt"
META = "meta.json"
META_FORMAT = 1
SHAPE = {"iteration": int, "format": int, "files": {"*": int}, "previous?": int}  # of META, whoever wrote it
ITERATION_NAME = re.compile(r"iter_(\d{7,})")
# What a user can do when a part of the state is not in the checkpoint.
SKIP_FLAG = {"optimizer": "--no-load-optim", "rng": "--no-load-rng"}


def checkpoint_name(iteration: int) -> str:
    return f"iter_{iteration:07d}"


# ---- saving


def save_checkpoint(
    directory: str | Path,
    iteration: int,
    state: dict,
    meta: dict,
    keep_last: int | None = None,
    process_group: dist.ProcessGroup | None = None,
) -> Path:
    """Write `state` (nested dicts of tensors) and `meta` (JSON-able) as `iteration`, then point the tracker at it.

    keep_last: how many of the newest checkpoints to keep (None: all), newest by `_history`; the tracker's is never
    removed. meta["previous"]: the checkpoint that the run saved or was resumed from before this one; unless given, the
    next lower one. Collective: with torch.distributed running every rank of the group calls it with its part of the
    state. Returns the final path.
    """
    directory = Path(directory)
    final = directory / checkpoint_name(iteration)
    temporary = directory / f".{final.name}.tmp"
    with writing(final):
        _on_first_rank(lambda: _make_room(directory, temporary), process_group)
    try:
        with writing(final, temporary), _first_cause():
            writer = dcp.FileSystemWriter(temporary, sync_files=True, thread_count=1)
            _quietly(dcp.save, state, storage_writer=writer, process_group=process_group, no_dist=_alone())
            _on_first_rank(lambda: _publish(temporary, final, iteration, meta), process_group)
    except BaseException:
        if _alone() or dist.get_rank(process_group) == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    with writing(final):
        _on_first_rank(lambda: _prune(directory, iteration, keep_last), process_group)
    return final


def _make_room(directory: Path, temporary: Path) -> None:
    """Make the directory, clear what dead runs left, and make this save's temporary directory."""
    directory.mkdir(parents=True, exist_ok=True)
    clear_leftovers(directory)
    temporary.mkdir()


def clear_leftovers(directory: Path) -> None:
    """Of saves that a kill cut off: what was coming or going goes, what was being replaced has its name again."""
    for replaced in directory.glob(".iter_*.replaced"):
        original = directory / replaced.name.removeprefix(".").removesuffix(".replaced")
        if original.exists():
            shutil.rmtree(replaced)
        else:
            os.replace(replaced, original)
    for stale in directory.glob(".iter_*.tmp"):
        shutil.rmtree(stale)


def _publish(temporary: Path, final: Path, iteration: int, meta: dict) -> None:
    files = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
    own = {"format": META_FORMAT, "iteration": iteration, "versions": {"torch": torch.__version__}, "files": files}
    write_json(temporary / META, {**meta, **own})
    fsync_path(temporary)
    replaced = final.parent / f".{final.name}.replaced"
    if final.exists():
        os.replace(final, replaced)
    os.replace(temporary, final)
    fsync_path(final.parent)
    write_text(final.parent / TRACKER, str(iteration))
    if replaced.exists():
        shutil.rmtree(replaced)


def _prune(directory: Path, newest: int, keep_last: int | None) -> None:
    """Remove all but `keep_last` checkpoints: first those that a run which went back left behind."""
    if keep_last is None:
        return
    history = _history(directory, newest)
    abandoned = [iteration for iteration in _iterations(directory) if iteration not in history]
    by_worth = [*history, *reversed(abandoned)]
    for iteration in by_worth[keep_last:]:
        removed = directory / f".{checkpoint_name(iteration)}.tmp"  # hidden first: never half a checkpoint in sight
        os.replace(directory / checkpoint_name(iteration), removed)
        shutil.rmtree(removed)


def _history(directory: Path, newest: int) -> list[int]:
    """Iterations of the checkpoints on the way to `newest`, from there back: each says which came before it."""
    history, lower, previous = [newest], _iterations(directory), None
    while lower := [iteration for iteration in lower if iteration < history[-1]]:
        with contextlib.suppress(InputError):
            previous = _read_meta(directory / checkpoint_name(history[-1])).get("previous", lower[-1])
        if previous not in lower:
            break
        history.append(previous)
    return history


# ---- what is there


def read_tracker(tracker: Path) -> str:
    """What a tracker holds; of a file that is none, however large, its beginning."""
    with tracker.open("rb") as file:
        return file.read(64).decode("utf-8", "replace").strip()


def latest_iteration(directory: str | Path) -> int | None:
    """The iteration that the tracker names, None without a tracker. InputError when it is missing or broken."""
    tracker = Path(directory) / TRACKER
    conversion = f"; convert it first: python -m converter --load {directory} --save DIR --target dcp"
    if not tracker.exists():
        if tracker.is_symlink():
            raise InputError(f"{tracker}: a link to nothing{_offer(Path(directory))}")
        if (Path(directory) / CONFIG_NAME).is_file():
            raise InputError(f"{directory}: a model directory, no checkpoint{conversion}")
        return None
    text = read_tracker(tracker)
    if any(Path(directory).glob("*/mp_rank_*")) and not any(Path(directory).glob(f"iter_*/{META}")):
        raise InputError(f"{directory}: a Megatron checkpoint{conversion}")
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise InputError(f"{tracker}: holds {text[:40]!r}, not an iteration number{_offer(Path(directory))}")
    iteration = int(text)
    try:
        _read_meta(_path_of(Path(directory), iteration))
    except InputError as error:
        advice = _offer(Path(directory), iteration)
        raise InputError(f"{tracker}: names iteration {iteration}, but {error}{advice}") from None
    return iteration


def load_meta(directory: str | Path, iteration: int | None = None) -> tuple[int, dict]:
    """(iteration, meta.json) of a checkpoint; the tracker's when `iteration` is None."""
    directory = Path(directory)
    if iteration is None:
        iteration = latest_iteration(directory)
        if iteration is None:
            raise InputError(f"{directory}: no {TRACKER}: this directory holds no checkpoint")
    with _in_one_line(str(directory), newest_of=(directory, iteration)):
        return iteration, _read_meta(_path_of(directory, iteration))


def _iterations(directory: Path) -> list[int]:
    names = (ITERATION_NAME.fullmatch(path.name) for path in directory.glob("iter_*"))
    return sorted(int(match[1]) for match in names if match)


def _path_of(directory: Path, iteration: int) -> Path:
    path = directory / checkpoint_name(iteration)
    replaced = directory / f".{path.name}.replaced"  # a kill came between the two renames of a second save
    return replaced if replaced.exists() and not path.exists() else path


def _read_meta(path: Path) -> dict:
    """meta.json of a checkpoint whose files are there, each with its size; else an InputError that names the one."""
    for missing in (path, path / META):
        if not missing.exists():
            raise InputError(f"{missing} is missing")
    if not (path / META).is_file():  # a pipe would give it to one process alone
        raise InputError(f"{path / META} is no regular file")
    meta = read_json(path / META, "this project's checkpoint description", SHAPE)
    if meta["format"] != META_FORMAT:
        raise InputError(f"{path / META}: format {meta['format']!r} is not {META_FORMAT}, which this version reads")
    if path.name.strip(".").split(".")[0] != checkpoint_name(meta["iteration"]):
        raise InputError(f"{path / META}: describes iteration {meta['iteration']}, not that of its directory")
    for name, size in meta["files"].items():
        file = path / Path(name).name
        if not file.is_file():
            raise InputError(f"{file} is missing")
        if file.stat().st_size != size:
            bytes_found = file.stat().st_size
            raise InputError(f"{file} has {bytes_found} bytes instead of {size}: truncated or mixed with another save")
    return meta


def _is_whole(path: Path) -> bool:
    with contextlib.suppress(InputError):
        return bool(_read_meta(path))
    return False


def _offer(directory: Path, broken: int | None = None) -> str:
    """The advice that ends an error: which complete checkpoint the user could go on from."""
    whole = [n for n in _iterations(directory) if n != broken and _is_whole(directory / checkpoint_name(n))]
    if not whole:
        return "; no other complete checkpoint is there"
    return f"; the newest complete one is iteration {whole[-1]}: write {whole[-1]} into {directory / TRACKER} to use it"


# ---- loading


def load_checkpoint(directory: str | Path, iteration: int, state: dict) -> dict:
    """Fill the tensors of `state` (nested dicts, laid out in any way) in place from a checkpoint; returns `state`.

    Parts that `state` lacks are not read (a model alone, to finetune). A tensor missing on either side, or of another
    shape, is an InputError naming it and both shapes. Floating tensors are cast to the dtype of `state`. Collective.
    """
    path = _path_of(Path(directory), iteration)
    with _in_one_line(str(path), newest_of=(Path(directory), iteration)):
        _read_meta(path)
        reader = SafeReader(path)
        metadata = reader.read_metadata()
    _check_fit(path, metadata, state)
    with _in_one_line(str(path), newest_of=(Path(directory), iteration)):
        _load(state, reader, no_dist=_alone())
    _check_numbers(path, state)
    return state


def _check_numbers(path: Path, state: dict) -> None:
    """InputError, of all ranks together, for weights or moments that are no numbers."""
    flat, _ = flatten_state_dict(state)
    local = {n: v.to_local() if isinstance(v, DTensor) else v for n, v in flat.items() if isinstance(v, Tensor)}
    for not_finite in _from_all_ranks(count_not_finite(local)):
        check_finite(not_finite, path)


def read_model_tensors(directory: str | Path, iteration: int | None = None, part: str = "model") -> dict[str, Tensor]:
    """All tensors of one part of a checkpoint by name, read by one process without a template (shapes: `.metadata`)."""
    directory = Path(directory)
    iteration, _ = load_meta(directory, iteration)
    path = _path_of(directory, iteration)
    with _in_one_line(str(path), newest_of=(directory, iteration)):
        reader = SafeReader(path)
        entries = reader.read_metadata().state_dict_metadata
        entries = {name: entry for name, entry in entries.items() if name.startswith(part + ".")}
        for name, entry in entries.items():
            if not isinstance(entry, TensorStorageMetadata):
                raise InputError(f"{path}: {name} is not a tensor")
        flat = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in entries.items()}
        if not flat:
            raise InputError(f"{path}: holds no {part}")
        _load(flat, reader, no_dist=True)
    return {name.removeprefix(part + "."): tensor for name, tensor in flat.items()}


def _load(state: dict, reader: SafeReader, no_dist: bool) -> None:
    _quietly(dcp.load, state, storage_reader=reader, planner=SafePlanner(), no_dist=no_dist)


def _check_fit(path: Path, metadata: Metadata, state: dict) -> None:
    """Every tensor of this run has its like in the checkpoint, and (over all ranks) the other way round."""
    stored = metadata.state_dict_metadata
    absent = state.keys() - {name.split(".")[0] for name in stored}
    flat, _ = flatten_state_dict(state)
    problem = next(filter(None, (_misfit(name, value, stored) for name, value in flat.items())), None)
    if absent:
        problem = f"the checkpoint holds no {' and no '.join(sorted(absent))} state{_advice(absent)}"
    answers = _from_all_ranks((set(flat), problem))  # all ranks raise together, or none
    if problem := next((problem for _, problem in answers if problem), None):
        raise InputError(f"{path}: {problem}")
    present = set().union(*(names for names, _ in answers))
    for name in stored:
        part = name.split(".")[0]
        if part in state and part != "rng" and name not in present:
            raise InputError(f"{path}: the checkpoint holds {name}, for which this run's model has no place")


def _advice(parts: Iterable[str]) -> str:
    flags = [flag for part, flag in SKIP_FLAG.items() if part in parts]
    return f"; to start afresh there: {' '.join(flags)}" if flags else ""


def _misfit(name: str, value: object, stored: dict) -> str | None:
    if name not in stored:
        return f"the checkpoint lacks {name}, which this run needs{_advice([name.split('.')[0]])}"
    if not isinstance(value, Tensor):
        return None
    entry = stored[name]
    if not isinstance(entry, TensorStorageMetadata):
        return f"{name} is not a tensor in the checkpoint"
    if tuple(entry.size) != tuple(value.shape):
        return f"{name} has shape {tuple(entry.size)}, this run's model needs {tuple(value.shape)}"
    dtype = entry.properties.dtype
    if dtype != value.dtype and not (dtype.is_floating_point and value.is_floating_point()):
        return f"{name} has dtype {dtype}, this run needs {value.dtype}"
    return None


# ---- one process or many


def _alone() -> bool:
    return not (dist.is_available() and dist.is_initialized())


def _on_first_rank(action: Callable[[], None], process_group) -> None:
    """Run `action` on rank 0 of the group while the others wait; where it fails, every rank raises."""
    failure = None
    if _alone() or dist.get_rank(process_group) == 0:
        try:
            action()
        except Exception as error:
            failure = error
    message = _from_all_ranks(failure and f"{type(failure).__name__}: {failure}", process_group)[0]
    if failure:
        raise failure
    if message:
        raise InputError(f"rank 0 could not write the checkpoint ({message})")


def _from_all_ranks(value: object, process_group: dist.ProcessGroup | None = None) -> list:
    if _alone():
        return [value]
    gathered: list = [None] * dist.get_world_size(process_group)
    dist.all_gather_object(gathered, value, group=process_group)
    return gathered


def _quietly(function: Callable, *args, **kwargs) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        function(*args, **kwargs)


@contextlib.contextmanager
def _first_cause() -> Iterator[None]:
    """In the place of the failures that DCP collects, the one that says most."""
    try:
        yield
    except CheckpointException as error:
        failures = [failure for failure, _ in error.failures.values()]
        raise next((failure for failure in failures if isinstance(failure, InputError)), failures[0]) from None


@contextlib.contextmanager
def _in_one_line(what: str, newest_of: tuple[Path, int]) -> Iterator[None]:
    """Turn a file's faults into one InputError with `_offer`'s advice."""
    try:
        with _first_cause():
            yield
    except (InputError, OSError) as error:
        message = str(error) if isinstance(error, InputError) else f"{what} ({error})"
        raise InputError(message + _offer(*newest_of)) from None
