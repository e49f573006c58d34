"""TAPE's datasets: LMDB and JSON, targets worked by hand, every wrong record named, workers, long proteins."""

import json
import os

import numpy as np
import pytest
import torch
from tape_lmdb import put_lmdb, write_lmdb

from proteinlm.errors import InputError
from tape import datasets

RNG = np.random.default_rng(0)


def protein(length):
    return "".join(RNG.choice(list("ACDEFGHIKLMNPQRSTVWY"), length))


def value_record(primary, value=1.5):
    array = np.array([value], np.float32)
    return {"primary": primary, "protein_length": len(primary), "id": b"p", "log_fluorescence": array}


@pytest.fixture
def fluorescence(tmp_path):
    records = [value_record(protein(n), n / 10) for n in (12, 3, 30)]
    write_lmdb(tmp_path / "fluorescence" / "fluorescence_train.lmdb", records)
    return tmp_path, records


def test_values_and_batches(fluorescence):
    data = datasets.FluorescenceDataset(fluorescence[0], "train")
    assert len(data) == 3 and data.lengths.tolist() == [12, 3, 30]
    token_ids, input_mask, value = data[1]
    assert token_ids[0] == 2 and token_ids[-1] == 3 and len(token_ids) == 5 and token_ids.dtype == np.int64
    assert input_mask.tolist() == [1] * 5 and value == pytest.approx(0.3)
    batch = data.collate_fn([data[0], data[1]])
    assert batch["input_ids"].shape == (2, 14) and batch["input_ids"][1, 5:].tolist() == [0] * 9
    assert batch["targets"].tolist() == [[pytest.approx(1.2)], [pytest.approx(0.3)]]
    assert batch["ids"] == ["p", "p"] and batch["protein_length"].tolist() == [12, 3]


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_read_the_same(fluorescence, method):
    data = datasets.FluorescenceDataset(fluorescence[0], "train")
    data[0]  # the parent has used its environment before the fork
    plain = [data.collate_fn([data[i]])["input_ids"] for i in range(3)]
    loader = torch.utils.data.DataLoader(
        data, 1, collate_fn=data.collate_fn, num_workers=1, multiprocessing_context=method
    )
    assert all(torch.equal(batch["input_ids"], alone) for batch, alone in zip(loader, plain, strict=True))


def test_one_file_may_be_open_twice(fluorescence):
    first = datasets.FluorescenceDataset(fluorescence[0], "train")
    second = datasets.FluorescenceDataset(fluorescence[0], "train", in_memory=True)
    assert np.array_equal(first[2][0], second[2][0]) and np.array_equal(second[2][0], second[2][0])


def test_other_places_and_forms(fluorescence):
    root, records = fluorescence
    expected = datasets.FluorescenceDataset(root, "train")[0]
    for place in (root / "fluorescence", root / "fluorescence" / "fluorescence_train.lmdb"):
        assert np.array_equal(datasets.FluorescenceDataset(place, "train")[0][0], expected[0])
    single = write_lmdb(root / "one.lmdb", records, subdir=False)
    assert single.is_file() and len(datasets.FluorescenceDataset(single, "train")) == 3
    plain = [record | {"log_fluorescence": record["log_fluorescence"].tolist(), "id": "j"} for record in records]
    (root / "json" / "fluorescence").mkdir(parents=True)
    (root / "json" / "fluorescence" / "fluorescence_valid.json").write_text(json.dumps(plain))
    data = datasets.FluorescenceDataset(root / "json", "valid")
    assert data[0][2] == pytest.approx(expected[2]) and data.lengths.tolist() == [12, 3, 30]


