"""LoRA and layers: what is trained and how fast, what is saved, and that peft's own arithmetic agrees."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy_data import TINY, write_config, write_data

from proteinlm import errors
from proteinlm.errors import InputError
from tape import train
from tape.finetuning.layers import freeze, layer_of, learning_rate_scales, num_layers
from tape.finetuning.lora import MARK, add_lora, load_trained_state, lora_layers, merged, trained_state
from tape.finetuning.trainer import Trainer
from tape.models.config import ProteinBertConfig
from tape.models.modeling_bert import ProteinBertForSequenceToSequenceClassification, ProteinBertForValuePrediction

pytestmark = pytest.mark.slow

IDS = torch.randint(5, 25, (3, 17), generator=torch.Generator().manual_seed(0))


def build(seed: int = 0, layers: int = 2, cls=ProteinBertForValuePrediction) -> torch.nn.Module:
    torch.manual_seed(seed)
    return cls(ProteinBertConfig(**(TINY | {"num_hidden_layers": layers, "head": "tape"}))).eval()


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """The model with its updates away from 0."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if MARK in name:
            parameter.data.normal_(0, 0.1, generator=generator)
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS)[0]


def test_an_untrained_update_changes_nothing():
    model = build()
    before = logits(model)
    add_lora(model, 4)
    assert torch.equal(logits(model), before)
    assert len(lora_layers(model)) == 2 * 4
    with merged(model):
        assert torch.equal(logits(model), before)
        assert model.state_dict().keys() == build().state_dict().keys()


def test_merged_weights_give_the_same_output(tmp_path):
    model = build()
    base = logits(model)
    add_lora(model, 4, alpha=6.0)
    moved(model)
    unmerged, state = logits(model), {name: value.clone() for name, value in model.state_dict().items()}
    assert not torch.allclose(unmerged, base, atol=1e-3), "the negative control: the updates do something"
    with merged(model):
        model.save_pretrained(tmp_path)
        assert torch.allclose(logits(model), unmerged, atol=1e-6)
    after = model.state_dict()
    assert after.keys() == state.keys() and all(torch.equal(after[name], state[name]) for name in state)
    loaded = ProteinBertForValuePrediction.from_pretrained(tmp_path, require_head=True)
    assert torch.allclose(logits(loaded), unmerged, atol=1e-6)
    # By hand: W + alpha / rank * B A.
    name, layer = next(iter(lora_layers(model).items()))
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    expected = layer.base_layer.weight + 6.0 / 4 * (b @ a)
    assert torch.allclose(loaded.get_submodule(name).weight, expected, atol=1e-6)


def test_only_updates_and_head_take_gradients():
    model = build()
    add_lora(model, 2)
    moved(model).train()
    model(IDS, targets=torch.ones(3, 1))[0][0].backward()
    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}
    assert with_gradient == {
        name for name, _ in model.named_parameters() if MARK in name or name.startswith("predict.")
    }


def test_the_state_of_a_resumed_run_leaves_the_base_out():
    model, other = build(), build()
    for one in (model, other):
        add_lora(one, 2)
    moved(model)
    state = trained_state(model)
    assert all(MARK in name or name.startswith("predict.") for name in state)
    load_trained_state(other, state)
    assert torch.equal(logits(other), logits(model))
    with pytest.raises(ValueError, match="on one side only"):
        load_trained_state(other, {name: value for name, value in state.items() if "layers.0" not in name})
    plain = build()
    assert trained_state(plain).keys() == plain.state_dict().keys()


def test_a_model_without_linear_layers_is_refused():
    model = build()
    model.bert = torch.nn.Embedding(3, 4)
    with pytest.raises(InputError, match="no linear layers"):
        add_lora(model, 2)
    model.base_model_prefix = "lstm"
    with pytest.raises(InputError, match="no encoder named 'lstm'"):
        add_lora(model, 2)


def test_a_rank_beyond_every_layer_is_refused():
    with pytest.raises(InputError, match=rf"--lora {2**63}: the encoder's widest layer has \d+"):
        add_lora(build(), 2**63)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("encoder.layers.3.mlp.dense_h_to_4h.weight", 3),
        ("encoder.layer.11.attention.self.query.bias", 11),  # songlab's transformer
        ("encoder.forward_lstm.2.lstm.weight_ih_l0", 2),
        ("embeddings.LayerNorm.weight", -1),
        ("encoder.word_embeddings.weight", -1),
        ("encoder.final_layernorm.weight", None),
        ("pooler.dense.weight", None),
    ],
)
def test_a_name_tells_its_layer(name, layer):
    assert layer_of(name) == layer


