"""TAPE's model classes: interface, padding, names in state dicts, gradients."""

import pytest
import torch
import torch.nn.functional as F

import tape
from proteinlm.errors import InputError
from proteinlm.model_dir.names import TAPE_NAMES
from tape.models.modeling_bert import ProteinBertConfig, ProteinBertForMaskedLM, ProteinBertModel

SHAPE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def batch(lengths=(5, 11, 8), width=11):
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, 30, (length,))
        ids[row, 0], ids[row, length - 1] = 2, 3
    return ids, (ids != 0).long()


def test_model_gives_tapes_outputs():
    model = ProteinBertModel(ProteinBertConfig(**SHAPE)).eval()
    ids, mask = batch()
    sequence, pooled = model(ids, mask)
    assert sequence.shape == (3, 11, 16) and torch.equal(pooled, sequence[:, 0])
    assert not sequence[~mask.bool()].any()
    assert torch.equal(model(ids)[0], sequence)  # without a mask, <pad> is padding
    states = ProteinBertModel.from_pretrained(None, model.config, output_hidden_states=True)
    states.load_state_dict(model.state_dict())
    hidden = states(ids, mask)[2]
    assert len(hidden) == 3 and torch.equal(hidden[-1], sequence)


def test_no_result_depends_on_padding():
    model = ProteinBertModel(ProteinBertConfig(**SHAPE)).eval()
    ids, mask = batch()
    together, pooled = model(ids, mask)
    wide = torch.full((3, 30), 17)  # rubbish under the mask, wider than max_position_embeddings
    wide[:, :11] = torch.where(mask.bool(), ids, 9)
    torch.testing.assert_close(model(wide, F.pad(mask, (0, 19)))[0][:, :11], together, atol=1e-6, rtol=0)
    left, left_mask = torch.roll(ids, 3, 1)[:1], torch.roll(mask, 3, 1)[:1]
    torch.testing.assert_close(model(left, left_mask)[1], pooled[:1], atol=1e-6, rtol=0)
    for row, length in enumerate(mask.sum(1).tolist()):
        alone = model(ids[row : row + 1, :length])[0][0]
        torch.testing.assert_close(together[row, :length], alone, atol=1e-6, rtol=0)


def test_rows_of_padding_alone_are_zeros():
    model = ProteinBertModel(ProteinBertConfig(**SHAPE)).eval()
    ids, _ = batch()
    expected, _ = model(ids)
    sequence, pooled = model(F.pad(ids, (0, 0, 1, 1)))
    assert not sequence[[0, -1]].any() and not pooled[[0, -1]].any()
    torch.testing.assert_close(sequence[1:-1], expected, atol=1e-6, rtol=0)
    sequence, pooled = model(torch.zeros_like(ids))
    assert sequence.shape == expected.shape and not sequence.any() and not pooled.any()


def test_too_many_tokens_are_refused_with_both_numbers():
    model = ProteinBertModel(ProteinBertConfig(**SHAPE))
    with pytest.raises(InputError, match=r"21 tokens .* max_position_embeddings 20"):
        model(torch.full((1, 21), 7))
    with pytest.raises(ValueError, match=r"\[1, 4\] and input_mask \[1, 3\]"):
        model(torch.full((1, 4), 7), torch.ones(1, 3))


def test_load_state_dict_takes_tapes_names():
    config = ProteinBertConfig(**SHAPE)
    model = ProteinBertForMaskedLM(config)
    state = model.state_dict()
    encoder = {n.removeprefix("bert.encoder."): v for n, v in state.items() if n.startswith("bert.encoder.")}
    tape_state = TAPE_NAMES.rename(encoder, config.num_attention_heads)
    tape_state["bert.bert_tail_dense.weight"] = torch.ones(16, 16)
    tape_state |= {
        "mlm.transform.dense.weight": state["mlm.dense.weight"],
        "mlm.transform.dense.bias": state["mlm.dense.bias"],
        "mlm.transform.LayerNorm.weight": state["mlm.layernorm.weight"],
        "mlm.transform.LayerNorm.bias": state["mlm.layernorm.bias"],
        "mlm.bias": state["mlm.bias"],
        "mlm.decoder.weight": tape_state["bert.embeddings.word_embeddings.weight"].clone(),
    }
    names = set(tape_state)
    other = ProteinBertForMaskedLM(config)
    other.load_state_dict(tape_state)
    assert set(tape_state) == names  # the caller's dict is left alone
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in state.items())
    bare = ProteinBertModel(config)
    bare.load_state_dict({n.removeprefix("bert."): v for n, v in tape_state.items() if n.startswith("bert.")})
    assert torch.equal(
        bare.encoder.state_dict()["layers.1.mlp.dense_4h_to_h.weight"], encoder["layers.1.mlp.dense_4h_to_h.weight"]
    )
    other.load_state_dict(state)  # and ours
    tape_state["bert.encoder.layer.0.attention.self.key.weight"] = tape_state.pop(
        "bert.encoder.layer.0.attention.self.query.weight"
    )
    with pytest.raises(RuntimeError, match=r"query_key_value\.weight"):
        other.load_state_dict(tape_state)


