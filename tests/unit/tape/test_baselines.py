"""songlab's LSTM, ResNet and one-hot baselines: against computations written here, their files, padding, and a run."""

import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from toy_data import write_data

from proteinlm import errors
from proteinlm.errors import InputError
from tape import evaluate, train
from tape.models import modeling_lstm as lstm
from tape.models import modeling_onehot as onehot
from tape.models import modeling_resnet as resnet
from tape.models.zoo import MODELS

SIZES = {  # weights far from 0, so that a mistake is larger than rounding
    "lstm": {"input_size": 6, "hidden_size": 8, "num_hidden_layers": 2, "initializer_range": 0.4},
    "resnet": {"hidden_size": 8, "num_hidden_layers": 2, "initializer_range": 0.4},
    "onehot": {},
}
LENGTHS, WIDTH = (5, 12, 9), 12
CASES = [(model_type, kind) for model_type in SIZES for kind in MODELS[model_type]]
# songlab's names and shapes for SIZES, written out
LSTM = {"embed_matrix.weight": (30, 6), "pooler.scalar_reweighting.weight": (1, 4)}
LSTM |= {"pooler.scalar_reweighting.bias": (1,), "pooler.dense.weight": (8, 8), "pooler.dense.bias": (8,)}
for stack in ("encoder.forward_lstm", "encoder.reverse_lstm"):
    for number, width in ((0, 6), (1, 8)):
        LSTM |= {f"{stack}.{number}.lstm.weight_ih_l0": (32, width), f"{stack}.{number}.lstm.weight_hh_l0": (32, 8)}
        LSTM |= {f"{stack}.{number}.lstm.bias_ih_l0": (32,), f"{stack}.{number}.lstm.bias_hh_l0": (32,)}
LSTM_HEAD = {"feedforward.weight": (30, 8), "feedforward.bias": (30,)}
RESNET = {"embeddings.word_embeddings.weight": (30, 8), "embeddings.inverse_frequency": (4,)}
RESNET |= {"embeddings.layer_norm.weight": (8,), "embeddings.layer_norm.bias": (8,)}
RESNET |= {"pooler.attention_weights.weight": (1, 8), "pooler.attention_weights.bias": (1,)}
RESNET |= {"pooler.dense.weight": (8, 8), "pooler.dense.bias": (8,)}
for block in ("encoder.layer.0", "encoder.layer.1"):
    for number in (1, 2):
        RESNET |= {f"{block}.conv{number}.weight": (8, 8, 3)}
        RESNET |= {f"{block}.bn{number}.norm.weight": (8,), f"{block}.bn{number}.norm.bias": (8,)}
