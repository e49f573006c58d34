"""tape.datasets as songlab's users know it: constructors, items and batches worked by hand, errors, the raw files."""

import json

import numpy as np
import pytest
import torch
from tape_lmdb import write_lmdb
from torch.utils.data import DataLoader, Dataset

from proteinlm.errors import InputError
from tape import TAPETokenizer, datasets
from tape.metrics import IGNORE
from tape.tokenizers import IUPAC_CODES, IUPAC_VOCAB

RECORDS = [
    {
        "id": b"first",
        "primary": "MKVLAAGW",
        "protein_length": 8,
        "clan": 7,
        "family": 9,
        "log_fluorescence": np.array([1.25], np.float32),
        "stability_score": np.array([-0.5]),
        "fold_label": 3,
        "ss3": np.array([0, 0, 1, 1, 2, 2, 0, 1]),
        "ss8": np.array([7, 0, 1, 2, 3, 4, 5, 6]),
        "tertiary": np.array([[2.0 * i, 0, 0] for i in range(7)] + [[2.0, 7.99, 0]]),
        "valid_mask": np.array([False] + [True] * 7),
    },
    {
        "primary": "ACD",
        "protein_length": 3,
        "clan": 1,
        "family": 2,
        "log_fluorescence": np.array([2.5], np.float32),
        "stability_score": np.array([0.25]),
        "fold_label": 1194,
        "ss3": np.array([2, 1, 0]),
        "ss8": np.array([0, 7, 3]),
        "tertiary": np.zeros((3, 3)),
        "valid_mask": np.ones(3, bool),
    },
]
IDS = [[2, 16, 14, 25, 15, 5, 5, 11, 26, 3], [2, 5, 7, 8, 3]]  # <cls> M K V L A A G W <sep>; <cls> A C D <sep>
PADDED = [IDS[0], IDS[1] + [0] * 5]
MASK = [[1] * 10, [1] * 5 + [0] * 5]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Every dataset's valid split with the two proteins."""
    directory = tmp_path_factory.mktemp("data")
    for folder in ("pfam", "fluorescence", "stability", "remote_homology", "secondary_structure", "proteinnet"):
        write_lmdb(directory / folder / f"{folder}_valid.lmdb", RECORDS)
    return directory


CONTACTS = np.full((8, 8), -1)
CONTACTS[1, 7] = CONTACTS[7, 1] = (
    1  # 7.99 Angstrom apart; 0 is not valid, and all others are nearer than 6 along the chain
)
CASES = {
    "FluorescenceDataset": ([1.25, 2.5], [[1.25], [2.5]], torch.float32),
    "StabilityDataset": ([-0.5, 0.25], [[-0.5], [0.25]], torch.float32),
    "RemoteHomologyDataset": ([3, 1194], [3, 1194], torch.int64),
    "SecondaryStructureDataset": (
        [[-1, 0, 0, 1, 1, 2, 2, 0, 1, -1], [-1, 2, 1, 0, -1]],
        [[-1, 0, 0, 1, 1, 2, 2, 0, 1, -1], [-1, 2, 1, 0, -1, -1, -1, -1, -1, -1]],
        torch.int64,
    ),
    "SecondaryStructure8Dataset": (
        [[-1, 7, 0, 1, 2, 3, 4, 5, 6, -1], [-1, 0, 7, 3, -1]],
        [[-1, 7, 0, 1, 2, 3, 4, 5, 6, -1], [-1, 0, 7, 3, -1, -1, -1, -1, -1, -1]],
        torch.int64,
    ),
    "ProteinnetDataset": ([CONTACTS.tolist(), np.full((3, 3), -1).tolist()], None, torch.int64),
}


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_items_and_batches(root, name, in_memory):
    targets, collated, dtype = CASES[name]
    data = getattr(datasets, name)(root, "valid", "iupac", in_memory)
    assert isinstance(data, Dataset) and len(data) == 2
    contacts = name == "ProteinnetDataset"
    for index in range(2):
        token_ids, input_mask, target, *rest = data[index]
        assert (token_ids.tolist(), input_mask.tolist()) == (IDS[index], [1] * len(IDS[index]))
        assert np.asarray(target).tolist() == targets[index] and rest == ([[8, 3][index]] if contacts else [])
    with pytest.raises(IndexError):
        data[2]
    batch = next(iter(DataLoader(data, batch_size=2, collate_fn=data.collate_fn)))
    keys = ["input_ids", "input_mask", "targets"] + ["protein_length"] * contacts
    assert list(batch) == keys and sorted(dict(**batch)) == sorted(keys) and "ids" not in batch
    assert batch["input_ids"].tolist() == PADDED and batch["input_mask"].tolist() == MASK
    assert batch["targets"].dtype == dtype and batch["input_ids"].dtype == torch.int64
    if contacts:
        collated = np.stack([CONTACTS, np.full((8, 8), -1)]).tolist()
        assert batch["valid_mask"].tolist() == [RECORDS[0]["valid_mask"].tolist(), [True] * 3 + [False] * 5]
    assert batch["targets"].tolist() == collated and batch["protein_length"].tolist() == [8, 3]
    assert batch["ids"] == ["first", "1"]  # beside TAPE's keys


