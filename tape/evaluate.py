"""One finetuned model on one or more splits: numbers over whole splits, with what they were taken over.

    tape-eval transformer stability RUN_DIR --data_dir data --split test --metrics spearmanr --batch_size 64
    tape-eval transformer secondary_structure RUN_DIR --split all --save_predictions parquet
    torchrun --nproc-per-node 4 -m tape.evaluate transformer contact_prediction RUN_DIR --split test

writes RUN_DIR/<task>-<split>.json: every metric of the task, those asked for with a 95% bootstrap interval over
proteins, n_examples, what was cropped, head, checkpoint, seed, steps and the run's flags. `--split all` is every
evaluation split that DATA_DIR holds. --save_predictions adds each protein's scores (tape.scoring.files),
--results_pkl TAPE's results.pkl.

What must hold: nothing is left out of a split; no number depends on --batch_size, padding or the number of processes.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from proteinlm import errors
from proteinlm.errors import InputError
from proteinlm.files import require_file, reread
from tape.data.records import find_data_file
from tape.runs.flags import (
    DEVICE_FLAGS,
    add_flags,
    add_ignored_flags,
    check_flags,
    positive,
    precision_name,
    start_logging,
)
from tape.runs.names import FOLDERS, require_model_type
from tape.runs.plugins import load_plugins, model_types
from tape.runs.results import read_run, require_directory
from tape.scoring.files import FORMS, check_form

IGNORED = ("model_config_file", "vocab_file", "output_dir", "seed", "log_dir")  # TAPE's


def build_parser() -> errors.ArgumentParser:
    parser = errors.ArgumentParser("tape-eval", description="Score a finetuned model on whole splits.", intermixed=True)
    parser.add_argument(
        "model_type", help="transformer, huggingface, tape_transformer, lstm, resnet, onehot or a plugin's"
    )
    parser.add_argument("task", nargs="?", help="the task that RUN_DIR was finetuned on (default: as RUN_DIR says)")
    parser.add_argument("run_dir", metavar="RUN_DIR", help="what tape-train wrote")
    parser.add_argument("--data_dir", default="./data", help="holds <task>/<task>_<split>.lmdb or .json")
    parser.add_argument("--split", nargs="+", default=["test"], help="one or more; all: every evaluation split")
    parser.add_argument("--csv", help="of a run on your own table: another table to score, with the same columns")
    parser.add_argument("--ignore", nargs="+", default=[], metavar="LABEL", help="of --csv: labels to leave out")
    parser.add_argument("--metrics", nargs="*", help="which to print (TAPE's names, L5 too); the file has all of them")
    parser.add_argument("--batch_size", type=positive, default=32, help="proteins at a time; changes no number")
    parser.add_argument("--save_predictions", nargs="?", const="npz", choices=FORMS, help="each protein's scores (npz)")
    parser.add_argument("--results_pkl", action="store_true", help="also TAPE's results.pkl, of the last split")
    add_flags(parser, "tokenizer", "log_level", "plugin", "max_length", "too_long", *DEVICE_FLAGS, "num_workers")
    add_ignored_flags(parser, IGNORED)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    load_plugins(argv)
    args = build_parser().parse_args(argv)
    directory = Path(args.run_dir)
    require_directory(directory)
    if not directory.exists():
        raise InputError(f"{directory}: no such directory; should be one that tape-train wrote")
    args.csv = args.csv and require_file(reread(args.csv, ".fasta"))
    run = read_run(directory)
    check_flags(args, IGNORED)
    precision_name(args.fp16, args.bf16)
    if not run.get("args", {}).get("plugin"):
        require_model_type(args.model_type, model_types())
    folder = FOLDERS.get(args.task)
    if folder and not (args.csv or Path(args.data_dir).exists()):
        find_data_file(args.data_dir, folder, folder, args.split[0])
    check_form(args.save_predictions)
    start_logging(args.log_level)
    from tape.scoring.evaluation import evaluate

    return evaluate(args, run)


cli = partial(errors.run, main)  # the console command

if __name__ == "__main__":
    sys.exit(cli())
