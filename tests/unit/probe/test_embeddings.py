"""Every protein embedded once: the vectors of Encoder, four poolings by hand, what a killed run keeps, random twins."""

import h5py
import numpy as np
import pytest
import torch
from toy_esm import esm_model
from toy_huggingface import FAMILIES, write_family
from toy_model import write_model

import proteinlm
from probe import embeddings as rooms
from probe.arms import OneHot, composition, identity_of, one_hot, open_encoder
from probe.embeddings import embed_once
from proteinlm.errors import InputError
from proteinlm.network.model import initial_weight
from tape.inference import parts

SEQUENCES = ["MKTAYIAK", "GGA", "MKTAYIAK", "WWPLKKDEYT", "C"]
EACH = pytest.mark.parametrize("kind", ["tape", "esm", "transformers"])


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    esm_model().save_pretrained(folder / "esm")
    return {
        "tape": str(write_model(folder / "tape")),
        "esm": str(folder / "esm"),
        "transformers": str(write_family("ProtT5", folder / "prott5")),
    }


@EACH
def test_vectors_are_the_encoders_in_half_precision(models, tmp_path, kind):
    encoder = proteinlm.load(models[kind], device="cpu")
    for layers, numbers in (((1, -1), (1, 2)), ("all", (0, 1, 2))):
        made = embed_once(models[kind], SEQUENCES, tmp_path, layers=layers, per_residue=True, device="cpu", quiet=True)
        assert made.layers == numbers and len(made) == 5 and made.width == encoder.config.hidden_size
        for layer in numbers:
            rows = encoder.embed(SEQUENCES, pooling=None, layer=layer, quiet=True)
            for i, row in enumerate(rows):
                np.testing.assert_allclose(made.residues(i, layer), row, rtol=2e-3, atol=2e-4)
            for pooling in ("mean", "max", "min"):
                expected = np.stack([getattr(row, pooling)(0) for row in rows])
                np.testing.assert_allclose(made.pooled(pooling, layer), expected, rtol=2e-3, atol=2e-4)
            first = encoder.embed(SEQUENCES, pooling="cls", layer=layer, quiet=True)
            np.testing.assert_allclose(made.pooled("first", layer), first, rtol=2e-3, atol=2e-4)
    both = made.pooled("max_mean")
    assert both.dtype == np.float32 and np.array_equal(both, np.hstack([made.pooled("max"), made.pooled("mean")]))
    assert not np.array_equal(made.pooled(layer=0), made.pooled(layer=1))


def test_poolings_by_hand():
    """Two proteins of three and one residues; the states of [CLS] and [SEP] (9) are in none but `first`."""
    stream = rooms.Stream(np.zeros(8, np.int64), np.array([5, 3]))
    states = torch.tensor([[9.0, 8], [1, 2], [3, -4], [2, 5], [9, 9], [7, 9], [-1, 6], [9, 9]])
    expected = {"mean": [[2, 1], [-1, 6]], "max": [[3, 5], [-1, 6]], "min": [[1, -4], [-1, 6]]}
    for name, values in (expected | {"first": [[9, 8], [7, 9]]}).items():
        assert rooms.POOLINGS[name](states, stream).tolist() == values


def test_half_precision_and_identical_sequences_once(models, tmp_path):
    made = embed_once(models["esm"], [*SEQUENCES, "gga"], tmp_path, per_residue=True, device="cpu", quiet=True)
    (path,) = tmp_path.iterdir()
    with h5py.File(path) as file:
        assert file["mean_layer_2"].shape == (4, 16) and file["mean_layer_2"].dtype == np.float16
        assert file["seq_layer_2"].shape == (8 + 3 + 10 + 1 + 2 * 4, 16)
    assert made.lengths.tolist() == [8, 3, 8, 10, 1, 3]
    assert np.array_equal(made.residues(0), made.residues(2)) and np.array_equal(made.residues(1), made.residues(5))
    assert np.array_equal(made.pooled()[[0, 1]], made.pooled()[[2, 5]])


def count_passes(monkeypatch):
    """A list that grows by the number of proteins of each part."""
    sizes, work = [], rooms._Pooler.embed_part

    def counted(self, own, *rest):
        sizes.append(len(own))
        return work(self, own, *rest)

    monkeypatch.setattr(
        rooms._Pooler, "embed_part", lambda self, own, *a: sizes.append(len(own)) or work(self, own, *a)
    )
    return sizes