RESNET_HEAD = {"mlm.transform.dense.weight": (8, 8), "mlm.transform.dense.bias": (8,)}
RESNET_HEAD |= {"mlm.transform.LayerNorm.weight": (8,), "mlm.transform.LayerNorm.bias": (8,), "mlm.bias": (30,)}
FILES = {
    "lstm": ({f"lstm.{name}": shape for name, shape in LSTM.items()} | LSTM_HEAD, "language_modeling"),
    "resnet": ({f"resnet.{name}": shape for name, shape in RESNET.items()} | RESNET_HEAD, "masked_language_modeling"),
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def build(model_type, kind, **changes):
    """A random model in evaluation mode; norms and biases away from their first values."""
    model = MODELS[model_type][kind].from_pretrained(None, **(SIZES[model_type] | {"num_labels": 4} | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) / 4)
    return model


def batch():
    ids = torch.zeros(len(LENGTHS), WIDTH, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        ids[row, :length] = torch.randint(5, 30, (length,))
        ids[row, 0], ids[row, length - 1] = 2, 3
    return ids, (ids != 0).long()


def own_part(logits, length):
    """One protein's numbers of a row of logits: [C], [N, C] or [N-2, N-2, 2]."""
    return logits if logits.dim() == 1 else logits[:length] if logits.dim() == 2 else logits[: length - 2, : length - 2]


def songlab_file(directory, model_type, change=None):
    """A directory as songlab's save_pretrained writes it, of random weights; returns its tensors."""
    tensors = {name: torch.randn(shape) / 3 for name, shape in FILES[model_type][0].items()}
    if model_type == "resnet":
        tensors["mlm.decoder.weight"] = tensors["resnet.embeddings.word_embeddings.weight"].clone()
    (change or (lambda tensors: None))(tensors)
    torch.save(tensors, directory / "pytorch_model.bin")
    keys = {
        "vocab_size": 30,
        "num_labels": 2,
        "finetuning_task": None,
        "output_attentions": False,
        "torchscript": False,
    }
    (directory / "config.json").write_text(json.dumps(SIZES[model_type] | keys | {"output_hidden_states": False}))
    return tensors


# ---- against computations of our own, one protein at a time, without padding


def lstm_alone(state, ids):
    """(sequence [N, 2h], pooled [h]) of ids [N] by torch's own layers and loops."""
    ends, sides = [], []
    for stack, turn in (("forward", lambda x: x), ("reverse", lambda x: x.flip(0))):
        x = turn(state["embed_matrix.weight"][ids])
        for number in range(2):
            layer, prefix = nn.LSTM(x.shape[1], 8), f"encoder.{stack}_lstm.{number}.lstm."
            layer.load_state_dict({n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)})
            x, (final, _) = layer(x)
            ends.append(final[0])
        sides.append(turn(x))
    mixed = sum(w * end for w, end in zip(state["pooler.scalar_reweighting.weight"][0], ends, strict=True))
    mixed = mixed + state["pooler.scalar_reweighting.bias"]
    return torch.cat(sides, 1), (state["pooler.dense.weight"] @ mixed + state["pooler.dense.bias"]).tanh()


def norm(x, weight, bias):
    centred = x - x.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + 1e-12).sqrt() * weight + bias


