"""The flags of `tape-train`, TAPE's names where TAPE has one, and one frozen record of them, kept with the run."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from pretrain.errors import ArgumentParser, InputError

MODEL_TYPES = ("transformer",)
# A resumed run may change these; every other flag makes another run.
MAY_CHANGE = ("output_dir", "data_dir", "num_workers", "log_dir", "device", "resume", "num_log_iter", "save_freq")


@dataclass(frozen=True)
class TrainOptions:
    """Everything that decides a finetuning run. Written to args.json."""

    model_type: str
    task: str
    output_dir: str
    data_dir: str
    from_pretrained: str | None
    model_config_file: str | None
    head: str | None
    tokenizer: str
    batch_size: int
    gradient_accumulation_steps: int
    eval_batch_size: int
    num_train_epochs: int
    max_steps: int | None
    learning_rate: float
    encoder_learning_rate_scale: float
    warmup_steps: int | None
    weight_decay: float
    max_grad_norm: float
    freeze_encoder: bool
    seed: int
    fp16: bool
    bf16: bool
    valid_split: str
    holdout: float | None
    holdout_seed: int
    eval_freq: int
    eval_steps: int | None
    patience: int
    save_freq: int | str
    max_length: int | None
    too_long: str
    num_workers: int
    num_log_iter: int
    log_dir: str | None
    time_or_name: str | None
    resume: bool
    device: str

    def to_dict(self) -> dict:
        return asdict(self)


def positive(text: str) -> int:
    """An int of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} should be at least 1")
    return value


def non_negative(text: str) -> float:
    """A float of at least 0."""
    value = float(text)
    if not value >= 0 or value == float("inf"):
        raise argparse.ArgumentTypeError(f"{text} should be a number of at least 0")
    return value


def _steps(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} should be at least 0")
    return value


def _patience(text: str) -> int:
    value = int(text)
    if value < 1 and value != -1:
        raise argparse.ArgumentTypeError(f"{text} should be at least 1, or -1 for never")
    return value


def _save_freq(text: str) -> int | str:
    return text if text == "improvement" else positive(text)


def add_length_flags(parser: argparse.ArgumentParser, too_long: str | None) -> None:
    """--max_length and --too_long, shared by training and evaluation."""
    parser.add_argument(
        "--max_length", type=positive, help="residues of a protein the model may see (default: all it can)"
    )
    parser.add_argument(
        "--too_long",
        choices=("crop", "error"),
        default=too_long,
        help="a longer protein: keep its first max_length residues and count it, or stop (training's default: error)",
    )


