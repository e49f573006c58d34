"""`python -m converter --load SRC --save DST --target tape [--verify]`.

What must hold: FORMATS, PARALLEL and WITH_TORCH_FILE are what converter.sources says of its formats, and DTYPES are
those of proteinlm.model_dir.load (tests/test_commands.py).
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from proteinlm.errors import ArgumentParser, InputError, run
from proteinlm.model_dir.find import find_model
from proteinlm.network.config import ACTIVATIONS
from tape.runs.flags import count, positive

FORMATS = ("tape", "esm", "fair-esm", "esmc", "hf", "megatron", "dcp")
PARALLEL, WITH_TORCH_FILE = ("megatron",), ("tape", "esm", "esmc", "hf")
DTYPES = ("fp32", "bf16", "fp16")
DESCRIPTION = (
    "Any checkpoint of ProteinLM's neighbourhood to any other: what pretrain saved, Megatron, TAPE, ESM, Hugging Face."
)


def format_name(text: str) -> str:
    return text.replace("_", "-")


def parser() -> ArgumentParser:
    p = ArgumentParser(prog="python -m converter", description=DESCRIPTION)
    p.add_argument("--load", required=True, type=Path, help="a checkpoint, a model directory, its name, or a .pt file")
    p.add_argument("--save", required=True, type=Path, help="directory to write; must be absent or empty")
    formats = {"type": format_name, "choices": FORMATS}
    p.add_argument("--target", default="tape", **formats, help="format to write (default: tape)")
    p.add_argument("--source", **formats, help="what --load is (default: recognised by its contents)")
    p.add_argument("--iteration", type=count, help="checkpoint of a run to read (default: the latest)")
    p.add_argument("--dtype", choices=DTYPES, help="dtype of the written tensors (default: as they are stored)")
    p.add_argument("--tensor-model-parallel-size", type=positive, default=1, help="--target megatron: TP (default 1)")
    p.add_argument("--pipeline-model-parallel-size", type=positive, default=1, help="--target megatron: PP (default 1)")
    p.add_argument("--num-attention-heads", type=positive, help="for Megatron files without args: no tensor shows it")
    p.add_argument("--hidden-act", choices=ACTIVATIONS, help="the MLP's activation, where the source says it wrongly")
    p.add_argument("--bin", action="store_true", help="--target tape, esm or hf: write pytorch_model.bin too")
    p.add_argument("--verify", action="store_true", help="read the result back, run proteins through both and compare")
    data = p.add_argument_group("--verify with data: predicts the loss that continued pretraining starts from")
    data.add_argument("--data-path", nargs="+", help="token shards, as pretrain takes them")
    data.add_argument("--seq-length", type=positive, help="(default: the model's positions)")
    data.add_argument("--global-batch-size", type=positive, default=1, help="rows of the first step (default 1)")
    data.add_argument("--split", default="969,30,1", help="(default 969,30,1)")
    data.add_argument("--mask-prob", type=float, default=0.15, help="(default 0.15)")
    data.add_argument("--seed", type=int, default=1234, help="(default 1234)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Convert; returns 0, or 1 when --verify finds a difference. Nothing is under --save then."""
    args = parser().parse_args(argv)
    if not args.load.exists() and (args.load.suffix or len(args.load.parts) > 1):  # nor a model's name
        raise InputError(f"{args.load}: no such checkpoint")
    args.load = find_model(args.load)
    if args.save.exists() and (not args.save.is_dir() or any(args.save.iterdir())):
        raise InputError(f"{args.save}: already exists and is not an empty directory; give --save a new name")
    parallel = (args.tensor_model_parallel_size, args.pipeline_model_parallel_size)
    if parallel != (1, 1) and args.target not in PARALLEL:
        raise InputError(
            f"--tensor-model-parallel-size {parallel[0]} --pipeline-model-parallel-size {parallel[1]}: only --target "
            f"megatron is cut that way; {args.target} loads into any layout"
        )
    if args.bin and args.target not in WITH_TORCH_FILE:
        raise InputError(f"--bin: --target {args.target} has no pytorch_model.bin")
    if args.data_path and not args.verify:
        raise InputError("--data-path: only --verify reads data; add --verify")
    from converter.convert import convert

    return convert(args)


def cli() -> None:
    sys.exit(run(main))


if __name__ == "__main__":
    cli()
