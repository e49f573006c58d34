"""Finetune a pretrained protein model (or random weights, the baseline) on one TAPE task.

    tape-train transformer secondary_structure --from_pretrained MODEL_DIR --data_dir data --output_dir RUN_DIR \\
        --batch_size 32 --learning_rate 1e-4 --num_train_epochs 10 --holdout 0.1 --patience 3 --bf16
    tape-train ... --seeds 0 1 2                    RUN_DIR/seed0, seed1, seed2: three ordinary runs in turn
    tape-train ... --resume                         goes on where the run (or the runs of --seeds) stopped; so does the
                                                    same line without it where the run was cut off
    torchrun --nproc-per-node 4 -m tape.train ...   the same on four devices, as does tape-train-distributed

What a run leaves in RUN_DIR is in tape.runs.run_dir. args.json has the flags, the recipe and where each value
came from, where the weights came from, how the validation proteins were chosen, the best step and, at the end, what it
took. What must hold: with --holdout the valid split is never opened; RUN_DIR is whole at every instant; only rank 0
writes.
"""

import shlex
import sys
from collections.abc import Sequence
from functools import partial

from proteinlm import errors
from tape.finetuning.options import parse_options, require_files
from tape.runs.flags import start_logging
from tape.runs.plugins import load_plugins, model_types, task_names


def main(argv: Sequence[str] | None = None) -> int:
    load_plugins(argv)
    options = parse_options(argv, task_names(), model_types())
    require_files(options)
    start_logging(options.log_level)
    command = shlex.join(["tape-train", *map(str, sys.argv[1:] if argv is None else argv)])
    from tape.finetuning.runs import finetune

    return finetune(options, command, errors.debugging(argv))


cli = partial(errors.run, main, resumes=True)  # the console command

if __name__ == "__main__":
    sys.exit(cli())
