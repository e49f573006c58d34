"""ESM in and out of the converter: round trips by bits, models of our own as stock directories, what is refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from esm_writer import (
    HEADS,
    HIDDEN,
    KINDS,
    LAYERS,
    fair_arguments,
    peer,
    prefixed,
    random_weights,
    write_fair,
    write_hf,
)
from megatron_writer import random_weights as megatron_weights
from megatron_writer import write_megatron
from safetensors.torch import load_file
from toy_esm import transformers

import proteinlm
from converter.formats import WriteOptions
from converter.huggingface import esm
from converter.model import PortableModel
from converter.sources import FORMATS, read, recognise
from pretrain.checkpoint.files import load_checkpoint, read_model_tensors, save_checkpoint
from proteinlm.errors import InputError
from proteinlm.network.config import ModelConfig
from proteinlm.network.contacts import ContactRegression
from proteinlm.network.model import ProteinBert, initialize
from proteinlm.tokenizer import ESM_TOKENS, PRETRAIN_TOKENS, build_tokenizer

OPTIONS = WriteOptions()
PROTEIN = "MKTAYIAKQR"
NETWORK_KEYS = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "layer_norm_eps"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "max_position_embeddings"),
    *("position_embedding_type", "rope_theta", "emb_layer_norm_before", "token_dropout", "tie_word_embeddings"),
    *("pad_token_id", "mask_token_id", "is_folding_model", "is_decoder"),
)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    home = tmp_path_factory.mktemp("esm")
    directories = {(kind, "esm"): write_hf(home / f"{kind}_hf", kind) for kind in KINDS}
    return directories | {(kind, "fair-esm"): write_fair(home / f"{kind}_fair", kind) for kind in KINDS}


def assert_same_bits(a: dict, b: dict) -> None:
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


# ---- there and back


@pytest.mark.parametrize("way", ["esm", "dcp", "fair-esm"])
@pytest.mark.parametrize("kind", KINDS)
def test_hugging_faces_directory_and_back(sources, convert_to, kind, way):
    source = sources[kind, "esm"]
    middle, printed = convert_to(source, "middle", "--target", way, "--verify")
    assert "all 35 tensors" in printed if kind == "esm2" else "all 37 tensors" in printed
    if way == "dcp":  # pretraining loads the weights and passes over the contact regression
        assert load_checkpoint(middle, 0, {"model": read_model_tensors(middle)})
    back, _ = convert_to(middle, "back", "--target", "esm", "--bin")
    assert_same_bits(load_file(back / "model.safetensors"), load_file(source / "model.safetensors"))
    assert_same_bits(torch.load(back / "pytorch_model.bin"), load_file(source / "model.safetensors"))
    model, info = transformers.AutoModelForMaskedLM.from_pretrained(back, output_loading_info=True)
    assert type(model) is transformers.EsmForMaskedLM and not any(info.values())
    one, other = (transformers.AutoConfig.from_pretrained(path) for path in (source, back))
    keys = [key for key in NETWORK_KEYS if (kind, way, key) != ("esm2", "fair-esm", "max_position_embeddings")]
    assert {key: getattr(one, key) for key in keys} == {key: getattr(other, key) for key in keys}


@pytest.mark.parametrize("kind", KINDS)
def test_through_tapes_directory(sources, convert_to, caplog, kind):
    source = sources[kind, "esm"]
    tape, printed = convert_to(source, "tape", "--target", "tape", "--verify")
    assert "rows of ., -, <null_1> left out" in printed and not caplog.messages  # no word of the temporary directory
    back, printed = convert_to(tape, "back", "--target", "esm", "--verify")
    assert "rows of ., -, <null_1> are zeros" in printed and "no contact regression" not in printed
    expected, actual = (load_file(path / "model.safetensors") for path in (source, back))
    gone = [ESM_TOKENS.index(token) for token in (".", "-", "<null_1>")]
    for name in ("esm.embeddings.word_embeddings.weight", "lm_head.bias"):
        expected[name][gone] = 0
    assert_same_bits(actual, expected)
    one, other = (proteinlm.load(path, device="cpu") for path in (source, tape))
    assert (one.contacts(PROTEIN)[0] == other.contacts(PROTEIN)[0]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_fair_esms_files_and_back(sources, convert_to, kind):
    source = sources[kind, "fair-esm"]
    assert recognise(source) == recognise(source.parent) == "fair-esm"
    middle, _ = convert_to(source, "middle", "--target", "esm", "--verify")
    back, _ = convert_to(middle, "back", "--target", "fair_esm", "--verify")
    assert sorted(path.name for path in back.glob("*.pt")) == sorted(path.name for path in source.parent.iterdir())
    content = torch.load(back / source.name, weights_only=False)  # by its own writer: nothing but namespaces
    beside = torch.load(back / f"{kind}_t2-contact-regression.pt")
    weights = random_weights(kind)
    head = {name: weights.pop(name) for name in list(weights) if name.startswith("contact_head.")}
    assert_same_bits(content["model"], prefixed(weights))
    assert_same_bits(beside["model"], head)
    key = "cfg" if kind == "esm2" else "args"
    arguments, expected = (vars(c[key]["model"] if key == "cfg" else c[key]) for c in (content, fair_arguments(kind)))
    assert arguments == {name: value for name, value in expected.items() if name != "final_bias"}


def test_half_precision_and_frequencies(sources, convert_to):
    """Frequencies are not rounded with the rest: bf16's would turn far tokens by radians."""
    stored = load_file(sources["esm2", "esm"] / "model.safetensors")
    name = "esm.rotary_embeddings.inv_freq"
    assert not torch.equal(stored[name].bfloat16().float(), stored[name])
    flags = ("--dtype", "bf16", "--verify", "--target")
    for target in ("esm", "tape", "dcp"):
        directory, printed = convert_to(sources["esm2", "esm"], target, *flags, target)
        assert "rounding to bfloat16 itself" in printed
        model = read(directory)
        frequencies = model.tensors["rotary_embeddings.inv_freq"]
        assert frequencies.dtype == torch.float32 and torch.equal(frequencies, stored[name])
        others = {t.dtype for n, t in model.all_tensors.items() if not n.endswith("inv_freq")}
        assert others == {torch.bfloat16}
    half = {name: value.half() for name, value in random_weights().items()}
    half["lm_head.weight"] = half["embed_tokens.weight"]
    path = write_fair(directory.parent / "half", weights=half)
    back, _ = convert_to(path, "back", "--target", "fair-esm")
    head = {name: half.pop(name) for name in list(half) if name.startswith("contact_head.")}
    assert_same_bits(torch.load(back / path.name, weights_only=False)["model"], prefixed(half))
    assert_same_bits(torch.load(back / "esm2_t2-contact-regression.pt")["model"], head)


