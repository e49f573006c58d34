"""What the demo spends: the size of the world, of the labelled sets, of the model and of every run, for two budgets.

`full` is `make demo`: under ten minutes on two cores. `small` proves that every part works, in about a minute; its
models learn next to nothing and its report says so.
"""

from dataclasses import dataclass, field

from demo.datasets import TaskSizes
from demo.synthetic import WorldSize

Flags = dict[str, object]  # flag without dashes -> value; True for a switch


@dataclass(frozen=True)
class Budget:
    """Everything a run of the demo is decided by, besides its seed."""

    world: WorldSize
    tasks: TaskSizes
    pretrain: Flags
    finetune: dict[str, Flags] = field(repr=False)  # task -> flags of tape-train, the same for both starting points


def _pretrain(iterations: int, rows: int, learning_rate: float) -> Flags:
    return {
        "num-layers": 3,
        "hidden-size": 128,
        "num-attention-heads": 4,
        "max-position-embeddings": 512,
        "seq-length": 512,
        "hidden-dropout": 0.0,
        "attention-dropout": 0.0,
        "micro-batch-size": rows,
        "global-batch-size": rows,
        "train-iters": iterations,
        "lr": learning_rate,
        "min-lr": learning_rate / 50,
        "lr-decay-style": "linear",
        "lr-warmup-fraction": 0.05,
        "weight-decay": 0.01,
        "clip-grad": 1.0,
        "split": "985,10,5",
        "log-interval": max(1, iterations // 100),
        "eval-interval": max(1, iterations // 10),
        "save-interval": iterations,
    }


def _finetune(steps: dict[str, int], batch: dict[str, int], rates: dict[str, float]) -> dict[str, Flags]:
    return {
        task: {
            "batch_size": batch[task],
            "max_steps": steps[task],
            "eval_steps": max(1, steps[task] // 5),
            "learning_rate": rates[task],
            "num_log_iter": max(1, steps[task] // 10),
            "save_freq": "improvement",
        }
        for task in steps
    }


TASKS = ("contact_prediction", "secondary_structure", "remote_homology", "stability", "fluorescence")  # longest first
TEST_SPLIT = {  # the split that a task's verdict is about
    "secondary_structure": "cb513",
    "contact_prediction": "test",
    "remote_homology": "test_fold_holdout",
    "fluorescence": "test",
    "stability": "test",
}

BUDGETS = {
    "full": Budget(
        world=WorldSize(),
        tasks=TaskSizes(),
        pretrain=_pretrain(2200, 4, 3e-3),
        finetune=_finetune(
            dict(zip(TASKS, (200, 100, 100, 200, 120), strict=True)),
            dict(zip(TASKS, (8, 8, 16, 16, 16), strict=True)),
            dict(zip(TASKS, (1e-3, 5e-4, 5e-4, 5e-4, 5e-4), strict=True)),
        ),
    ),
    "small": Budget(
        world=WorldSize(folds=3, superfamilies=2, families=2),
        tasks=TaskSizes(
            corpus_per_family=100,
            pool_per_family=16,
            test=3,
            fluorescence=(32, 16, 32),
            stability_parents=(1, 1, 1),
        ),
        pretrain=_pretrain(30, 4, 3e-3),
        finetune=_finetune(dict.fromkeys(TASKS, 4), dict.fromkeys(TASKS, 8), dict.fromkeys(TASKS, 1e-3)),
    ),
}