def test_long_proteins_are_an_explicit_choice(fluorescence):
    root, records = fluorescence
    with pytest.raises(InputError, match=r"record 2: 30 residues, but max_length is 12 \(1 such records\)"):
        datasets.FluorescenceDataset(root, "train", max_length=12)
    cropped = datasets.FluorescenceDataset(root, "train", max_length=10, too_long="crop")
    assert cropped.lengths.tolist() == [10, 3, 10] and cropped.record(2)["primary"] == records[2]["primary"]
    assert cropped[2][0].tolist() == [*datasets.FluorescenceDataset(root, "train")[2][0][:11].tolist(), 3]
    counts = cropped.counts
    assert (counts["n_cropped"], counts["n_residues_cropped"], counts["n_skipped"]) == (2, 22, 0)
    assert (counts["max_length"], counts["too_long"], counts["n_records"]) == (10, "crop", 3)
    skipped = datasets.FluorescenceDataset(root, "train", max_length=10, too_long="skip")
    assert len(skipped) == 1 and skipped.lengths.tolist() == [3] and skipped[0][2] == pytest.approx(0.3)
    assert skipped.counts["n_skipped"] == 2 and skipped.counts["n_cropped"] == 0
    with pytest.raises(IndexError):
        skipped[1]
    with pytest.raises(InputError, match="too_long 'drop'"):
        datasets.FluorescenceDataset(root, "train", too_long="drop")


def structure_record(length=6, **changes):
    labels = np.arange(length) % 3
    return {"primary": protein(length), "ss3": labels, "valid_mask": np.arange(length) > 1} | changes


def test_secondary_structure(tmp_path):
    bare = structure_record(4)
    del bare["valid_mask"]
    write_lmdb(tmp_path / "secondary_structure_cb513.lmdb", [structure_record(), bare])
    data = datasets.SecondaryStructureDataset(tmp_path, "cb513", max_length=5, too_long="crop")
    assert data[0][2].tolist() == [-1, 0, 1, 2, 0, 1, -1]  # six residues, the sixth cropped
    batch = data.collate_fn([data[0], data[1]])
    assert batch["targets"].tolist()[1] == [-1, 0, 1, 2, 0, -1, -1]
    assert batch["valid_mask"].int().tolist() == [[0, 0, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 0, 0]]
    assert batch["ids"] == ["0", "1"]


def contact_record(length=12, **changes):
    tertiary = np.cumsum(np.full((length, 3), 2.0), 0).astype(np.float32)
    return {"primary": protein(length), "tertiary": tertiary, "valid_mask": np.ones(length, bool)} | changes


def test_contacts_by_hand(tmp_path):
    record = contact_record()
    record["tertiary"][9] = record["tertiary"][1] + [0, 0, 7.99]
    record["tertiary"][10] = record["tertiary"][1] + [0, 8.0, 0]  # exactly 8 Angstrom is no contact
    record["tertiary"][0] = np.nan  # of what is not valid it does not matter
    record["valid_mask"][0] = False
    write_lmdb(tmp_path / "proteinnet_valid.lmdb", [record, contact_record(7)])
    data = datasets.ProteinnetDataset(tmp_path, "valid")
    token_ids, _, contacts, length = data[0]
    assert contacts.shape == (12, 12) and length == 12 and len(token_ids) == 14
    assert contacts[1, 9] == contacts[9, 1] == 1 and contacts[1, 10] == 0 and contacts[1, 6] == -1
    assert (contacts[0] == -1).all()
    assert np.array_equal(contacts, contacts.T) and set(
        np.unique(contacts[np.abs(np.subtract.outer(range(12), range(12))) < 6])
    ) == {-1}
    batch = data.collate_fn([data[0], data[1]])
    assert batch["targets"].shape == (2, 12, 12) and (batch["targets"][1, 7:] == -1).all()
    assert batch["valid_mask"].sum(1).tolist() == [11, 7]


def test_remote_homology(tmp_path):
    write_lmdb(
        tmp_path / "remote_homology_train.lmdb",
        [{"primary": "ACD", "fold_label": 1194}, {"primary": "AC", "fold_label": 7}],
    )
    data = datasets.RemoteHomologyDataset(tmp_path, "train")
    assert data.collate_fn([data[0], data[1]])["targets"].tolist() == [1194, 7]