def test_what_is_there_is_not_computed_again(models, tmp_path, monkeypatch):
    sizes = count_passes(monkeypatch)
    options = {"device": "cpu", "quiet": True}
    whole = embed_once(models["esm"], SEQUENCES, tmp_path, layers="all", per_residue=True, **options)
    assert sizes == [4]
    pooled = embed_once(models["esm"], SEQUENCES, tmp_path, layers=(1,), **options)
    assert sizes == [4] and np.array_equal(pooled.pooled(layer=1), whole.pooled(layer=1))
    embed_once(models["esm"], SEQUENCES, tmp_path, random_seed=0, **options)
    embed_once(models["esm"], SEQUENCES[1:4], tmp_path, **options)
    embed_once(models["esm"], SEQUENCES, tmp_path, dtype="bf16", **options)
    assert sizes == [4, 4, 3, 4]  # other weights, other proteins, another precision
    with pytest.raises(InputError, match="per_residue=True"):
        embed_once(models["esm"], SEQUENCES[1:4], tmp_path, **options).residues(0)


def test_a_killed_run_goes_on(models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rooms, "PART_PROTEINS", 1)
    options = {"layers": (0, -1), "per_residue": True, "device": "cpu"}
    whole = embed_once(models["esm"], SEQUENCES, tmp_path / "whole", **options)
    saved, save = [], parts.PartStore.save

    def killed(self, part, arrays):
        if part == 2:
            raise KeyboardInterrupt
        save(self, part, arrays)
        saved.append(part)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts.PartStore, "save", killed)
        embed_once(models["esm"], SEQUENCES, tmp_path / "killed", **options)
    assert saved == [0, 1]
    sizes = count_passes(monkeypatch)
    resumed = embed_once(models["esm"], SEQUENCES, tmp_path / "killed", **options)
    assert sizes == [1, 1] and "4 proteins are embedded once (2 of 4 parts are done)" in capsys.readouterr().err
    folders = (tmp_path / "whole", tmp_path / "killed")
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert first == second and len(first) == 2  # nothing but a file a layer is left
    assert all(np.array_equal(whole.residues(i, 0), resumed.residues(i, 0)) for i in range(5))


def test_kept_vectors_of_other_proteins_are_refused(models, tmp_path):
    embed_once(models["esm"], SEQUENCES, tmp_path, device="cpu")
    (path,) = tmp_path.glob("*.h5")
    with h5py.File(path, "r+") as file:
        file["length"][0] += 1
    with pytest.raises(InputError, match=f"{path}: its lengths are not those of the proteins; remove it"):
        embed_once(models["esm"], SEQUENCES, tmp_path, device="cpu")


def test_a_directory_in_a_files_place_is_told_before_the_work(models, tmp_path):
    options = {"layers": (0, -1), "device": "cpu"}
    file = sorted(embed_once(models["esm"], SEQUENCES, tmp_path, **options)._files.items())[-1][1].path
    file.unlink()
    file.mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=f"{file}: a directory; the output is a file"):
        embed_once(models["esm"], SEQUENCES, tmp_path, **options)
    assert sorted(tmp_path.iterdir()) == before


def test_parts_that_a_kill_left_when_the_files_were_there_go(models, tmp_path, monkeypatch):
    def killed(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(parts.PartStore, "_remove", killed)
        embed_once(models["esm"], SEQUENCES, tmp_path, device="cpu", quiet=True)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".h5", ".parts"]
    sizes = count_passes(monkeypatch)
    embed_once(models["esm"], SEQUENCES, tmp_path, device="cpu", quiet=True)
    assert sizes == [] and [path.suffix for path in tmp_path.iterdir()] == [".h5"]


@EACH
def test_a_random_twin(models, kind):
    trained = open_encoder(models[kind], device="cpu")
    twins = [open_encoder(models[kind], random_seed=seed, device="cpu") for seed in (3, 3, 4)]
    states = [twin.model.state_dict() for twin in (trained, *twins)]
    assert [list(state) for state in states[1:]] == [list(states[0])] * 3
    matrices = [name for name, value in states[0].items() if value.dim() > 1]
    for name in matrices:
        old, twin, again, other = (state[name] for state in states)
        assert torch.equal(twin, again) and not torch.equal(twin, old) and not torch.equal(twin, other)
    assert identity_of(twins[0]) == identity_of(twins[1]) != identity_of(twins[2])
    assert twins[0].config == trained.config and "random weights, seed 3" in twins[0].source
    if kind != "transformers":  # as pretraining begins
        name = "layers.1.attention.dense.weight"
        weight = initial_weight(name, states[0][name].shape, trained.config, 3)
        assert torch.equal(states[1][name], weight)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_random_twin(family, tmp_path):
    directory = str(write_family(family, tmp_path / "model"))
    vectors = [open_encoder(directory, random_seed=seed, device="cpu").embed("MKTAY") for seed in (None, 1, 1, 2)]
    assert np.array_equal(vectors[1], vectors[2])
    assert not np.allclose(vectors[0], vectors[1]) and not np.allclose(vectors[1], vectors[3])


