"""The flags of `tape-train`, TAPE's names where TAPE has one: each a field of one frozen record, kept with the run.

A flag of the recipe (tape.recipes) has no default of its own: what neither the command line nor a recipe gives is
BUILT_IN's. Flags that other commands have too are in tape.runs.flags.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path

from proteinlm.errors import ArgumentParser, InputError
from proteinlm.files import reread
from proteinlm.model_dir.find import require_model
from proteinlm.tables import is_table
from tape.data.records import find_data_file
from tape.own_data.data import Choice
from tape.own_data.kinds import KINDS
from tape.own_data.read import read_own_data
from tape.recipes import BUILT_IN, resolve
from tape.runs.flags import (
    DEVICE_FLAGS,
    add_flags,
    add_ignored_flags,
    check_flags,
    count,
    fraction,
    non_negative,
    positive,
    precision_name,
)
from tape.runs.names import FOLDERS, HEADS, require_model_type
from tape.runs.plugins import model_types

MODEL_TYPES = ("transformer",)
IGNORED = ("vocab_file", "fp16_opt_level")  # TAPE's
# A resumed run may change these; every other flag makes another run.
MAY_CHANGE = (
    *(
        "output_dir",
        "data_dir",
        "csv",
        "labels",
        "embeddings_dir",
        "num_workers",
        "log_dir",
        "log_level",
        "device",
        "resume",
        "num_log_iter",
        "save_freq",
    ),
    *("plugin", "recipe", "force_save", "recompute"),
)


def _patience(text: str) -> int:
    """An int of at least 1, or -1."""
    value = int(text)
    if value < 1 and value != -1:
        raise argparse.ArgumentTypeError(f"{text} should be at least 1, or -1 for never")
    return value


def _save_freq(text: str) -> int | str:
    """'improvement' or an int of at least 1."""
    return text if text == "improvement" else positive(text)


def flag(group: str, doc: str, *spellings: str, **argument):
    """A field that is a flag: where --help shows it, its line there, other spellings, add_argument's keywords."""
    return field(metadata={"group": group, "spellings": spellings, "argument": argument | {"help": doc}})


