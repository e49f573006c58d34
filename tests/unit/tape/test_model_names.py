"""Names of pretrained models: "bert-base" below $TAPE_MODELS, then below ~/.cache/tape; what is left out."""

import json

import pytest

from proteinlm.errors import InputError
from proteinlm.model_dir import find
from proteinlm.model_dir.find import find_model
from tape.models.modeling_bert import ProteinBertConfig, ProteinBertForValuePrediction, ProteinBertModel
from tape.models.modeling_tape import TapeTransformerConfig, TapeTransformerModel

SHAPE = {
    **{"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8},
    "max_position_embeddings": 16,
}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """An empty home and no shelf, whatever this machine has, and no model of the project's."""
    monkeypatch.setattr(find, "SHIPPED", tmp_path / "none")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TAPE_MODELS", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def save(directory, model_class=TapeTransformerModel, config_class=TapeTransformerConfig, **values):
    directory.mkdir(parents=True)
    model_class(config_class(**SHAPE, **values)).save_pretrained(directory)
    return directory


def test_path_then_shelf_then_cache(monkeypatch, tmp_path):
    cache = save(tmp_path / "home" / ".cache" / "tape" / "bert-base", initializer_range=0.03)
    assert find_model("bert-base") == cache
    monkeypatch.setenv("TAPE_MODELS", str(tmp_path / "shelf"))
    assert find_model("bert-base") == cache  # a shelf without it
    shelf = save(tmp_path / "shelf" / "bert-base", initializer_range=0.04)
    assert find_model("bert-base") == shelf
    save(tmp_path / "here" / "bert-base", initializer_range=0.05)
    assert str(find_model("bert-base")) == "bert-base" and find_model(shelf) == shelf
    assert ProteinBertModel.from_pretrained("bert-base").config.initializer_range == 0.05


@pytest.mark.parametrize("place", ["home/.cache/tape", "shelf"])
def test_models_and_configurations_come_by_name(monkeypatch, tmp_path, place):
    directory = save(tmp_path / place / "bert-base")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"base_model": "transformer"}))  # as songlab's
    monkeypatch.setenv("TAPE_MODELS", str(tmp_path / "shelf"))
    assert type(ProteinBertModel.from_pretrained("bert-base")) is TapeTransformerModel
    assert type(TapeTransformerModel.from_pretrained("bert-base")) is TapeTransformerModel
    assert ProteinBertForValuePrediction.from_pretrained("bert-base").config.hidden_size == 8
    for config_class in (ProteinBertConfig, TapeTransformerConfig):
        assert config_class.from_pretrained("bert-base").hidden_size == 8
    save(tmp_path / place / "mine", ProteinBertModel, ProteinBertConfig)  # any name, any model
    assert type(ProteinBertModel.from_pretrained("mine")) is ProteinBertModel


def test_absent_says_where_it_should_be(monkeypatch, tmp_path):
    for model_class in (ProteinBertModel, TapeTransformerModel):
        with pytest.raises(InputError, match=r"\.cache/tape/bert-base .* set TAPE_MODELS") as error:
            model_class.from_pretrained("bert-base")
        assert "\n" not in str(error.value) and str(error.value).startswith("bert-base: no such directory")
    monkeypatch.setenv("TAPE_MODELS", str(tmp_path / "shelf"))
    with pytest.raises(InputError, match=r"shelf/bert-base \(config\.json and its weights\)$"):
        ProteinBertModel.from_pretrained("bert-base")
    for path in ("runs/bert-base", "model.bin"):
        with pytest.raises(InputError, match="no such directory; a TAPE model directory holds"):
            find_model(path)


@pytest.mark.parametrize("name", ["xanthomonas", "xa", "xaf"])
def test_only_songlabs_own_names_are_left_out(name, monkeypatch, tmp_path):
    """trRosetta's are xaa ... xae; any other name is a user's."""
    with pytest.raises(InputError, match=rf"^{name}: no such directory; a model of that name should be at .*{name}"):
        find_model(name)
    monkeypatch.setenv("TAPE_MODELS", str(tmp_path / "shelf"))
    saved = save(tmp_path / "shelf" / name)
    assert find_model(name) == saved


@pytest.mark.parametrize("name", ["babbler-1900", "unirep", "trrosetta", "xaa", "xae"])
def test_left_out(name, tmp_path):
    with pytest.raises(InputError, match=f"^{name}: songlab's (UniRep|trRosetta) model is left out here$"):
        ProteinBertModel.from_pretrained(name)
    save(tmp_path / "here" / name)  # a directory of one's own by that name is still a directory
    assert type(ProteinBertModel.from_pretrained(name)) is TapeTransformerModel
