"""The flags of `tape-train`, TAPE's names where TAPE has one, and one frozen record of them, kept with the run.

A flag of the recipe (tape.recipes) has no default here: what neither the command line nor a recipe gives is BUILT_IN's.
"""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch

from proteinlm.errors import ArgumentParser, InputError
from tape.recipes import BUILT_IN, resolve
from tape.runs.processes import choose_device as choose_device

MODEL_TYPES = ("transformer",)
# A resumed run may change these; every other flag makes another run.
MAY_CHANGE = (
    *("output_dir", "data_dir", "num_workers", "log_dir", "log_level", "device", "resume", "num_log_iter", "save_freq"),
    *("plugin", "recipe", "force_save", "recompute"),
)


@dataclass(frozen=True)
class TrainOptions:
    """Everything that decides a finetuning run. Written to args.json."""

    model_type: str
    task: str
    output_dir: str | None  # None: ./results/<a name>, decided when the run starts
    data_dir: str
    from_pretrained: str | None
    model_config_file: str | None
    head: str | None
    pooling: str | None
    tokenizer: str
    batch_size: int
    gradient_accumulation_steps: int
    eval_batch_size: int
    num_train_epochs: int | None
    max_steps: int | None
    learning_rate: float
    encoder_learning_rate_scale: float
    layer_decay: float
    warmup_steps: int | None
    warmup_fraction: float | None
    weight_decay: float
    max_grad_norm: float
    freeze_encoder: bool
    freeze_layers: int
    lora: int | None
    lora_alpha: float | None
    lora_dropout: float
    recompute: bool
    seed: int
    seeds: list[int] | None
    fp16: bool
    bf16: bool
    loss_scale: float
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
    log_level: str
    time_or_name: str | None
    exp_name: str | None
    resume: bool
    force_save: str | None
    device: str
    plugin: list[str] = field(default_factory=list)
    recipe: dict = field(default_factory=dict)  # {"name": --recipe, "from": {key: flag, a recipe, built-in}}

    def to_dict(self) -> dict:
        return asdict(self)

    @property
    def evaluates(self) -> bool:
        """Whether there is an evaluation pass at all (TAPE: not with --eval_freq 0)."""
        return self.eval_freq > 0 or self.eval_steps is not None


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