def test_rates_fall_towards_the_input():
    """Three layers, decay 1/2, encoder at a tenth: worked by hand."""
    model = build(layers=3)
    scale = learning_rate_scales(model, 0.5, 0.1)
    scales = {scale(name) for name, _ in model.named_parameters() if "layers.1" in name}
    assert num_layers(model) == 3 and scales == {0.1 * 0.25}
    assert scale("bert.encoder.layers.2.mlp.dense_h_to_4h.weight") == pytest.approx(0.1 * 0.5)
    assert scale("bert.encoder.word_embeddings.weight") == pytest.approx(0.1 / 16)
    assert scale("bert.encoder.final_layernorm.weight") == pytest.approx(0.1)
    assert scale("predict.value_prediction.main.0.bias") == 1.0
    assert {learning_rate_scales(model, 1.0, 1.0)(name) for name, _ in model.named_parameters()} == {1.0}


def test_frozen_layers_are_the_lowest():
    model = build(layers=3)
    asleep = freeze(model, 2, encoder=False)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    below = ("bert.encoder.word_emb", "bert.encoder.position_emb", "bert.encoder.layers.0.", "bert.encoder.layers.1.")
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(below)}
    assert model.bert.encoder.layers["1"] in asleep and model.bert.encoder.layers["2"] not in asleep
    assert model.bert.encoder.embedding_dropout in asleep
    with pytest.raises(InputError, match=r"--freeze_layers 4.*has 3 layers"):
        freeze(model, 4, encoder=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lora")
    write_data(root, "secondary_structure", train=24, valid=8)
    write_config(root / "config.json", num_hidden_layers=2)
    run(root, root / "base", "--model_config_file", root / "config.json", "--learning_rate", 0)
    return root


def run(world: Path, out: Path, *flags: object, status: int = 0) -> None:
    words = ["transformer", "secondary_structure", "--data_dir", world, "--output_dir", out, "--device", "cpu"]
    words += ["--batch_size", 8, "--max_steps", 4, "--recipe", "none", "--eval_steps", 2, *flags]
    assert errors.run(train.main, [str(word) for word in words]) == status


def test_a_lora_run_is_an_ordinary_directory_and_resumes(world, tmp_path, monkeypatch):
    flags = ("--from_pretrained", world / "base", "--learning_rate", 1e-2, "--lora", 4, "--lora_dropout", 0.1)
    run(world, tmp_path / "whole", *flags)
    step = Trainer.train_step

    def killed(self, parts, share):
        if self.progress.step == 3:
            raise KeyboardInterrupt
        return step(self, parts, share)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", killed)
        run(world, tmp_path / "cut", *flags, status=errors.EXIT_INTERRUPTED)
    run(world, tmp_path / "cut", *flags, "--resume")
    for name in ("", "last"):
        whole, cut = (load_file(tmp_path / run / name / "model.safetensors") for run in ("whole", "cut"))
        assert whole.keys() == cut.keys() and all(torch.equal(whole[key], cut[key]) for key in whole)
    base, whole = load_file(world / "base" / "model.safetensors"), load_file(tmp_path / "whole" / "model.safetensors")
    assert base.keys() == whole.keys()
    same = {key for key in base if torch.equal(base[key], whole[key])}
    assert "bert.embeddings.word_embeddings.weight" in same and "bert.encoder.layer.0.input_ln.weight" in same
    assert not any("dense" in key and key.endswith("weight") for key in same)
    args = json.loads((tmp_path / "whole" / "args.json").read_text())
    assert args["trained_parameters"] < args["parameters"] and args["args"]["lora"] == 4
    loaded = ProteinBertForSequenceToSequenceClassification.from_pretrained(tmp_path / "whole", require_head=True)
    assert loaded(IDS)[0].shape == (3, 17, 3)


def test_a_lora_run_that_learns_nothing_is_the_base(world, tmp_path):
    run(world, tmp_path / "still", "--from_pretrained", world / "base", "--learning_rate", 0, "--lora", 4)
    base, still = (load_file(path / "model.safetensors") for path in (world / "base", tmp_path / "still"))
    names = [name for name in base if "running_" not in name and "num_batches" not in name]
    assert base.keys() == still.keys() and all(torch.equal(base[name], still[name]) for name in names)


def test_frozen_layers_and_decay_in_a_run(world, tmp_path):
    flags = ("--from_pretrained", world / "base", "--learning_rate", 1e-2, "--max_steps", 2, "--warmup_steps", 0)
    run(world, tmp_path / "run", *flags, "--freeze_layers", 1, "--layer_decay", 0.5)
    base, end = (load_file(path / "last" / "model.safetensors") for path in (world / "base", tmp_path / "run"))
    change = {name: float((base[name].float() - end[name].float()).abs().max()) for name in base}
    assert change["bert.embeddings.word_embeddings.weight"] == 0 == change["bert.encoder.layer.0.mlp.dense_h_4h.weight"]
    # AdamW moves a weight by its rate a step, here 2/3 and 1/3 of 1e-2 in the head and half of that in the last layer.
    assert change["classify.classify.main.4.weight_v"] == pytest.approx(1e-2, rel=0.05)
    assert change["bert.encoder.layer.1.mlp.dense_h_4h.weight"] == pytest.approx(0.5e-2, rel=0.05)