def test_the_sequence_alone():
    rows = one_hot("ACXc")
    assert rows.shape == (4, 20) and rows.dtype == np.float32
    assert rows.argmax(1).tolist() == [0, 1, 0, 1] and rows.sum(1).tolist() == [1, 1, 0, 1]
    assert composition("ACXc")[:3].tolist() == [0.25, 0.5, 0]
    baseline = OneHot(["ACXc", "YY"])
    assert np.array_equal(baseline.pooled()[0], composition("ACXc")) and baseline.lengths.tolist() == [4, 2]
    assert np.array_equal(baseline.residues(1), one_hot("YY"))


def test_a_long_protein_is_read_in_windows(models, tmp_path):
    """Windows of four residues of MKTAYIAK begin at 0, 2, 4: T and A, Y and I are in two."""
    encoder = proteinlm.load(models["esm"], device="cpu")
    settings = {"per_residue": True, "device": "cpu", "quiet": True}
    made = embed_once(models["esm"], SEQUENCES, tmp_path, max_length=4, too_long="window", **settings)
    first, second, third = encoder.embed(["MKTA", "TAYI", "YIAK"], pooling=None, quiet=True)
    rows = np.concatenate([first[:2], (first[2:] + second[:2]) / 2, (second[2:] + third[:2]) / 2, third[2:]])
    np.testing.assert_allclose(made.residues(0), rows, rtol=2e-3, atol=2e-4)
    np.testing.assert_allclose(made.pooled("max")[2], rows.max(0), rtol=2e-3, atol=2e-4)
    assert made.lengths.tolist() == [8, 3, 8, 10, 1]
    assert np.abs(made.residues(0) - encoder.embed("MKTAYIAK", pooling=None, quiet=True)[0]).max() > 0.01
    # other windows are other numbers, and other files
    whole = embed_once(models["esm"], SEQUENCES, tmp_path, too_long="window", **settings)
    assert np.array_equal(whole.residues(1), made.residues(1)) and not np.array_equal(whole.pooled(), made.pooled())
    plain = embed_once(models["esm"], SEQUENCES, tmp_path / "plain", **settings)
    assert np.array_equal(whole.pooled(), plain.pooled())


MISTAKES = {
    "empty": ({"sequences": ["MK", ""]}, "sequence 1: empty"),
    "none": ({"sequences": []}, "no sequences"),
    "too long": ({"sequences": ["M", "M" * 63]}, r"sequence 1: 63 residues, at most 62 .*--too_long crop\|window"),
    "a flag": ({"too_long": "skip"}, "too_long 'skip'"),
    "max_length": ({"max_length": 3}, "8 residues, at most 3"),
    "a layer": ({"layers": (3,)}, "layer 3: the model has 2 layers"),
}


@pytest.mark.parametrize(("changes", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named(models, tmp_path, changes, message):
    values = {"sequences": SEQUENCES, "directory": tmp_path, "device": "cpu", "quiet": True} | changes
    with pytest.raises(InputError, match=message):
        embed_once(models["tape"], **values)
    assert not any(tmp_path.iterdir())


def test_other_layers_and_poolings_are_named(models, tmp_path):
    made = embed_once(models["tape"], SEQUENCES, tmp_path, max_length=4, too_long="crop", device="cpu", quiet=True)
    assert made.lengths.tolist() == [4, 3, 4, 4, 1]
    for pooling, layer, message in (("mean", 1, "layer 1: not embedded; there are 2"), ("mean_top", -1, "mean_max")):
        with pytest.raises(InputError, match=message):
            made.pooled(pooling, layer)


def test_a_number_beyond_half_precision_stops_the_work(models, tmp_path):
    encoder = open_encoder(models["esm"], device="cpu")
    with torch.no_grad():
        encoder.model.final_layernorm.weight[0] = 1e6
    with pytest.raises(InputError, match=r"a protein of 8 residues \(MKTAYIAK ...\) has a number that is not finite"):
        embed_once(encoder, SEQUENCES, tmp_path, quiet=True)
    assert not list(tmp_path.glob("*.h5"))