def test_verify_sees_another_frequency_and_another_tokenizer(sources, convert_to, monkeypatch):
    """Negative controls: what `transformers` would compute differently is seen."""
    write = esm.write_hf_esm

    def with_usual_frequencies(model, directory, options):
        usual = 10000.0 ** -(torch.arange(0, 4, 2) / 4)
        write(replace(model, tensors=model.tensors | {"rotary_embeddings.inv_freq": usual}), directory, options)

    def with_another_tokenizer(model, directory, options):
        write(model, directory, options)
        settings = json.loads((directory / "tokenizer_config.json").read_text()) | {"eos_token": None}
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
        (directory / "special_tokens_map.json").unlink()

    for writer, message in ((with_usual_frequencies, "inv_freq"), (with_another_tokenizer, "AutoTokenizer does not")):
        monkeypatch.setitem(FORMATS, "esm", replace(FORMATS["esm"], write=writer))
        printed = convert_to(sources["esm2", "esm"], "x", "--target", "esm", "--verify", status=1)[1]
        assert "verification failed" in printed and message in printed


# ---- models of our own

SHAPE = {"hidden_size": HIDDEN, "num_layers": LAYERS, "num_attention_heads": HEADS, "max_position_embeddings": 40}
ROPE = {"position_embedding_type": "rope", "hidden_act": "gelu", "layernorm_epsilon": 1e-5}


def own_model(tokenizer: str = "esm", seed: int = 1, **options) -> PortableModel:
    kind = build_tokenizer(tokenizer)
    mask = kind.mask_id if options.get("token_dropout") else None
    config = ModelConfig(**SHAPE | options, vocab_size=kind.vocab_size, mask_token_id=mask)
    bert = ProteinBert(config)
    initialize(bert, seed)
    with torch.no_grad():
        for name, parameter in bert.named_parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name)))
            if name in ("word_embeddings.weight", "lm_head.bias", "lm_head.decoder.weight"):
                parameter[kind.vocab_size :] = 0
    return PortableModel(config, kind, dict(bert.state_dict()), "run").checked()