@pytest.mark.parametrize("name", CASES)
def test_plain_tuples_collate_too(root, name):
    """A user's own items in TAPE's form: nothing but the tuple is needed."""
    data = getattr(datasets, name)(root, "valid")
    named, plain = data.collate_fn([data[0], data[1]]), data.collate_fn([tuple(data[0]), tuple(data[1])])
    assert all(torch.equal(named[key], plain[key]) for key in named) and plain["ids"] == ["0", "1"]


def test_batches_survive_workers_and_moves(root):
    data = datasets.SecondaryStructureDataset(root, "valid")
    batch = next(iter(DataLoader(data, batch_size=2, collate_fn=data.collate_fn, num_workers=1)))
    moved = batch.to(torch.device("meta"))
    assert list(moved) == list(batch) and moved["targets"].is_meta and moved["valid_mask"].is_meta
    assert moved["ids"] == batch["ids"] == ["first", "1"] and batch.get("nothing") is None


def test_language_modeling(root):
    data = datasets.LanguageModelingDataset(root, "valid")
    token_ids, input_mask, clan, family = data[0]
    assert (token_ids.tolist(), input_mask.tolist(), clan, family) == (IDS[0], [1] * 10, 7, 9)
    batch = data.collate_fn([data[0], data[1]])
    assert list(batch) == ["input_ids", "input_mask", "targets"] and batch["input_ids"].tolist() == PADDED
    assert batch["targets"].tolist() == [IDS[0], IDS[1] + [IGNORE] * 5]
    masked = datasets.MaskedLanguageModelingDataset(root, "valid")
    token_ids, _, labels, clan, family = masked[0]
    hidden = labels != -1
    assert (clan, family) == (7, 9) and np.array(IDS[0])[hidden].tolist() == labels[hidden].tolist()
    assert np.array(IDS[0])[~hidden].tolist() == token_ids[~hidden].tolist() and hidden.any()
    assert list(masked.collate_fn([masked[0], masked[1]])) == ["input_ids", "input_mask", "targets"]


@pytest.mark.parametrize("name", [*CASES, "LanguageModelingDataset", "MaskedLanguageModelingDataset"])
def test_an_unknown_split_is_a_value_error(root, name):
    with pytest.raises(ValueError, match="no split 'nope'; it has train"):
        getattr(datasets, name)(root, "nope")


def test_missing_ss8_is_said_in_one_line(tmp_path):
    path = tmp_path / "secondary_structure" / "secondary_structure_train.json"
    path.parent.mkdir()
    path.write_text(json.dumps([{"primary": "ACD", "ss3": [0, 1, 2]}]))
    data = datasets.SecondaryStructure8Dataset(tmp_path, "train")
    with pytest.raises(InputError, match=r"secondary_structure_train.json record 0: no ss8; 8-state structure needs"):
        data[0]
    assert datasets.SecondaryStructureDataset(tmp_path, "train")[0][2].tolist() == [-1, 0, 1, 2, -1]


# ---- raw files


