"""Any checkpoint of ProteinLM's neighbourhood to any other: what `pretrain` saved, Megatron, TAPE, ESM, Hugging Face.

One conversion from end to end: recognise the source, read it, write the target beside its final name, verify, rename.
What was left out, changed or assumed is printed and stays beside the result in conversion_report.txt.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from converter.formats import Format, WriteOptions
from converter.model import PortableModel
from converter.sources import FORMATS, read, recognise
from converter.verify import Say, first_step_loss, verify
from proteinlm.errors import ArgumentParser, InputError
from proteinlm.files import fsync_path, made_directory, write_text
from proteinlm.model_dir.load import DTYPES
from proteinlm.model_dir.weights import stored_dtype
from proteinlm.network.config import ACTIVATIONS
from tape.runs.flags import count, positive

REPORT = "conversion_report.txt"


def format_name(text: str) -> str:
    return text.replace("_", "-")


def parser() -> ArgumentParser:
    p = ArgumentParser(prog="python -m converter", description=__doc__)
    p.add_argument("--load", required=True, type=Path, help="a checkpoint, a model directory, or a .pt file")
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
    target = FORMATS[args.target]
    _check(args, target)
    dtype, sizes = DTYPES.get(args.dtype), (args.tensor_model_parallel_size, args.pipeline_model_parallel_size)
    options = WriteOptions(dtype, *sizes, torch_file=args.bin, last_use=not args.verify)
    report: list[str] = []

    def say(line: str) -> None:
        print(line, flush=True)
        report.append(line)

    source = _read(args, say)
    stored = target.prepare(source, options)
    for note in stored.notes:
        say(f"note: {note}")
    _check_range(stored, dtype)
    source = source if args.verify else None  # its memory may be used again
    try:
        with _temporary_directory(args.save) as temporary:
            target.write(stored, temporary, options)
            if args.verify and not _verified(source, stored.rounded_to(dtype), target, args, temporary, say):
                print("nothing was written", flush=True)
                return 1
            say(f"wrote {args.save} ({args.target})")
            write_text(temporary / REPORT, "\n".join(report) + "\n")
            _publish(temporary, args.save)
    except OSError as error:
        raise InputError(f"{args.save}: cannot be written ({error.strerror or error})") from error
    return 0


@contextlib.contextmanager
def _temporary_directory(final: Path) -> Iterator[Path]:
    """Beside the final one; nothing of it is left at the end, but for what was renamed."""
    with made_directory(final.parent):
        temporary = Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=".tmp", dir=final.parent))
        try:
            yield temporary
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _check(args, target: Format) -> None:
    if args.save.exists() and (not args.save.is_dir() or any(args.save.iterdir())):
        raise InputError(f"{args.save}: already exists and is not an empty directory; give --save a new name")
    parallel = (args.tensor_model_parallel_size, args.pipeline_model_parallel_size)
    if parallel != (1, 1) and not target.is_parallel:
        raise InputError(
            f"--tensor-model-parallel-size {parallel[0]} --pipeline-model-parallel-size {parallel[1]}: only --target "
            f"megatron is cut that way; {args.target} loads into any layout"
        )
    if args.bin and not target.has_torch_file:
        raise InputError(f"--bin: --target {args.target} has no pytorch_model.bin")
    if args.data_path and not args.verify:
        raise InputError("--data-path: only --verify reads data; add --verify")


def _read(args, say: Say) -> PortableModel:
    """The source with the user's overrides."""
    kind = args.source or recognise(args.load)
    model = read(args.load, kind, iteration=args.iteration, num_attention_heads=args.num_attention_heads)
    head = "with" if model.has_lm_head else "without"
    say(
        f"read {model.origin}: {kind}, {model.config.num_parameters(model.has_lm_head):,} parameters, {head} masked-LM "
        f"head, {str(model.dtype).removeprefix('torch.')}, hidden_act {model.config.hidden_act}"
    )
    if args.hidden_act and args.hidden_act != model.config.hidden_act:
        note = f"hidden_act {model.config.hidden_act} of the source replaced by {args.hidden_act}, as --hidden-act says"
        model = model.noted(note).with_config(hidden_act=args.hidden_act)
    return model


def _check_range(model: PortableModel, dtype: torch.dtype | None) -> None:
    """No number becomes infinite by rounding."""
    for name, tensor in model.all_tensors.items():
        if dtype is not None and tensor.dtype != stored_dtype(name, tensor, dtype) and tensor.numel():
            largest = float(tensor.abs().max())
            if largest > torch.finfo(dtype).max:
                kind = str(dtype).removeprefix("torch.")
                raise InputError(f"{model.origin}: {name} holds {largest:.3g}, beyond {kind}; use --dtype fp32 or bf16")


def _verified(source: PortableModel, stored: PortableModel, target: Format, args, directory: Path, say: Say) -> bool:
    if not verify(source, stored, target, directory, say):
        return False
    if args.data_path:
        length = args.seq_length or source.config.max_position_embeddings
        settings = (args.data_path, length, args.global_batch_size, args.split, args.mask_prob, args.seed)
        loss, masked = first_step_loss(stored, *settings)
        say(
            f"predicted masked-LM loss of the first step: {loss:.6f} over {masked} residues ({args.global_batch_size} "
            f"rows of {length}, seed {args.seed}, without dropout)"
        )
    return True


def _publish(temporary: Path, final: Path) -> None:
    """Sync all that was written and give it its name; an empty directory of that name is replaced."""
    temporary.chmod(0o755)
    for path in [*temporary.rglob("*"), temporary]:
        fsync_path(path)
    temporary.replace(final)
    fsync_path(final.parent)