def fraction(text: str) -> float:
    """A float from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} should lie between 0 and 1")
    return value


def count(text: str) -> int:
    """An int of at least 0."""
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


def add_tokenizer_flag(parser: argparse.ArgumentParser) -> None:
    """TAPE's --tokenizer; `check_tokenizer` refuses UniRep's by name."""
    parser.add_argument("--tokenizer", default="iupac", choices=("iupac", "unirep"), help="iupac; unirep is left out")


def check_tokenizer(name: str) -> None:
    if name == "unirep":
        raise InputError("--tokenizer unirep belongs to the model type unirep, which is left out; should be iupac")


def check_log_level(level: str) -> None:
    if level not in ("DEBUG", "INFO", "WARN", "WARNING", "ERROR", "10", "20", "30", "40"):
        raise InputError(f"--log_level {level}: should be DEBUG, INFO, WARN or ERROR")


def start_logging(level: str) -> None:
    """Python's logging at a --log_level that `check_log_level` has passed."""
    logging.basicConfig(level=int(level) if level.isdigit() else level, format="%(levelname)s: %(message)s")


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
    """--device, --bf16, --fp16 and TAPE's --no_cuda."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--no_cuda", action="store_const", dest="device", const="cpu", help="the same as --device cpu")
    parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast (CPU too)")
    parser.add_argument("--fp16", action="store_true", help="float16 autocast with loss scaling in training")


def add_worker_flag(parser: argparse.ArgumentParser) -> None:
    """--num_workers."""
    parser.add_argument("--num_workers", type=count, default=0, help="processes that prepare batches (0: none)")


def build_parser(model_types: Sequence[str] = MODEL_TYPES) -> ArgumentParser:
    """The parser of tape-train."""
    parser = ArgumentParser("tape-train", description="Finetune a protein model on one TAPE task.")
    parser.add_argument("model_type", help=", ".join(model_types))
    parser.add_argument("task", help="secondary_structure, contact_prediction, remote_homology, fluorescence ...")
    model = parser.add_argument_group("model")
    model.add_argument("--from_pretrained", help="TAPE model directory; absent: random weights, the baseline")
    model.add_argument("--model_config_file", help="config.json for random weights (or to check --from_pretrained by)")
    model.add_argument("--head", choices=("proteinlm", "tape"), help="default: the model directory's, else proteinlm")
    add_tokenizer_flag(model)
    model.add_argument(
        "--plugin", action="append", default=[], metavar="FILE", help="a .py that registers tasks, models"
    )
    _add_data_flags(parser.add_argument_group("data"))
    add_recipe_flags(parser.add_argument_group("recipe (defaults: --recipe, then tape/recipes/<task>.yaml)"))
    _add_run_flags(parser.add_argument_group("evaluation and files"))
    # TAPE's flags that mean nothing here; --local_rank is torchrun's business
    for flag in ("--vocab_file", "--fp16_opt_level"):
        parser.add_argument(flag, help=argparse.SUPPRESS)
    parser.add_argument("--local_rank", "--local-rank", help=argparse.SUPPRESS)  # both of torch's launcher's spellings
    parser.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    return parser


def _add_data_flags(data: argparse._ArgumentGroup) -> None:
    data.add_argument("--data_dir", default="./data", help="holds <task>/<task>_<split>.lmdb")
    data.add_argument(
        "--output_dir",
        help="the run's directory; the best weights end up in it (default: one of its own in ./results)",
    )
    data.add_argument("--valid_split", default="valid", help="split that early stopping and the best weights go by")
    data.add_argument("--holdout", type=float, help="hold this fraction of train out by cluster instead; 0: do not")
    data.add_argument("--holdout_seed", type=count, default=0, help="of --holdout; the same for every --seed")
    add_length_flags(data, "error")


def add_recipe_flags(recipe: argparse._ArgumentGroup) -> None:
    """The keys of BUILT_IN as flags, all None where not given, and --recipe."""
    recipe.add_argument("--recipe", default="default", metavar="default|none|FILE", help="gives the other defaults")
    recipe.add_argument("--batch_size", type=positive, help="proteins an optimizer step, on all devices together")
    recipe.add_argument("--gradient_accumulation_steps", type=positive, help="parts a batch is computed in")
    recipe.add_argument("--num_train_epochs", type=positive)
    recipe.add_argument("--max_steps", type=positive, help="stop after this many optimizer steps instead")
    recipe.add_argument("--learning_rate", type=non_negative, help="peak; then linear decay to 0")
    recipe.add_argument("--warmup_steps", type=count, help="instead of --warmup_fraction")
    recipe.add_argument("--warmup_fraction", type=fraction, help="of all steps")
    recipe.add_argument("--weight_decay", type=non_negative)
    recipe.add_argument("--max_grad_norm", type=non_negative, help="0: no clipping")
    recipe.add_argument("--encoder_learning_rate_scale", type=non_negative, help="factor for the encoder")
    recipe.add_argument("--layer_decay", type=fraction, help="each layer's rate is this times the next one's; 1: off")
    recipe.add_argument(
        "--freeze_layers", type=count, metavar="N", help="do not train embeddings and the first N layers"
    )
    recipe.add_argument(
        "--freeze_encoder", action=argparse.BooleanOptionalAction, help="train the head alone, the encoder in eval mode"
    )
    recipe.add_argument("--pooling", choices=("first", "mean"), help="what a whole protein's head sees")
    recipe.add_argument("--lora", type=count, metavar="RANK", help="train rank-RANK updates of the encoder; 0: off")
    recipe.add_argument("--lora_alpha", type=non_negative, help="updates are scaled by alpha / RANK (default: 2 RANK)")
    recipe.add_argument("--lora_dropout", type=fraction)
    recipe.add_argument("--patience", type=_patience, help="evaluations without improvement before stopping; -1: never")


def _add_run_flags(run: argparse._ArgumentGroup) -> None:
    seeds = run.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=count, default=42)
    seeds.add_argument("--seeds", type=count, nargs="+", help="a run for each: OUTPUT_DIR/seed0, OUTPUT_DIR/seed1 ...")
    run.add_argument("--eval_freq", type=int, default=1, help="epochs between evaluations; 0 or less: none at all")
    run.add_argument("--eval_steps", type=positive, help="optimizer steps between evaluations instead")
    run.add_argument("--eval_batch_size", type=positive, help="proteins at a time (default: the size of a part)")
    run.add_argument(
        "--save_freq", type=_save_freq, default=1, help="evaluations between saved states, or 'improvement'"
    )
    run.add_argument("--num_log_iter", type=positive, default=20, help="optimizer steps between log lines")
    run.add_argument("--log_dir", help="TensorBoard directory (default: none)")
    run.add_argument("--log_level", type=str.upper, default="INFO", help="of Python's logging: DEBUG INFO WARN ERROR")
    run.add_argument("--exp_name", help="as in TAPE, the run's directory is <output_dir>/<this>")
    run.add_argument("--time_or_name", help="the run's name, shown in tables; runs of other seeds share it")
    run.add_argument("--resume", "--resume_from_checkpoint", action="store_true", help="go on from <output_dir>/last")
    run.add_argument(
        "--force_save", nargs="?", const="TRUE", metavar="DIR",
        help="begin anew in a directory that holds a run; with DIR: write the untrained model there and stop",
    )  # fmt: skip
    run.add_argument("--recompute", action="store_true", help="less memory: run the encoder again going backward")
    run.add_argument("--loss_scale", type=non_negative, default=0.0, help="of --fp16; 0: dynamic")
    add_device_flags(run)
    add_worker_flag(run)


def parse_options(
    argv: Sequence[str] | None, tasks: Sequence[str], model_types: Sequence[str] = MODEL_TYPES
) -> TrainOptions:
    """argv -> TrainOptions; wrong flags end the process with one line and status 2."""
    parser = build_parser(model_types)
    args = parser.parse_args(argv)
    check_task(args.task, tasks)
    flags = {key: getattr(args, key) for key in BUILT_IN}
    values, sources = resolve(args.task, args.recipe, flags, recipe_checks(parser))
    vars(args).update(values)
    args.recipe = {"name": args.recipe, "from": sources}
    if args.gradient_accumulation_steps > args.batch_size:
        if sources["gradient_accumulation_steps"] == "flag":
            raise InputError(
                f"--gradient_accumulation_steps {args.gradient_accumulation_steps} should be at most --batch_size "
                f"{args.batch_size}: a part holds at least one protein"
            )
        args.gradient_accumulation_steps = args.batch_size
    args.holdout, args.lora = args.holdout or None, args.lora or None
    args.force_save = None if args.force_save == "FALSE" else args.force_save
    part = -(-args.batch_size // args.gradient_accumulation_steps)
    args.eval_batch_size = args.eval_batch_size or part
    _check_flags(args)
    args.time_or_name = args.time_or_name or args.exp_name
    return TrainOptions(**{entry.name: getattr(args, entry.name) for entry in fields(TrainOptions)})


def _check_flags(args: argparse.Namespace) -> None:
    """What no single flag can see, and notices about TAPE's flags without meaning."""
    for flag in ("vocab_file", "fp16_opt_level", "debug"):
        if getattr(args, flag):
            print(f"notice: --{flag} means nothing here and is ignored", file=sys.stderr)
    check_tokenizer(args.tokenizer)
    check_log_level(args.log_level)
    if args.save_freq == "improvement" and args.eval_freq <= 0 and args.eval_steps is None:
        raise InputError(f"--save_freq improvement needs evaluations, but --eval_freq {args.eval_freq} means none")
    if args.lora and args.freeze_encoder:
        raise InputError("--lora trains the encoder and --freeze_encoder does not; give one")
    if args.seeds and len(set(args.seeds)) < len(args.seeds):
        raise InputError(f"--seeds {' '.join(map(str, args.seeds))}: should differ, for each has a directory")
    if args.resume and args.force_save:
        raise InputError("--resume goes on with a run and --force_save begins it anew; give one")