@pytest.fixture
def files(root, tmp_path):
    """One protein file of every kind: {kind: path}."""
    (tmp_path / "two.fasta").write_text(">first some words\nMKVL\nAAGW\n>\nacd\n")
    (tmp_path / "two.json").write_text(json.dumps([{"id": "first", "primary": "MKVLAAGW"}, {"primary": "ACD"}]))
    folder = tmp_path / "npz"
    folder.mkdir()
    for name, letters in (("first", "MKVLAAGW"), ("second", "ACD")):
        np.savez(folder / f"{name}.npz", primary=letters)
    return {
        "LMDBDataset": root / "pfam" / "pfam_valid.lmdb",
        "FastaDataset": tmp_path / "two.fasta",
        "JSONDataset": tmp_path / "two.json",
        "NPZDataset": folder,
    }


@pytest.mark.parametrize("kind", ["LMDBDataset", "FastaDataset", "JSONDataset", "NPZDataset"])
def test_the_factory_knows_the_file(files, kind):
    for data in (datasets.dataset_factory(str(files[kind])), getattr(datasets, kind)(files[kind], in_memory=True)):
        assert type(data) is getattr(datasets, kind) and isinstance(data, Dataset) and len(data) == 2
        assert [str(data[i]["primary"]) for i in range(2)] == ["MKVLAAGW", "ACD"]
        assert (data[0]["id"], data[1]["id"]) == ("first", "second" if kind == "NPZDataset" else "1")
        for wrong in (2, -1):
            with pytest.raises(IndexError):
                data[wrong]
    assert datasets.FastaDataset(files["FastaDataset"])[0]["protein_length"] == 8


def test_raw_files_that_are_wrong(tmp_path, files):
    with pytest.raises(FileNotFoundError, match=r"none\.lmdb"):
        datasets.dataset_factory(tmp_path / "none.lmdb")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"a\.txt: a data file of kind \.txt; should be \.lmdb, \.json or \.fasta"):
        datasets.dataset_factory(tmp_path / "a.txt")
    (tmp_path / "a.json").write_text('{"primary": "ACD"}')
    with pytest.raises(TypeError, match=r"a\.json: a JSON list of records was expected"):
        datasets.JSONDataset(tmp_path / "a.json")
    (tmp_path / "b.json").write_text("[3]")
    with pytest.raises(TypeError, match="record 0: a dict was expected"):
        datasets.JSONDataset(tmp_path / "b.json")[0]
    assert len(datasets.NPZDataset(files["NPZDataset"], split_files=["first.npz"])) == 1
    with pytest.raises(FileNotFoundError, match="1 of the files asked for missing"):
        datasets.NPZDataset(files["NPZDataset"], split_files=["first.npz", "third.npz"])


def test_embed_dataset(files):
    data = datasets.EmbedDataset(files["FastaDataset"], tokenizer="iupac")
    name, token_ids, input_mask = data[1]
    assert (name, token_ids.tolist(), input_mask.tolist()) == ("1", IDS[1], [1] * 5)
    batch = data.collate_fn([data[0], data[1]])
    assert list(batch) == ["ids", "input_ids", "input_mask"] and batch["ids"] == ["first", "1"]
    assert batch["input_ids"].tolist() == PADDED and batch["input_mask"].tolist() == MASK


def test_padding():
    arrays = [np.array([[1, 2]], np.int32), np.array([[3], [4]], np.int32)]
    padded = datasets.pad_sequences(arrays, -1)
    assert padded.tolist() == [[[1, 2], [-1, -1]], [[3, -1], [4, -1]]] and padded.dtype == np.int32
    tensors = datasets.pad_sequences([torch.ones(1), torch.ones(2)], 0.5, torch.float64)
    assert tensors.tolist() == [[1.0, 0.5], [1.0, 1.0]] and tensors.dtype == torch.float64


def test_the_vocabulary():
    tokenizer = TAPETokenizer(vocab="iupac")
    assert tokenizer.vocab == IUPAC_VOCAB and IUPAC_VOCAB["<sep>"] == 3 and IUPAC_VOCAB["Z"] == 29
    assert "".join(IUPAC_CODES[name] for name in ("Met", "Lys", "Val", "Sec", "Xaa", "Glx")) == "MKVUXZ"
    with pytest.raises(InputError, match="'unirep'"):
        TAPETokenizer(vocab="unirep")