def write_run(directory: Path, model: PortableModel) -> Path:
    """What `python -m pretrain` saves."""
    meta = {"model_config": asdict(model.config), "tokenizer": model.tokenizer.to_dict(), "counters": {"iteration": 7}}
    save_checkpoint(directory, 7, {"model": model.tensors}, meta)
    return directory


@pytest.mark.parametrize("token_dropout", [False, True])
def test_our_own_pretraining_is_a_stock_directory(tmp_path, convert_to, token_dropout):
    model = own_model(**ROPE, token_dropout=token_dropout)
    target, printed = convert_to(write_run(tmp_path / "run", model), "esm", "--target", "esm", "--verify")
    assert "zeros are written for it" in printed and "through transformers" in printed
    stock, info = transformers.AutoModelForMaskedLM.from_pretrained(target, output_loading_info=True)
    assert type(stock) is transformers.EsmForMaskedLM and not any(info.values())
    assert stock.esm.embeddings.word_embeddings.weight.shape == (33, HIDDEN)  # no padding rows
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    assert type(tokenizer) is transformers.EsmTokenizer and tokenizer.mask_token_id == 32
    batch = tokenizer([PROTEIN, "MK<mask>V"], return_tensors="pt", padding=True)
    assert batch["input_ids"][1].tolist() == [0, 20, 15, 32, 7, 2, *[1] * 6]
    bert = model.build()
    with torch.no_grad():
        logits = stock.eval()(**batch).logits
        for row, length in ((0, len(PROTEIN) + 2), (1, 6)):
            tokens, bounds = batch["input_ids"][row, :length], torch.tensor([0, length], dtype=torch.int32)
            expected = bert.lm_logits(bert(tokens, torch.arange(length), bounds))[:, :33]
            torch.testing.assert_close(logits[row, :length], expected, rtol=0, atol=1e-5)
    back = read(target)
    assert back.contact_head is None
    assert_same_bits(back.tensors, FORMATS["esm"].prepare(model, OPTIONS).tensors)


def test_our_own_vocabulary_is_moved_by_name(tmp_path, convert_to):
    """A model of the published kind (learned positions from row 0, 31 tokens), with the erf GELU."""
    model = own_model("iupac", hidden_act="gelu")
    target, printed = convert_to(write_run(tmp_path / "run", model), "esm", "--target", "esm", "--verify")
    assert "rows of [unused1] left out" in printed and "rows of ., -, <null_1> are zeros" in printed
    assert "2 rows of zeros put before the position embedding" in printed and "ends proteins with <eos>" in printed
    stored = load_file(target / "model.safetensors")
    words, own = stored["esm.embeddings.word_embeddings.weight"], model.tensors["word_embeddings.weight"]
    for token, name in (("A", "A"), ("<eos>", "[SEP]"), ("<mask>", "[MASK]"), ("<cls>", "[CLS]"), ("Z", "Z")):
        assert torch.equal(words[ESM_TOKENS.index(token)], own[PRETRAIN_TOKENS.index(name)])
    positions = stored["esm.embeddings.position_embeddings.weight"]
    assert positions.shape == (42, HIDDEN) and not positions[:2].any()


def test_an_encoder_alone(convert_to, tmp_path):
    model = own_model(**ROPE)
    encoder = {name: tensor for name, tensor in model.tensors.items() if not name.startswith("lm_head.")}
    target = tmp_path / "alone"
    target.mkdir()
    stored = FORMATS["esm"].prepare(replace(model, tensors=encoder), OPTIONS)
    FORMATS["esm"].write(stored, target, OPTIONS)
    assert json.loads((target / "config.json").read_text())["architectures"] == ["EsmModel"]
    _, printed = convert_to(target, "again", "--target", "esm", "--verify")
    assert "without masked-LM head" in printed and "through transformers" in printed
    fair, printed = convert_to(target, "fair", "--target", "fair-esm")
    assert "a fresh one was made" in printed and read(fair).has_lm_head


def test_an_untied_head(convert_to, tmp_path):
    model = own_model(**ROPE, untie_embeddings_and_output_weights=True)
    target, _ = convert_to(write_run(tmp_path / "run", model), "esm", "--target", "esm", "--verify")
    assert json.loads((target / "config.json").read_text())["tie_word_embeddings"] is False
    assert convert_to(target, "fair", "--target", "fair-esm", status=2)[1].count("untie_embeddings_and_output_weights")


# ---- what a target cannot say