def recipe_checks(parser: ArgumentParser) -> dict[str, Callable[[object], object]]:
    """Key of BUILT_IN -> how its flag reads a value."""

    def check(action: argparse.Action) -> Callable[[object], object]:
        def read(value: object) -> object:
            if isinstance(action, argparse.BooleanOptionalAction):
                if not isinstance(value, bool):
                    raise ValueError("should be true or false")
                return value
            value = action.type(str(value)) if action.type else str(value)
            if action.choices and value not in action.choices:
                raise ValueError(f"should be one of {', '.join(action.choices)}")
            return value

        return read

    return {action.dest: check(action) for action in parser._actions if action.dest in BUILT_IN}


def check_task(name: str, tasks: Sequence[str]) -> None:
    """An unknown task is told with the known ones."""
    if name not in tasks:
        raise InputError(f"task {name!r} is unknown; should be one of {', '.join(tasks)}")


def choose_precision(fp16: bool, bf16: bool, device: torch.device) -> torch.dtype:
    """The autocast dtype; float32 means none."""
    if fp16 and bf16:
        raise InputError("--fp16 and --bf16 exclude each other; give one")
    if fp16 and device.type not in ("cuda", "cpu"):
        raise InputError(f"--fp16 needs a CUDA device or a CPU, this run is on {device.type}")
    return torch.float16 if fp16 else torch.bfloat16 if bf16 else torch.float32


def check_resumable(options: TrainOptions, saved: dict, where: Path) -> None:
    """A resumed run must be the run that was started."""
    for name, value in options.to_dict().items():
        if name not in MAY_CHANGE and name in saved and saved[name] != value:
            raise InputError(f"{where}: the run to resume was started with --{name} {saved[name]}, not {value}")