def resnet_alone(state, ids):
    """(sequence [N, h], pooled [h]) of ids [N]; convolutions as sums of three matrix products."""

    def normed(x, name):
        return norm(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def conv(x, weight):
        padded = torch.cat((torch.zeros(1, 8), x, torch.zeros(1, 8)))
        return sum(padded[k : k + len(x)] @ weight[:, :, k].t() for k in range(3))

    angles = torch.arange(len(ids) - 1, -1, -1.0)[:, None] / 10000 ** (torch.arange(0, 8, 2) / 8)
    x = state["embeddings.word_embeddings.weight"][ids] + torch.cat((angles.sin(), angles.cos()), 1)
    x = normed(x, "embeddings.layer_norm")
    for block in ("encoder.layer.0", "encoder.layer.1"):
        out = F.gelu(normed(conv(x, state[f"{block}.conv1.weight"]), f"{block}.bn1.norm"))
        x = F.gelu(normed(conv(out, state[f"{block}.conv2.weight"]), f"{block}.bn2.norm") + x)
    return x, (state["pooler.dense.weight"] @ x.sum(0) + state["pooler.dense.bias"]).tanh()


@pytest.mark.parametrize(("model_type", "alone"), [("lstm", lstm_alone), ("resnet", resnet_alone)])
@torch.no_grad()
def test_trunks_give_what_their_definition_says(model_type, alone):
    model, (ids, mask) = build(model_type, "embed", output_hidden_states=True), batch()
    sequence, pooled, states = model(ids, mask)
    assert not sequence[mask == 0].any() and torch.equal(model(ids)[1], pooled), "without a mask, <pad> is padding"
    for row, length in enumerate(LENGTHS):
        expected = alone(model.state_dict(), ids[row, :length])
        torch.testing.assert_close((sequence[row, :length], pooled[row]), expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(alone(model.state_dict(), ids[row, :length].flip(0))[0], expected[0], atol=1e-2)
    if model_type == "lstm":
        assert [s.shape[2] for s in states] == [6, 8, 8, 8, 8]
        assert torch.equal(torch.cat((states[2], states[4]), 2), sequence)
    else:
        assert [s.shape for s in states] == [sequence.shape] * 3 and torch.equal(states[-1], sequence)
    assert not any(s[mask == 0].any() for s in states)
    mean = type(model).from_pretrained(None, model.config, pooling="mean")
    mean.load_state_dict(model.state_dict())
    torch.testing.assert_close(mean(ids, mask)[1][0], sequence[0, 1:4].mean(0))


@torch.no_grad()
def test_the_language_model_never_sees_the_token_it_guesses():
    model, (ids, mask) = build("lstm", "language_modeling"), batch()
    (loss, measured), logits = model(ids, mask, torch.where(mask.bool(), ids, -1))
    sequence, _ = lstm_alone(model.lstm.state_dict(), ids[0, :5])
    weight, bias = model.feedforward.weight, model.feedforward.bias
    torch.testing.assert_close(logits[0, 2], weight @ (sequence[1, :8] + sequence[3, 8:]) + 2 * bias)
    torch.testing.assert_close(logits[0, 0], weight @ sequence[1, 8:] + 2 * bias)
    torch.testing.assert_close(logits[0, 4], weight @ sequence[3, :8] + 2 * bias)
    torch.testing.assert_close(loss, F.cross_entropy(logits[mask.bool()], ids[mask.bool()]))
    torch.testing.assert_close(measured["perplexity"], loss.exp())
    for place in range(5):
        other = ids[:1].clone()
        other[0, place] = 4 if ids[0, place] != 4 else 5
        changed = (model(other, mask[:1])[0][0, :5] - logits[0, :5]).abs().amax(1) > 1e-6
        assert changed.tolist() == [i != place for i in range(5)]


@torch.no_grad()
def test_the_masked_language_model_by_hand():
    model, (ids, mask) = build("resnet", "masked_language_modeling"), batch()
    assert model.mlm.decoder.weight is model.resnet.embeddings.word_embeddings.weight
    targets = torch.full_like(ids, -1)
    targets[0, 2], targets[1, 7] = 9, 11
    (loss, measured), logits = model(ids, mask, targets)
    state = model.state_dict()
    x = resnet_alone(model.resnet.state_dict(), ids[0, :5])[0]
    x = F.gelu(x @ state["mlm.transform.dense.weight"].t() + state["mlm.transform.dense.bias"])
    x = norm(x, state["mlm.transform.LayerNorm.weight"], state["mlm.transform.LayerNorm.bias"])
    expected = x @ state["resnet.embeddings.word_embeddings.weight"].t() + state["mlm.bias"]
    torch.testing.assert_close(logits[0, :5], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, -(logits[0, 2].log_softmax(0)[9] + logits[1, 7].log_softmax(0)[11]) / 2)
    torch.testing.assert_close(measured["perplexity"], loss.exp())


@torch.no_grad()
def test_one_hot_by_hand():
    ids = torch.tensor([[2, 5, 5, 7, 3, 0]])  # <cls> A A C <sep> <pad>
    states, pooled = build("onehot", "embed")(ids)
    assert states.shape == (1, 6, 30) and states.sum() == 5 and not states[0, 5].any()
    assert [int(states[0, i].argmax()) for i in range(5)] == [2, 5, 5, 7, 3]
    composition = torch.zeros(30)
    composition[[2, 3, 5, 7]] = torch.tensor([1 / 5, 1 / 5, 2 / 5, 1 / 5])
    torch.testing.assert_close(pooled[0], composition)
    model = build("onehot", "value", head="tape")
    first, second = model.predict.value_prediction.main[0], model.predict.value_prediction.main[3]
    weight = first.weight_v / first.weight_v.square().sum().sqrt() * first.weight_g
    hidden = (weight[:, [2, 3, 7]].sum(1) + 2 * weight[:, 5]) / 5 + first.bias
    weight = second.weight_v / second.weight_v.square().sum().sqrt() * second.weight_g
    expected = (weight[0] * hidden.clamp(min=0)).sum() + second.bias
    (loss, _), logits = model(ids, targets=torch.tensor([[1.5]]))
    torch.testing.assert_close(logits[0], expected)
    torch.testing.assert_close(loss, (expected[0] - 1.5) ** 2)


# ---- padding


@pytest.mark.parametrize(("model_type", "kind"), CASES)
@torch.no_grad()
def test_padding_changes_nothing(model_type, kind):
    model, (ids, mask) = build(model_type, kind, pooling="first"), batch()
    together = model(ids, mask)
    together = together[:2] if kind == "embed" else together[:1]
    rubbish = F.pad(torch.where(mask.bool(), ids, 9), (0, 3), value=11)
    wide = model(rubbish, F.pad(mask, (0, 3)))
    left = model(torch.roll(rubbish, 3, 1), torch.roll(F.pad(mask, (0, 3)), 3, 1))
    unmasked = model(rubbish, torch.ones_like(rubbish))
    worst = 0.0
    for row, length in enumerate(LENGTHS):
        alone = model(ids[row : row + 1, :length])
        for number, output in enumerate(together):
            expected = alone[number][0]
            for other in (output[row], wide[number][row]):
                torch.testing.assert_close(own_part(other, length), expected, atol=1e-5, rtol=0)
            moved = left[number][row]
            moved = moved if moved.dim() == 1 else moved[3:] if moved.dim() == 2 else moved[3:, 3:]
            torch.testing.assert_close(own_part(moved, length), expected, atol=1e-5, rtol=0)
            worst = max(worst, float((own_part(unmasked[number][row], length) - expected).abs().max()))
    assert worst > 1e-3, "the control was not caught"


@pytest.mark.parametrize("model_type", ["lstm", "resnet"])
def test_padding_takes_and_gives_no_gradient(model_type):
    model, (ids, mask) = build(model_type, "token_classification"), batch()
    names = [n for n, _ in model.named_parameters() if n.startswith(model_type) and ".pooler." not in n]

    def gradients(ids, mask):
        model.zero_grad()
        torch.logsumexp(model(ids, mask)[0][mask.bool()], 1).sum().backward()
        return [model.get_parameter(name).grad.clone() for name in names]

    expected = gradients(ids, mask)
    rubbish = F.pad(torch.where(mask.bool(), ids, 9), (0, 3), value=11)
    actual = gradients(rubbish, F.pad(mask, (0, 3)))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
    assert all(gradient.any() for gradient in expected)


# ---- files


@pytest.mark.parametrize(("model_type", "kind"), CASES)
@torch.no_grad()
def test_saving_and_loading(model_type, kind, tmp_path):
    model, (ids, mask) = build(model_type, kind, head="tape", pooling="mean"), batch()
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, require_head=True)
    assert again.config == model.config and again.config.base_model == model_type and not again.load_report
    for a, b in zip(model(ids, mask), again(ids, mask), strict=True):
        assert torch.equal(a, b)
    if kind != "embed":
        trunk = MODELS[model_type]["embed"].from_pretrained(tmp_path)
        assert torch.equal(trunk(ids, mask)[0], model.base_model(ids, mask)[0])


@pytest.mark.parametrize("model_type", FILES)
@torch.no_grad()
def test_songlabs_files_load_whole(model_type, tmp_path):
    tensors = songlab_file(tmp_path, model_type)
    model = MODELS[model_type][FILES[model_type][1]].from_pretrained(tmp_path, require_head=True)
    state = model.state_dict()
    assert state.keys() == tensors.keys() and all(torch.equal(state[name], tensors[name]) for name in state)
    task = MODELS[model_type]["value"].from_pretrained(tmp_path)
    trunk = {name: v for name, v in tensors.items() if name.startswith(f"{model_type}.")}
    assert all(torch.equal(task.state_dict()[name], value) for name, value in trunk.items())
    assert any("of pretraining" in note for note in task.load_report)
    with pytest.raises(InputError, match="no weights of a task head"):
        MODELS[model_type]["value"].from_pretrained(tmp_path, require_head=True)


def wrong_shape(tensors):
    name = next(name for name in tensors if name.endswith("pooler.dense.weight"))
    tensors[name] = tensors[name][:, :-1].clone()


def wrong_decoder(tensors):
    tensors["mlm.decoder.weight"][3, 3] += 1


@pytest.mark.parametrize("model_type", FILES)
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors.pop(next(iter(tensors))), "is missing"),
        (lambda tensors: tensors.update({"classify.weight": torch.zeros(2)}), "classify.weight does not belong"),
        (wrong_shape, r"pooler.dense.weight has shape \[8, 7\], but Protein\w+ needs \[8, 8\]"),
        (wrong_decoder, "mlm.decoder.weight differs"),
    ],
)
def test_damaged_files_are_refused_in_one_line(model_type, damage, message, tmp_path):
    if damage is wrong_decoder and model_type == "lstm":
        return
    songlab_file(tmp_path, model_type, damage)
    with pytest.raises(InputError, match=message) as error:
        MODELS[model_type][FILES[model_type][1]].from_pretrained(tmp_path)
    assert "\n" not in str(error.value) and "pytorch_model.bin" in str(error.value)