REFUSED = [
    ("esm", {"hidden_act": "gelu_new"}, "hidden_act gelu_new; Hugging Face's ESM has hidden_act gelu only"),
    ("esm", {"swiglu": True}, "hidden_act swish; Hugging Face's ESM has hidden_act gelu only"),
    ("esm", {"normalization": "RMSNorm"}, "normalization RMSNorm; Hugging Face's ESM has normalization LayerNorm only"),
    ("esm", {"add_bias_linear": False}, "add_bias_linear False; "),
    ("esm", {"qk_layernorm": True}, "qk_layernorm True; "),
    ("esm", {"residual_scale": 0.5}, "residual_scale 0.5; "),
    ("esm", {"lm_head_transform": False}, "lm_head_transform False; "),
    ("esm", {"lm_head_act": "relu"}, "lm_head_act relu; "),
    ("esm", {"position_embedding_type": "none"}, "position_embedding_type none; Hugging Face's ESM has"),
    ("esm", {"final_layernorm": False}, "final_layernorm is false, and Hugging Face's ESM always applies that norm"),
    ("fair-esm", {"layernorm_epsilon": 1e-12}, "layernorm_epsilon 1e-12; fair-esm has layernorm_epsilon 1e-05 only"),
    ("fair-esm", {"ffn_hidden_size": 20}, "ffn_hidden_size 20; fair-esm's ESM-2 has ffn_hidden_size 32 only"),
    ("fair-esm", {"embedding_layernorm": True}, "embedding_layernorm True; fair-esm's ESM-2 has"),
    ("fair-esm", {"position_embedding_type": "learned_absolute"}, "token_dropout False; fair-esm's ESM-1b has"),
    (
        *("fair-esm", {"position_embedding_type": "learned_absolute", "token_dropout": True}),
        "its row of <mask> is not zero, and fair-esm sets ESM-1b's to zero",
    ),
    *[
        (target, changes, message)
        for target in ("megatron", "hf")
        for changes, message in (
            ({}, "position_embedding_type rope; "),
            ({"position_embedding_type": "learned_absolute", "position_offset": 2}, "position_offset 2; "),
            ({"position_embedding_type": "learned_absolute", "token_dropout": True}, "token_dropout True; "),
            ({"position_embedding_type": "learned_absolute", "embedding_layernorm": True}, "embedding_layernorm True"),
            ({"position_embedding_type": "none"}, "position_embedding_type none; "),
        )
    ],
]


@pytest.mark.parametrize(("target", "options", "message"), REFUSED)
def test_options_that_a_target_cannot_say(target, options, message):
    with pytest.raises(InputError) as refused:
        FORMATS[target].prepare(own_model(**ROPE | options), OPTIONS)
    assert str(refused.value).startswith("run: ") and message in str(refused.value)


def test_contact_regression_without_a_place(convert_to):
    plain = own_model("iupac")
    head = ContactRegression(torch.ones(1, LAYERS * HEADS), torch.ones(1))
    for target in ("megatron", "hf"):
        stored = FORMATS[target].prepare(replace(plain, contact_head=head), OPTIONS)
        assert stored.contact_head is None
        assert any("the contact regression is left out" in note for note in stored.notes)
    wide = ContactRegression(torch.ones(1, 9), torch.ones(1))
    with pytest.raises(InputError, match=r"contact_head.regression.weight has shape \[1, 9\]"):
        replace(plain, contact_head=wide).checked()


# ---- which file is what


def test_a_megatron_file_of_any_name(tmp_path, sources, convert_to):
    write_megatron(tmp_path / "megatron", megatron_weights())
    (file,) = (tmp_path / "megatron").rglob("*.pt")
    renamed = file.rename(tmp_path / "published.pt")
    assert recognise(renamed) == "megatron" and recognise(sources["esm2", "fair-esm"]) == "fair-esm"
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(sources["esm2", "fair-esm"].read_bytes()[:500])
    assert str(damaged) in convert_to(damaged, "x", status=2)[1]
    with pytest.raises(InputError, match="language_model is a dict, not a tensor"):
        read(renamed, "fair-esm")


def test_predictions_of_contacts_survive(sources, convert_to):
    expected = peer().predict_contacts(torch.tensor([[0, 20, 15, 7, 5, 2]]), torch.ones(1, 6))[0]
    for target in ("tape", "esm", "fair-esm"):
        directory, _ = convert_to(sources["esm2", "esm"], target, "--target", target)
        maps = proteinlm.load(directory, device="cpu").contacts("MKVA", tensors=True)[0]
        torch.testing.assert_close(maps, expected.detach(), rtol=0, atol=1e-5)