GROUPS = ("model", "data", "one's own data", "recipe", "evaluation and files")
model_flag, data_flag, own_flag, recipe_flag, run_flag = (partial(flag, group) for group in GROUPS)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Everything that decides a finetuning run. Written to args.json."""

    model_type: str
    task: str
    from_pretrained: str | None = model_flag("TAPE model directory; absent: random weights, the baseline")
    model_config_file: str | None = model_flag("config.json for random weights (or to check --from_pretrained by)")
    head: str | None = model_flag("default: the model directory's, else proteinlm", choices=HEADS)
    tokenizer: str
    plugin: list[str] = field(default_factory=list)

    data_dir: str = data_flag("holds <task>/<task>_<split>.lmdb", default="./data")
    output_dir: str | None = data_flag("the run's directory; the best weights end up in it (default: one in ./results)")
    valid_split: str = data_flag("split that early stopping and the best weights go by", default="valid")
    holdout: float | None = data_flag("hold this fraction of train out by cluster instead; 0: do not", type=float)
    holdout_seed: int = data_flag("of --holdout; the same for every --seed", type=count, default=0)
    max_length: int | None
    too_long: str

    csv: str | None = own_flag("the table (.csv, .tsv or FASTA, also .gz); the same as giving it as the task")
    labels: str | None = own_flag("FASTA of a label a residue, beside a FASTA of sequences")
    sequence: str | None = own_flag("column of the sequences")
    target: Sequence[str] | None = own_flag("column of the labels; several: a class each, with 1 and 0", nargs="+")
    id: str | None = own_flag("column of the proteins' names; none: there is none")
    split_column: str | None = own_flag("column of train, valid (val, dev) and test; none: divide by cluster")
    kind: str | None = own_flag("what the labels are (default: as they look, which is printed)", choices=KINDS)
    ignore: Sequence[str] | None = own_flag("labels to leave out; a residue's: not scored", nargs="+", metavar="LABEL")
    test_holdout: float | None = own_flag("fraction for test where no column says it (0.1); 0: no test", type=fraction)
    embeddings_dir: str | None = own_flag("where a frozen encoder's embeddings are kept (default: beside the table)")

    recipe: dict = field(default_factory=dict)  # {"name": --recipe, "from": {key: flag, a recipe, built-in}}
    batch_size: int = recipe_flag("proteins an optimizer step, on all devices together", type=positive)
    gradient_accumulation_steps: int = recipe_flag("parts a batch is computed in", type=positive)
    num_train_epochs: int | None = recipe_flag("times that every protein is seen", type=positive)
    max_steps: int | None = recipe_flag("stop after this many optimizer steps instead", type=positive)
    learning_rate: float = recipe_flag("peak; then linear decay to 0", type=non_negative)
    warmup_steps: int | None = recipe_flag("instead of --warmup_fraction", type=count)
    warmup_fraction: float | None = recipe_flag("of all steps", type=fraction)
    weight_decay: float = recipe_flag("of AdamW; not on biases and norms", type=non_negative)
    max_grad_norm: float = recipe_flag("0: no clipping", type=non_negative)
    encoder_learning_rate_scale: float = recipe_flag("factor for the encoder", type=non_negative)
    layer_decay: float = recipe_flag("each layer's rate is this times the next one's; 1: off", type=fraction)
    freeze_layers: int = recipe_flag("do not train embeddings and the first N layers", type=count, metavar="N")
    freeze_encoder: bool = recipe_flag(
        "train the head alone, the encoder in eval mode", action=argparse.BooleanOptionalAction
    )
    pooling: str | None = recipe_flag("what a whole protein's head sees", choices=("first", "mean"))
    lora: int | None = recipe_flag("train rank-RANK updates of the encoder; 0: off", type=count, metavar="RANK")
    lora_alpha: float | None = recipe_flag("updates are scaled by alpha / RANK (default: 2 RANK)", type=non_negative)
    lora_dropout: float = recipe_flag("of the updates' input", type=fraction)
    patience: int = recipe_flag("evaluations without improvement before stopping; -1: never", type=_patience)

    seed: int = run_flag("of weights, batches and dropout", type=count, default=42)
    seeds: Sequence[int] | None = run_flag("a run each, in OUTPUT_DIR/seed0 ...", type=count, nargs="+")
    eval_freq: int = run_flag("epochs between evaluations; 0 or less: none at all", type=int, default=1)
    eval_steps: int | None = run_flag("optimizer steps between evaluations instead", type=positive)
    eval_batch_size: int = run_flag("proteins at a time (default: the size of a part)", type=positive)
    save_freq: int | str = run_flag("evaluations between saved states, or 'improvement'", type=_save_freq, default=1)
    num_log_iter: int = run_flag("optimizer steps between log lines", type=positive, default=20)
    log_dir: str | None = run_flag("TensorBoard directory (default: none)")
    log_level: str
    exp_name: str | None = run_flag("as in TAPE, the run's directory is <output_dir>/<this>")
    time_or_name: str | None = run_flag("the run's name, shown in tables; runs of other seeds share it")
    resume: bool = run_flag("go on from <output_dir>/last", "--resume_from_checkpoint", action="store_true")
    force_save: str | None = run_flag(
        "begin a run anew; with DIR: write the untrained model there, stop", nargs="?", const="TRUE", metavar="DIR"
    )
    recompute: bool = run_flag("less memory: run the encoder again going backward", action="store_true")
    loss_scale: float = run_flag("of --fp16; 0: dynamic", type=non_negative, default=0.0)
    device: str
    bf16: bool
    fp16: bool
    num_workers: int

    @property
    def evaluates(self) -> bool:
        """Whether there is an evaluation pass at all (TAPE: not with --eval_freq 0)."""
        return self.eval_freq > 0 or self.eval_steps is not None


def build_parser(model_types: Sequence[str] = MODEL_TYPES) -> ArgumentParser:
    parser = ArgumentParser(
        "tape-train", description="Finetune a protein model on a TAPE task or your own table.", intermixed=True
    )
    parser.add_argument("model_type", help=", ".join(model_types))
    parser.add_argument("task", nargs="?", help="secondary_structure, remote_homology ... or a table: my_task.csv")
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    groups["recipe"].description = "Their defaults are those of --recipe, then of tape/recipes/<task>.yaml."
    groups["recipe"].add_argument("--recipe", default="default", metavar="default|none|FILE", help="more defaults")
    seeds = groups["evaluation and files"].add_mutually_exclusive_group()
    for entry in [entry for entry in fields(TrainOptions) if entry.metadata]:
        container = seeds if entry.name in ("seed", "seeds") else groups[entry.metadata["group"]]
        container.add_argument(f"--{entry.name}", *entry.metadata["spellings"], **entry.metadata["argument"])
    add_flags(groups["model"], "tokenizer", "plugin")
    add_flags(groups["data"], "max_length", "too_long")
    add_flags(groups["evaluation and files"], "log_level", *DEVICE_FLAGS, "num_workers")
    parser.set_defaults(too_long="error")
    add_ignored_flags(parser, IGNORED)
    return parser


def parse_options(
    argv: Sequence[str] | None, tasks: Sequence[str], model_types: Sequence[str] = MODEL_TYPES
) -> TrainOptions:
    """argv -> TrainOptions; wrong flags end the process with one line and status 2."""
    parser = build_parser(model_types)
    args = parser.parse_args(argv)
    args.plugin = [str(Path(file).resolve()) for file in args.plugin]  # as commands elsewhere find it
    for name in ("task", "csv", "labels"):
        vars(args)[name] = (word := getattr(args, name)) and reread(word, ".fasta")
    recipe = _own_table(args) if args.csv or is_table(args.task or "") else args.task
    if args.csv is None:
        _refuse_unknown_task(args, tasks)
    flags = {key: getattr(args, key) for key in BUILT_IN}
    values, sources = resolve(recipe, args.recipe, flags, recipe_checks(parser))
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
    args.eval_batch_size = args.eval_batch_size or -(-args.batch_size // args.gradient_accumulation_steps)
    _check_flags(args)
    args.time_or_name = args.time_or_name or args.exp_name
    return TrainOptions(**{entry.name: getattr(args, entry.name) for entry in fields(TrainOptions)})


def require_files(options: TrainOptions) -> None:
    """InputError for a file of a run that is not there: what can be told before torch is imported."""
    require_model_type(options.model_type, model_types())
    require_model(options.from_pretrained, options.model_config_file, options.model_type)
    folder = FOLDERS.get(options.task)
    if options.csv is None and folder and options.force_save in (None, "TRUE"):
        find_data_file(options.data_dir, folder, folder, "train")


def table_choice(options: argparse.Namespace | TrainOptions) -> Choice:
    """What the flags say of the user's table."""
    target, ignore = tuple(options.target or ()) or None, tuple(options.ignore or ())
    columns = (options.sequence, target, options.id, options.split_column)
    return Choice(*columns, options.kind, ignore, options.labels)


