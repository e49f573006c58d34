"""Toy TAPE data that a tiny model can learn in seconds: the labels follow from the residues. For tests.

write_split(root, "stability", "train", count=64, seed=0)
config = write_config(root / "config.json")
"""

import json
from pathlib import Path

import numpy as np
from tape_lmdb import write_lmdb

RESIDUES = np.array(list("ACDEFGHIKLMNPQRSTVWY"))
FOLDERS = {
    "secondary_structure": "secondary_structure/secondary_structure",
    "contact_prediction": "proteinnet/proteinnet",
    "remote_homology": "remote_homology/remote_homology",
    "fluorescence": "fluorescence/fluorescence",
    "stability": "stability/stability",
    "masked_language_modeling": "pfam/pfam",
}
TINY = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 64,
}


def toy_labels(task: str, sequence: str, rng: np.random.Generator) -> dict:
    """The fields of one protein; every label is a function of its residues (but for coordinates)."""
    letters = np.array(list(sequence))
    if task == "secondary_structure":
        classes = np.searchsorted(RESIDUES, letters) % 3
        return {"ss3": classes, "valid_mask": np.ones(len(letters), bool)}
    if task == "contact_prediction":
        steps = rng.normal(size=(len(letters), 3))
        steps *= 3.8 / np.linalg.norm(steps, axis=1, keepdims=True)
        return {"tertiary": np.cumsum(steps, 0).astype(np.float32), "valid_mask": np.ones(len(letters), bool)}
    if task == "remote_homology":
        return {"fold_label": 7 if (letters == "K").mean() > 0.2 else 3}
    if task == "fluorescence":
        return {"log_fluorescence": np.array([4.0 * (letters == "K").mean()], np.float32)}
    if task == "stability":
        return {"stability_score": np.array([4.0 * (letters == "K").mean()], np.float32)}
    return {"family": 0, "clan": 0}


def write_split(root: Path, task: str, split: str, count: int, seed: int, longest: int = 40) -> Path:
    """An LMDB of `count` proteins of 20 ... longest residues, with anything from few to many lysines."""
    rng = np.random.default_rng(seed)
    directory = root / f"{FOLDERS[task]}_{split}.lmdb"
    records = []
    for number in range(count):
        length = int(rng.integers(20, longest + 1))
        letters = np.where(rng.random(length) < rng.random() / 2, "K", rng.choice(RESIDUES, length))
        sequence = "".join(letters)
        record = {"primary": sequence, "protein_length": length, "id": str(number).encode()}
        records.append(record | toy_labels(task, sequence, rng))
    return write_lmdb(directory, records)


def write_data(root: Path, task: str, train: int = 64, valid: int = 24, longest: int = 40) -> Path:
    """train and valid of one task below `root`, which is also returned."""
    write_split(root, task, "train", train, seed=1, longest=longest)
    write_split(root, task, "valid", valid, seed=2, longest=longest)
    return root


def build_model(task, directory: Path | None = None, config=None, **changes):
    """The task's model: a directory's weights, or random ones of `config`."""
    return task.model.from_pretrained(directory, config=config, num_labels=task.num_labels, **changes)


def write_config(path: Path, **changes) -> Path:
    """config.json of a tiny model."""
    path.write_text(json.dumps(TINY | changes))
    return path