def add_device_flags(parser: argparse.ArgumentParser) -> None:
    """--device, --bf16, --fp16, --num_workers and TAPE's --no_cuda."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--no_cuda", action="store_const", dest="device", const="cpu", help="the same as --device cpu")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast (CPU too)")
    parser.add_argument("--fp16", action="store_true", help="float16 autocast with dynamic loss scaling (GPU only)")
    parser.add_argument("--num_workers", type=_steps, default=0, help="processes that prepare batches (0: none)")


def build_parser() -> ArgumentParser:
    """The parser of tape-train."""
    parser = ArgumentParser("tape-train", description="Finetune a protein BERT on one TAPE task.")
    parser.add_argument("model_type", choices=MODEL_TYPES)
    parser.add_argument("task", help="secondary_structure, contact_prediction, remote_homology, fluorescence ...")
    model = parser.add_argument_group("model")
    model.add_argument("--from_pretrained", help="TAPE-format model directory; absent: random weights, the baseline")
    model.add_argument("--model_config_file", help="config.json for random weights (or to check --from_pretrained by)")
    model.add_argument("--head", choices=("proteinlm", "tape"), help="default: the model directory's, else proteinlm")
    model.add_argument("--tokenizer", default="iupac", choices=("iupac",))
    model.add_argument("--vocab_file", help=argparse.SUPPRESS)
    data = parser.add_argument_group("data")
    data.add_argument("--data_dir", default="./data", help="holds <task>/<task>_<split>.lmdb")
    data.add_argument("--output_dir", required=True, help="the run's directory; the best weights end up in it")
    data.add_argument("--valid_split", default="valid", help="split that early stopping and the best weights go by")
    data.add_argument("--holdout", type=float, help="hold this fraction of train out by cluster instead; 0: do not")
    data.add_argument("--holdout_seed", type=_steps, default=0, help="of --holdout; the same for every --seed")
    add_length_flags(data, "error")
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--batch_size", type=positive, default=32, help="proteins an optimizer step, in all")
    recipe.add_argument("--gradient_accumulation_steps", type=positive, default=1, help="parts a batch is computed in")
    recipe.add_argument("--num_train_epochs", type=positive, default=10)
    recipe.add_argument("--max_steps", type=positive, help="stop after this many optimizer steps instead")
    recipe.add_argument("--learning_rate", type=non_negative, default=1e-4, help="peak; then linear decay to 0")
    recipe.add_argument("--encoder_learning_rate_scale", type=non_negative, default=1.0, help="factor for the encoder")
    recipe.add_argument("--warmup_steps", type=_steps, help="default: a tenth of all steps")
    recipe.add_argument("--weight_decay", type=non_negative, default=0.01)
    recipe.add_argument("--max_grad_norm", type=non_negative, default=1.0, help="0: no clipping")
    recipe.add_argument("--freeze_encoder", action="store_true", help="train the head alone, the encoder in eval mode")
    recipe.add_argument("--seed", type=_steps, default=42)
    run = parser.add_argument_group("evaluation and files")
    run.add_argument("--eval_freq", type=positive, default=1, help="epochs between evaluations")
    run.add_argument("--eval_steps", type=positive, help="optimizer steps between evaluations instead")
    run.add_argument("--eval_batch_size", type=positive, help="proteins at a time (default: the size of a part)")
    run.add_argument(
        "--patience", type=_patience, default=-1, help="evaluations without improvement before stopping; -1: never"
    )
    run.add_argument(
        "--save_freq", type=_save_freq, default=1, help="evaluations between saved states, or 'improvement'"
    )
    run.add_argument("--num_log_iter", type=positive, default=20, help="optimizer steps between log lines")
    run.add_argument("--log_dir", help="TensorBoard directory (default: none)")
    run.add_argument(
        "--time_or_name", "--exp_name", help="the run's name, shown in tables; runs of other seeds share it"
    )
    run.add_argument("--resume", "--resume_from_checkpoint", action="store_true", help="go on from <output_dir>/last")
    add_device_flags(run)
    for flag in ("--local_rank", "--fp16_opt_level", "--loss_scale"):
        parser.add_argument(flag, help=argparse.SUPPRESS)
    parser.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    return parser


def parse_options(argv: Sequence[str] | None, tasks: Sequence[str]) -> TrainOptions:
    """argv -> TrainOptions; wrong flags end the process with one line and status 2."""
    args = build_parser().parse_args(argv)
    check_task(args.task, tasks)
    for flag in ("vocab_file", "local_rank", "fp16_opt_level", "loss_scale", "debug"):
        if getattr(args, flag):
            print(f"notice: --{flag} means nothing here and is ignored", file=sys.stderr)
    if args.gradient_accumulation_steps > args.batch_size:
        raise InputError(
            f"--gradient_accumulation_steps {args.gradient_accumulation_steps} should be at most --batch_size "
            f"{args.batch_size}: a part holds at least one protein"
        )
    args.holdout = args.holdout or None
    part = -(-args.batch_size // args.gradient_accumulation_steps)
    args.eval_batch_size = args.eval_batch_size or part
    return TrainOptions(**{field.name: getattr(args, field.name) for field in fields(TrainOptions)})


def check_task(name: str, tasks: Sequence[str]) -> None:
    """An unknown task is told with the known ones."""
    if name not in tasks:
        raise InputError(f"task {name!r} is unknown; should be one of {', '.join(tasks)}")


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"--device {name}: should be auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: this machine has no CUDA device; should be cpu")
    return device


def choose_precision(fp16: bool, bf16: bool, device: torch.device) -> torch.dtype:
    """The autocast dtype; float32 means none."""
    if fp16 and bf16:
        raise InputError("--fp16 and --bf16 exclude each other; give one")
    if fp16 and device.type != "cuda":
        raise InputError(f"--fp16 needs a CUDA device, this run is on {device.type}; --bf16 works on both")
    return torch.float16 if fp16 else torch.bfloat16 if bf16 else torch.float32


def check_resumable(options: TrainOptions, saved: dict, where: Path) -> None:
    """A resumed run must be the run that was started."""
    for name, value in options.to_dict().items():
        if name not in MAY_CHANGE and name in saved and saved[name] != value:
            raise InputError(f"{where}: the run to resume was started with --{name} {saved[name]}, not {value}")