def test_masked_language_modeling(tmp_path):
    records = [{"primary": protein(200) + "X", "clan": 1, "family": 2}, {"primary": protein(60)}]
    for split in ("train", "valid"):
        write_lmdb(tmp_path / f"pfam_{split}.lmdb", records)
    data, again = (datasets.MaskedLanguageModelingDataset(tmp_path, "valid") for _ in range(2))
    masked, _, labels, clan, family = data[0]
    plain = data.tokenizer.encode(records[0]["primary"])
    hidden = labels != -1
    assert hidden.sum() == round(0.15 * 203) and (clan, family) == (1, 2) and data[1][3:] == (-1, -1)
    assert np.array_equal(labels[hidden], plain[hidden]) and np.array_equal(masked[~hidden], plain[~hidden])
    assert not hidden[[0, -1]].any() and 0.5 < (masked[hidden] == 1).mean() <= 1
    data.set_epoch(3)
    assert np.array_equal(again[0][0], data[0][0])
    train = datasets.MaskedLanguageModelingDataset(tmp_path, "train")
    first = train[0][0]
    train.set_epoch(1)
    assert not np.array_equal(first, train[0][0])
    train.set_epoch(0)
    assert np.array_equal(first, train[0][0])


class Evil:
    def __reduce__(self):
        return (print, ("a pickle ran code",))


