"""The published numbers, and how the measurement of each differs from ours. Pure data and comparisons.

    reasons(result, PUBLISHED["stability"]["ProteinLM-3B"])     ["split: ours valid, published test", ...]

Sources: TAPE's numbers are those of Rao et al. 2019 and of its repository's leaderboard (which names the contact
metric: L/5, medium and long range); ProteinLM's are those of Xiao et al. 2021. What must hold: a number without a
reason against it may be compared with ours; every known difference of split, data, metric, head, length and training is
named.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

SYSTEMS = ("TAPE one-hot", "TAPE Transformer", "ProteinLM-200M", "ProteinLM-3B")
METRICS = {
    "precision_at_l5": "P@L/5, separation >= 6, mean over proteins",
    "precision_at_l5_medium_long": "P@L/5, separation >= 12, mean over proteins",
    "accuracy": "accuracy",
    "spearmanr": "Spearman's rho",
    "perplexity": "perplexity",
}
TASK_METRICS = {
    ("remote_homology", "accuracy"): "top-1 accuracy, 1,195 folds",
    ("secondary_structure", "accuracy"): "3-class accuracy over residues",
    ("ss_q8", "accuracy"): "8-class accuracy over residues",
    ("masked_language_modeling", "accuracy"): "accuracy over masked residues",
}
# Task -> proteins of TAPE's train, the split that the numbers were measured on, its proteins, the metric, the values in
# the order of SYSTEMS.
TASKS = {
    "contact_prediction": (25_299, "test", 40, "precision_at_l5", (0.29, 0.36, 0.52, 0.75)),
    "remote_homology": (12_312, "test_fold_holdout", 718, "accuracy", (0.09, 0.21, 0.26, 0.30)),
    "secondary_structure": (8_678, "cb513", 513, "accuracy", (0.69, 0.73, 0.75, 0.79)),
    "fluorescence": (21_446, "test", 27_217, "spearmanr", (0.14, 0.68, 0.68, 0.68)),
    "stability": (53_614, "test", 12_851, "spearmanr", (0.19, 0.73, 0.77, 0.79)),
}
TAPE_CONTACTS = "P@L/5 of separation >= 12"
PROTEINLM_CONTACTS = "P@L/5 of separation >= 6, contacts pooled over a batch and batches averaged"
TAPE_HEADS = {  # (of which of our heads it is the like, what it was)
    "contact_prediction": (None, "TAPE's paper's (30 residual blocks on concatenated pairs)"),
    "secondary_structure": (None, "TAPE's convolutions"),
}


@dataclass(frozen=True)
class Published:
    """One number of one system on one task."""

    task: str
    value: float
    train: int  # proteins of TAPE's train
    split: str
    proteins: int  # of that split
    metric: str  # the metric's key here; its definition differs where `definition` is set
    head: str | None  # which of our heads it is like; None: none
    head_name: str
    definition: str = ""
    dropped: str = ""  # proteins that were left out
    others: tuple[str, ...] = ()  # further reasons why the measurement is another


def _published(task: str, system: str, value: float) -> Published:
    train, split, proteins, metric, _ = TASKS[task]
    entry, contacts = partial(Published, task, value, train, split, proteins), task == "contact_prediction"
    if system.startswith("TAPE"):
        head, name = TAPE_HEADS.get(task, ("tape", "TAPE's (512 hidden units)"))
        metric = "precision_at_l5_medium_long" if contacts else metric
        return entry(metric, head, name, TAPE_CONTACTS if contacts else "")
    limited = task in ("contact_prediction", "remote_homology", "secondary_structure")
    dropped = "proteins over 512 residues were left out" if limited else ""
    others = ("its finetuning threw the encoder's final LayerNorm away",)
    return entry(metric, "proteinlm", "proteinlm", PROTEINLM_CONTACTS if contacts else "", dropped, others)


PUBLISHED: dict[str, dict[str, Published]] = {
    task: {system: _published(task, system, value) for system, value in zip(SYSTEMS, values, strict=True)}
    for task, (*_, values) in TASKS.items()
}


def metric_definition(task: str, metric: str) -> str:
    """What a metric of a result file is, in words."""
    return TASK_METRICS.get((task, metric)) or METRICS.get(metric, metric)


def reasons(result: Mapping, published: Published) -> list[str]:
    """Why a number of ours and a published one are not the same measurement, one line each.

    result: task, split, metric, head, n_examples, train_proteins, n_seeds, truncated, early (training was cut short).
    """
    differences = []
    if result["split"] != published.split:
        differences.append(f"split: ours {result['split']}, published {published.split}")
    elif result["n_examples"] != published.proteins:
        differences.append(f"proteins: ours {result['n_examples']:,}, published {published.proteins:,}")
    train = result.get("train_proteins")
    if train is not None and train != published.train:
        differences.append(f"train: ours {train:,} proteins, published {published.train:,}")
    if result["metric"] != published.metric or "pooled" in published.definition:
        definition = published.definition or metric_definition(published.task, published.metric)
        own = metric_definition(result["task"], result["metric"])
        differences.append(f"metric: ours {own}, published {definition}")
    if result["head"] != published.head:
        differences.append(f"head: ours {result['head']}, published {published.head_name}")
    cropped = (result.get("truncated") or {}).get("proteins_cropped", 0)
    if cropped:
        differences.append(f"length: ours cropped {cropped} proteins to {result['truncated']['max_length']} residues")
    if published.dropped:
        differences.append(f"length: published, {published.dropped}")
    number = result.get("n_seeds", 1)
    differences.append(f"seeds: ours {number}, published one run without a spread")
    if result.get("early"):
        differences.append(f"training: ours {result['early']}")
    return differences + [f"encoder: published, {reason}" for reason in published.others]
