"""One conversion: recognise the source, read it, write the target beside its final name, verify, rename."""

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from converter import dcp, tape_dir, verify
from pretrain.errors import ArgumentParser, InputError
from pretrain.files import fsync_path

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def parser() -> ArgumentParser:
    p = ArgumentParser(prog="python -m converter", description=__doc__)
    p.add_argument("--load", required=True, type=Path, help="what `python -m pretrain` saved")
    p.add_argument("--save", required=True, type=Path, help="directory to write; must be absent or empty")
    p.add_argument("--target", default="tape", choices=["tape"], help="format to write")
    p.add_argument("--iteration", type=int, help="checkpoint to read (default: the latest)")
    p.add_argument("--dtype", default="fp32", choices=DTYPES, help="dtype of the written tensors")
    p.add_argument("--verify", action="store_true", help="run proteins through source and result and compare")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; returns 0, or 1 when --verify finds a difference that the dtype does not explain."""
    args = parser().parse_args(argv)
    if args.save.exists() and (not args.save.is_dir() or any(args.save.iterdir())):
        raise InputError(f"{args.save}: already exists and is not an empty directory; give --save a new name")
    if not args.load.exists():
        raise InputError(f"{args.load}: no such checkpoint; give --load the directory that pretrain saved to")
    model = dcp.read(args.load, args.iteration)
    print(f"read {model.origin}: {model.config.num_parameters(model.has_lm_head):,} parameters")
    args.save.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{args.save.name}.", suffix=".tmp", dir=args.save.parent))
    try:
        for line in tape_dir.write(model.to_dtype(DTYPES[args.dtype]), temporary):
            print(line)
        if args.verify and not _verified(model, temporary, args.dtype):
            return 1
        _publish(temporary, args.save)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"wrote {args.save}")
    return 0


def _verified(model, directory: Path, dtype: str) -> bool:
    difference = verify.compare_with_tape(model, directory)
    print(difference)
    worst = max(difference.hidden, difference.logits or 0.0)
    if dtype == "fp32" and not worst <= verify.TOLERANCE:
        print(f"verification failed: {worst:.3g} is more than {verify.TOLERANCE:g}; nothing was written")
        return False
    return True


def _publish(temporary: Path, final: Path) -> None:
    temporary.chmod(0o755)
    for path in temporary.iterdir():
        fsync_path(path)
    fsync_path(temporary)
    temporary.replace(final)  # an empty directory of that name is replaced
    fsync_path(final.parent)