WRONG = {
    "labels short": ("SecondaryStructure", structure_record(ss3=np.zeros(4, int)), r"ss3 has shape \[4\], .* has 6"),
    "labels long": ("SecondaryStructure", structure_record(ss3=np.zeros(7, int)), r"ss3 has shape \[7\]"),
    "labels high": ("SecondaryStructure", structure_record(ss3=np.full(6, 3)), "ss3 must be whole numbers of 0-2"),
    "labels text": ("SecondaryStructure", structure_record(ss3="HHHEEE"), "ss3 holds no plain numbers"),
    "labels gone": ("SecondaryStructure", {"primary": "ACD", "id": "x"}, "no ss3; the record has id, primary"),
    "mask short": ("SecondaryStructure", structure_record(valid_mask=np.ones(2, bool)), r"valid_mask has shape \[2\]"),
    "no primary": ("Fluorescence", {"log_fluorescence": [1.0]}, "record 1: primary is missing"),
    "empty": ("Fluorescence", value_record(""), "primary is ''"),
    "not a dict": ("Fluorescence", [1, 2], "a dict was expected, found list"),
    "two values": ("Fluorescence", value_record("ACD") | {"log_fluorescence": [1.0, 2.0]}, "one finite number"),
    "nan": ("Fluorescence", value_record("ACD", np.nan), "one finite number"),
    "key gone": ("Stability", value_record("ACD"), "no stability_score; the record has id, log_fluorescence"),
    "code": ("Fluorescence", {"primary": "ACD", "log_fluorescence": Evil()}, "record 1: .*print"),
    "fold": ("RemoteHomology", {"primary": "ACD", "fold_label": 1195}, "fold_label is 1195, one of 0-1194"),
    "atoms": ("Proteinnet", contact_record(tertiary=np.zeros((11, 3))), r"shape \[11, 3\], .* has 12"),
    "not a number": ("Proteinnet", contact_record(tertiary=np.full((12, 3), np.nan)), "tertiary of residue 0 is .nan"),
    "infinite": ("Proteinnet", contact_record(tertiary=np.full((12, 3), -np.inf)), r"\(12 such residues\); valid_mask"),
    "mask of nan": ("Proteinnet", contact_record(valid_mask=np.full(12, np.nan)), "valid_mask must be 0 or 1"),
    "mask of 2": ("SecondaryStructure", structure_record(valid_mask=np.full(6, 2)), "valid_mask must be 0 or 1"),
    "infinite label": ("Fluorescence", value_record("ACD", np.inf), "one finite number"),
    "beyond float32": ("Fluorescence", value_record("ACD") | {"log_fluorescence": 1e300}, "one finite number"),
    "digits": ("Fluorescence", value_record("ACD") | {"log_fluorescence": 10**400}, "one finite number"),
    "two folds": ("RemoteHomology", {"primary": "ACD", "fold_label": np.array([1, 2])}, "one of 0-1194"),
    "no valid": ("Proteinnet", {"primary": "ACD", "tertiary": np.zeros((3, 3))}, "no valid_mask"),
}  # fmt: skip
GOOD = {
    "SecondaryStructure": structure_record,
    "Fluorescence": lambda: value_record("ACD"),
    "Stability": lambda: {"primary": "ACD", "stability_score": [1.0]},
    "RemoteHomology": lambda: {"primary": "ACD", "fold_label": 1},
    "Proteinnet": contact_record,
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_record_is_named(tmp_path, case, capsys):
    name, record, message = WRONG[case]
    kind = getattr(datasets, f"{name}Dataset")
    path = write_lmdb(tmp_path / f"{kind.folder}_valid.lmdb", [GOOD[name](), record])
    data = kind(tmp_path, "valid")
    assert data[0][0][0] == 2
    with pytest.raises(InputError, match=message) as error:
        data[1]
    assert f"{path} record 1" in str(error.value) and "\n" not in str(error.value)
    assert "ran code" not in capsys.readouterr().out


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"stability_train.lmdb: no such LMDB directory"):
        datasets.StabilityDataset(tmp_path, "train")
    with pytest.raises(InputError, match="no split 'holdout'; it has train, valid, test"):
        datasets.StabilityDataset(tmp_path, "holdout")
    with pytest.raises(InputError, match="no such file"):
        datasets.StabilityDataset(tmp_path / "x.lmdb", "train")
    write_lmdb(tmp_path / "stability_train.lmdb", [{}], count=False)
    with pytest.raises(InputError, match="no key num_examples"):
        datasets.StabilityDataset(tmp_path, "train")
    (tmp_path / "stability_valid.lmdb").mkdir()
    with pytest.raises(InputError, match=r"a directory without data\.mdb"):
        datasets.StabilityDataset(tmp_path, "valid")
    (tmp_path / "stability_valid.lmdb" / "data.mdb").write_bytes(b"not an lmdb" * 1000)
    with pytest.raises(InputError, match="not a readable LMDB"):
        datasets.StabilityDataset(tmp_path, "valid")
    (tmp_path / "stability_test.json").write_text("{}")
    with pytest.raises(InputError, match="a JSON list of records was expected, found dict"):
        datasets.StabilityDataset(tmp_path, "test")
    (tmp_path / "stability_test.json").write_text("[")
    with pytest.raises(InputError, match="not JSON"):
        datasets.StabilityDataset(tmp_path, "test")


def test_more_records_promised_than_there_are(tmp_path):
    path = write_lmdb(tmp_path / "stability_train.lmdb", [{"primary": "ACD", "stability_score": [1.0]}])
    put_lmdb(path, {b"num_examples": 2})
    with pytest.raises(InputError, match="record 1: missing, though num_examples says 2"):
        datasets.StabilityDataset(tmp_path, "train")[1]


def test_a_truncated_lmdb_is_named_not_a_crash(tmp_path):
    """Reading past the end of a map would kill the process with SIGBUS."""
    path = write_lmdb(tmp_path / "stability_train.lmdb", [{"primary": "ACD" * 999, "stability_score": [1.0]}] * 99)
    os.truncate(path / "data.mdb", 8192)
    with pytest.raises(InputError, match=r"stability_train\.lmdb: truncated: 8192 bytes of"):
        datasets.StabilityDataset(tmp_path, "train")


def test_a_vocabulary_of_pieces_is_refused(fluorescence):
    class Pieces:
        def encode(self, text):
            return np.zeros(4, np.int64)

    data = datasets.FluorescenceDataset(fluorescence[0], "train", tokenizer=Pieces())
    with pytest.raises(InputError, match="record 0: 4 tokens for 12 residues"):
        data[0]