def test_the_tied_decoder_follows_the_embedding(tmp_path):
    trunk = build("resnet", "embed")
    trunk.save_pretrained(tmp_path)
    model = resnet.ProteinResNetForMaskedLM.from_pretrained(tmp_path)
    assert torch.equal(model.mlm.decoder.weight, trunk.embeddings.word_embeddings.weight)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert torch.equal(tensors.pop("mlm.decoder.weight"), trunk.embeddings.word_embeddings.weight)
    save_file(tensors, tmp_path / "model.safetensors")  # as writers leave it that store tied weights once
    assert not resnet.ProteinResNetForMaskedLM.from_pretrained(tmp_path, require_head=True).load_report


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (lstm.ProteinLSTMConfig(num_hidden_layers=0), "num_hidden_layers is 0"),
        (lstm.ProteinLSTMConfig(hidden_dropout_prob=1.0), "hidden_dropout_prob 1.0"),
        (lstm.ProteinLSTMConfig(pooling="last"), "pooling 'last' is not one of first, mean"),
        (resnet.ProteinResNetConfig(hidden_size=7), "hidden_size 7 must be even"),
        (resnet.ProteinResNetConfig(hidden_act="tanh"), "hidden_act 'tanh' is not one of"),
    ],
)
def test_configurations_that_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        MODELS[config.model_type]["embed"](config)