def _own_table(args: argparse.Namespace) -> str:
    """Look at the user's table: its kind is the name of its recipe, and the task's name is settled."""
    if args.csv and is_table(args.task or ""):
        raise InputError(f"{args.task} and --csv {args.csv}: one table at a time; give one")
    named = None if args.csv is None else args.task
    args.csv = args.csv or args.task
    data = read_own_data(args.csv, table_choice(args))
    args.task = named or data.name
    return f"own_data/{data.kind}"


def _refuse_unknown_task(args: argparse.Namespace, tasks: Sequence[str]) -> None:
    if args.task not in tasks:
        named = f"task {args.task!r} is unknown" if args.task else "no task"
        raise InputError(f"{named}; should be one of {', '.join(tasks)}, or a table (my_task.csv)")
    for name in ("labels", "sequence", "target", "id", "split_column", "kind", "ignore", "test_holdout"):
        if getattr(args, name) is not None:
            raise InputError(f"--{name}: is of a table of one's own, and {args.task} is none; give --csv FILE")


def _check_flags(args: argparse.Namespace) -> None:
    """What no single flag can see, and notices about TAPE's flags without meaning."""
    check_flags(args, IGNORED)
    precision_name(args.fp16, args.bf16)
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

    return {action.dest: partial(_read, action) for action in parser._actions if action.dest in BUILT_IN}


def _read(action: argparse.Action, value: object) -> object:
    """A recipe's value as the flag reads it; a ValueError says what it should be."""
    if isinstance(action, argparse.BooleanOptionalAction):
        if not isinstance(value, bool):
            raise ValueError("should be true or false")
        return value
    value = action.type(str(value)) if action.type else str(value)
    if action.choices and value not in action.choices:
        raise ValueError(f"should be one of {', '.join(action.choices)}")
    return value


def changed_flag(options: TrainOptions, saved: dict) -> str:
    """'' where a run of these flags is the one that was started, else '--seed 1, not 2' of the first that differs."""
    for name, value in asdict(options).items():
        if name not in MAY_CHANGE and name in saved and saved[name] != value:
            return f"--{name} {saved[name]}, not {value}"
    return ""