def test_a_foreign_decoder_does_not_overwrite_the_embedding():
    config = ProteinBertConfig(**SHAPE)
    model, other = ProteinBertForMaskedLM(config), ProteinBertForMaskedLM(config)
    state = model.state_dict() | {"mlm.decoder.weight": torch.zeros(30, 16)}
    with pytest.raises(RuntimeError, match=r"mlm\.bias"):
        other.load_state_dict(state)
    other.load_state_dict(state, strict=False)
    assert torch.equal(other.bert.encoder.word_embeddings.weight, model.bert.encoder.word_embeddings.weight)


def test_seeds_decide_the_random_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return tape.ProteinBertForValuePrediction.from_pretrained(None, **SHAPE).state_dict()

    first, again, other = weights(1), weights(1), weights(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(
        first["predict.value_prediction.main.0.weight_v"], other["predict.value_prediction.main.0.weight_v"]
    )
    name = "bert.encoder.layers.0.attention.query_key_value.weight"
    assert not torch.equal(first[name], other[name])


def test_losses_and_metrics_with_targets():
    ids, mask = batch()
    value = tape.ProteinBertForValuePrediction.from_pretrained(None, **SHAPE)
    targets = torch.tensor([[1.0], [2.0], [3.0]])
    (loss, _), logits = value(ids, mask, targets)
    torch.testing.assert_close(loss, F.mse_loss(logits, targets))
    assert value(ids, mask)[0].shape == (3, 1)

    classify = tape.ProteinBertForSequenceClassification.from_pretrained(None, **SHAPE, num_labels=7)
    (loss, measured), logits = classify(ids, mask, torch.tensor([1, 2, 3]))
    torch.testing.assert_close(loss, F.cross_entropy(logits, torch.tensor([1, 2, 3])))
    assert logits.shape == (3, 7) and 0 <= measured["accuracy"] <= 1

    structure = tape.ProteinBertForSequenceToSequenceClassification.from_pretrained(None, **SHAPE, num_labels=3)
    targets = torch.where(mask.bool(), torch.randint(0, 3, ids.shape), -1)
    (loss, measured), logits = structure(ids, mask, targets)
    torch.testing.assert_close(loss, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1))
    right = (logits.argmax(-1) == targets)[mask.bool()].float().mean()
    torch.testing.assert_close(measured["accuracy"], right)

    language = ProteinBertForMaskedLM.from_pretrained(None, **SHAPE)
    (loss, measured), logits = language(ids, mask, targets)
    assert logits.shape == (3, 11, 30)
    torch.testing.assert_close(measured["perplexity"], loss.exp())


def test_contacts_with_targets_and_tapes_keywords():
    model = tape.ProteinBertForContactPrediction.from_pretrained(None, **SHAPE, head="tape")
    ids, mask = batch((13, 20), 20)
    targets = torch.randint(0, 2, (2, 18, 18))
    targets[0, 11:], targets[0, :, 11:] = -1, -1
    (loss, measured), logits = model(
        input_ids=ids, protein_length=torch.tensor([11, 18]), input_mask=mask, targets=targets
    )
    expected = F.cross_entropy(logits.flatten(0, 2), targets.flatten(), ignore_index=-1)
    torch.testing.assert_close(loss, expected)
    assert logits.shape == (2, 18, 18, 2) and 0 <= measured["precision_at_l5"] <= 1


def test_gradients_reach_every_parameter():
    model = tape.ProteinBertForContactPrediction.from_pretrained(None, **SHAPE, head="tape").train()
    ids, mask = batch((13, 20), 20)
    (loss, _), _ = model(ids, mask, torch.randint(0, 2, (2, 18, 18)))
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_config():
    config = ProteinBertConfig(**SHAPE, head="tape")
    assert ProteinBertConfig.from_dict(config.to_dict()) == config
    assert config.model_config().padded_vocab_size == 30
    for wrong, message in (
        ({"hidden_size": 15}, "must divide hidden_size 15"),
        ({"hidden_act": "tanh"}, "hidden_act 'tanh' is not one of gelu"),
        ({"head": "big"}, "head 'big' is not one of proteinlm, tape"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob 1.0"),
        ({"output_attentions": True}, "output_attentions"),
    ):
        with pytest.raises(InputError, match=message):
            ProteinBertConfig(**(SHAPE | wrong))


def test_config_from_a_json_file(tmp_path):
    config = ProteinBertConfig(**SHAPE)
    (tmp_path / "shape.json").write_text(config.to_json_string())
    assert ProteinBertConfig.from_json_file(tmp_path / "shape.json") == config
    assert ProteinBertConfig(str(tmp_path / "shape.json")) == config