def test_songlabs_defaults():
    config = lstm.ProteinLSTMConfig()
    assert (config.vocab_size, config.input_size, config.hidden_size, config.num_hidden_layers) == (30, 128, 1024, 3)
    config = resnet.ProteinResNetConfig()
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (30, 512, 30)
    assert config.hidden_act == "gelu" and config.layer_norm_eps == 1e-12
    assert onehot.ProteinOneHotConfig().vocab_size == 30
    contacts = build("lstm", "contacts", head="tape")
    assert contacts.predict.predict["1"].weight.shape == (2, 4 * 8)


# ---- the commands


def run(command, *words):
    assert errors.run(command, [str(word) for word in words]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["lstm", "resnet"])
def test_pretrain_finetune_and_evaluate(model_type, tmp_path):
    task = {"lstm": "language_modeling", "resnet": "masked_language_modeling"}[model_type]
    for name in ("masked_language_modeling", "stability"):
        write_data(tmp_path, name, train=96, valid=24)
    sizes = {"lstm": {"input_size": 8, "hidden_size": 32}, "resnet": {"hidden_size": 32}}[model_type]
    (tmp_path / "config.json").write_text(json.dumps(sizes | {"num_hidden_layers": 2}))
    flags = ("--data_dir", tmp_path, "--device", "cpu", "--batch_size", 16, "--learning_rate", 1e-2, "--patience", -1)
    out = {name: tmp_path / name for name in ("lm", "task")}
    steps = ("--max_steps", 30, "--eval_steps", 15, "--warmup_steps", 2)
    run(train.main, model_type, task, "--model_config_file", tmp_path / "config.json", "--output_dir", out["lm"],
        *steps, *flags)  # fmt: skip
    run(evaluate.main, model_type, task, out["lm"], "--data_dir", tmp_path, "--split", "valid", "--device", "cpu")
    report = json.loads((out["lm"] / f"{task}-valid.json").read_text())
    assert report["model_type"] == model_type and report["metrics"]["perplexity"] < 25  # 30 at the start
    run(train.main, model_type, "stability", "--from_pretrained", out["lm"], "--output_dir", out["task"],
        "--max_steps", 60, "--eval_steps", 20, "--warmup_steps", 5, "--pooling", "mean", *flags)  # fmt: skip
    run(evaluate.main, model_type, "stability", out["task"], "--data_dir", tmp_path, "--split", "valid")
    report = json.loads((out["task"] / "stability-valid.json").read_text())
    assert report["metrics"]["spearmanr"] > 0.7
    assert json.loads((out["task"] / "config.json").read_text())["pooling"] == "mean"
