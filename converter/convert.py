"""Any checkpoint of ProteinLM's neighbourhood to any other: what `pretrain` saved, Megatron, TAPE, ESM, Hugging Face.

One conversion from end to end: recognise the source, read it, write the target beside its final name, verify, rename.
What was left out, changed or assumed is printed and stays beside the result in conversion_report.txt.
"""

import argparse
from pathlib import Path

import torch

from converter.formats import Format, WriteOptions
from converter.model import PortableModel
from converter.sources import FORMATS, read, recognise
from converter.verify import Say, first_step_loss, verify
from proteinlm.errors import InputError
from proteinlm.files import atomic_directory, write_text
from proteinlm.model_dir.load import DTYPES
from proteinlm.model_dir.weights import stored_dtype

REPORT = "conversion_report.txt"


class _DifferentError(Exception):
    """--verify found a difference."""


def convert(args: argparse.Namespace) -> int:
    """By the flags of `python -m converter`; returns 0, or 1 (nothing written) when --verify finds a difference."""
    target = FORMATS[args.target]
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
        with atomic_directory(args.save) as temporary:
            target.write(stored, temporary, options)
            if args.verify and not _verified(source, stored.rounded_to(dtype), target, args, temporary, say):
                raise _DifferentError
            report.append(f"wrote {args.save} ({args.target})")
            write_text(temporary / REPORT, "\n".join(report) + "\n")
    except _DifferentError:
        print("nothing was written", flush=True)
        return 1
    print(report[-1], flush=True)
    return 0


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
            values = tensor[tensor.isfinite()] if model.not_finite else tensor
            largest = float(values.abs().max()) if values.numel() else 0.0
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
