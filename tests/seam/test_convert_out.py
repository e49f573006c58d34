"""Checkpoints out: TAPE, Hugging Face, Megatron and DCP directories, round trips, and what `--verify` sees."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from megatron_writer import VOCABULARY, our_tensors, random_weights, write_megatron
from safetensors import safe_open

from converter.formats import WriteOptions
from converter.sources import FORMATS, read
from proteinlm.tokenizer import PRETRAIN_TOKENS
from proteinlm.untrusted.safe_load import safe_torch_load

FIXTURES = Path(__file__).parents[3] / "shared/fixtures/megatron"
needs_fixtures = pytest.mark.skipif(not FIXTURES.is_dir(), reason="the fixtures are not beside this checkout")
UNUSED = PRETRAIN_TOKENS.index("[unused1]")
PROTEIN = "MKTAYIAKQRQISFVKSHFSRQ"


def assert_equal(a: dict, b: dict) -> None:
    assert set(a) == set(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), name


# ---- TAPE


def test_tape_directory(megatron_dir, convert_to):
    target, printed = convert_to(megatron_dir, "tape", "--target", "tape", "--verify", "--bin")
    config = json.loads((target / "config.json").read_text())
    assert (config["hidden_act"], config["lm_head_act"], config["vocab_size"]) == ("gelu_new", "gelu", 30)
    assert "[unused1] left out" in printed and "bit for bit" in printed
    assert (target / "conversion_report.txt").read_text().strip().splitlines()[-1].startswith("wrote")
    with safe_open(str(target / "model.safetensors"), "pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert_equal(stored, safe_torch_load(target / "pytorch_model.bin"))
    expected, rows = our_tensors(random_weights()), [i for i in range(VOCABULARY) if i != UNUSED]
    assert torch.equal(stored["bert.embeddings.word_embeddings.weight"], expected["word_embeddings.weight"][rows])
    assert torch.equal(stored["mlm.decoder.weight"], expected["word_embeddings.weight"][rows])
    assert torch.equal(stored["mlm.bias"], expected["lm_head.bias"][rows])
    query = stored["bert.encoder.layer.1.attention.self.query.weight"]
    assert torch.equal(query, torch.from_numpy(random_weights().layers[1]["query_weight"].reshape(32, 32)))


@needs_fixtures
@pytest.mark.parametrize("act", ["tanh", "erf"])
def test_tape_answers(act, convert_to):
    """Hidden states of TAPE's model on TAPE's tokens, against another implementation's."""
    from tape import ProteinBertModel

    override = ["--hidden-act", "gelu"] if act == "erf" else []
    target, _ = convert_to(FIXTURES / "tp4_pp4_v3", "tape", *override)
    expected, model = np.load(FIXTURES / "expected.npz"), ProteinBertModel.from_pretrained(target)
    for n in range(3):
        with torch.no_grad():
            hidden = model(torch.from_numpy(expected[f"tape_ids_{n}"]).long().reshape(1, -1))[0][0]
        assert np.abs(hidden.numpy() - expected[f"tape_hidden_{act}_{n}"]).max() < 1e-5


@needs_fixtures
def test_the_originals_directory(convert_to):
    """Made by the original converter of tp1_pp1_v3: erf, a random head that is dropped, a final LN it never applied."""
    from tape import ProteinBertModel

    expected, source = np.load(FIXTURES / "expected.npz"), FIXTURES / "tape_original"
    model = read(source)
    assert not model.has_lm_head and any("mlm.* dropped" in note for note in model.notes)
    assert any("--hidden-act gelu_new" in note for note in model.notes)
    assert any("bert_tail_dense" in note for note in model.notes)
    target, printed = convert_to(source, "tape", "--verify")
    assert "without masked-LM head" in printed
    for directory, options, name in (
        (source, {}, "tape_hidden_erf"),
        (target, {}, "tape_hidden_erf"),
        (source, {"final_layernorm": False}, "tape_hidden_no_final_ln_erf"),
    ):
        model = ProteinBertModel.from_pretrained(directory, **options)
        for n in range(3):
            with torch.no_grad():
                hidden = model(torch.from_numpy(expected[f"tape_ids_{n}"]).long().reshape(1, -1))[0][0]
            assert np.abs(hidden.numpy() - expected[f"{name}_{n}"]).max() < 1e-5, name


# ---- Hugging Face


@pytest.mark.parametrize("act", ["gelu", "gelu_new"])
def test_hf_directory(megatron_dir, convert_to, act):
    transformers = pytest.importorskip("transformers")
    target, printed = convert_to(megatron_dir, "hf", "--target", "hf", "--hidden-act", act, "--verify")
    assert "through transformers" in printed
    assert ("logits are not compared" in printed) == (act == "gelu_new")
    model, info = transformers.MegatronBertForMaskedLM.from_pretrained(target, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(target)
    batch = tokenizer(["MKV", "mk tayj"], return_tensors="pt", padding=True)
    ids = [["[CLS]", *"MKV", "[PAD]", "[PAD]", "[PAD]"], ["[CLS]", *"MKTAY", "[UNK]"]]
    assert batch["input_ids"].tolist() == [[PRETRAIN_TOKENS.index(token) for token in row] for row in ids]
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert tokenizer.mask_token_id == 1 and tokenizer.decode(batch["input_ids"][1][1:4]) == "MKT"
    assert tokenizer("M[MASK]V")["input_ids"] == [2, 17, 1, 26]
    assert model(**batch).logits.shape == (2, 7, 31)


def test_hf_without_transformers(megatron_dir, convert_to, monkeypatch):
    """Writing needs no transformers; verifying says that it is missing and judges by what is there."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    printed = convert_to(megatron_dir, "hf", "--target", "hf", "--verify")[1]
    assert "transformers is not installed" in printed and "(through pretrain)" in printed


def test_hf_as_transformers_saves_it(megatron_dir, convert_to, tmp_path):
    """What HF itself writes (tied tensors left out, its own config) comes back the same; several files too."""
    transformers = pytest.importorskip("transformers")
    target, _ = convert_to(megatron_dir, "hf", "--target", "hf")
    model = transformers.MegatronBertForMaskedLM.from_pretrained(target)
    model.save_pretrained(tmp_path / "again")
    (tmp_path / "again/vocab.txt").write_text("\n".join(PRETRAIN_TOKENS))
    assert_equal(read(tmp_path / "again").tensors, read(target).tensors)
    model.save_pretrained(tmp_path / "many", max_shard_size="50KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    many = read(tmp_path / "many")
    assert_equal(many.tensors, read(target).tensors)
    assert any("taken for the pretraining tokens" in note for note in many.notes)
    torch.save(model.state_dict(), tmp_path / "again/pytorch_model.bin")
    (tmp_path / "again/model.safetensors").unlink()
    assert_equal(read(tmp_path / "again").tensors, read(target).tensors)


def test_hf_rows_go_by_token(megatron_dir, convert_to, tmp_path):
    """A directory whose vocabulary is in another order, with other names for special tokens, and one token more."""
    transformers = pytest.importorskip("transformers")
    target, _ = convert_to(megatron_dir, "hf", "--target", "hf")
    state = transformers.MegatronBertForMaskedLM.from_pretrained(target).state_dict()
    order = list(reversed(range(VOCABULARY)))
    order.remove(UNUSED)
    for name in [name for name in state if state[name].shape[:1] == (VOCABULARY,)]:
        state[name] = torch.cat([state[name][order], state[name][:1]])
    names = {"[PAD]": "<pad>", "[CLS]": "<cls>", "[MASK]": "<mask>"}
    tokens = [names.get(PRETRAIN_TOKENS[i], PRETRAIN_TOKENS[i]) for i in order] + ["J"]
    other = tmp_path / "other"
    other.mkdir()
    torch.save(state, other / "pytorch_model.bin")
    (other / "vocab.txt").write_text("\n".join(tokens))
    config = json.loads((target / "config.json").read_text()) | {"vocab_size": len(tokens)}
    (other / "config.json").write_text(json.dumps(config))
    model, expected = read(other), read(target)
    assert any("rows of J left out" in note for note in model.notes)
    assert any("rows of [unused1] are zeros" in note for note in model.notes)
    for name, tensor in expected.tensors.items():
        tensor = tensor.clone()
        if name in ("word_embeddings.weight", "lm_head.bias"):
            tensor[UNUSED] = 0
        assert torch.equal(model.tensors[name], tensor), name


# ---- Megatron


def flat(value: dict, prefix: str = "") -> dict[str, torch.Tensor]:
    result = {}
    for key, inner in value.items():
        name = f"{prefix}.{key}" if prefix else key
        result |= flat(inner, name) if isinstance(inner, dict) else {name: inner}
    return result


def assert_same_files(written: Path, reference: Path, in_order: bool = True) -> None:
    """The `model` dicts are equal key for key (in the same order too), padding rows aside bit for bit."""
    files = sorted(path.relative_to(reference) for path in reference.rglob("*.pt"))
    assert sorted(path.relative_to(written) for path in written.rglob("*.pt")) == files
    for file in files:
        a, b = safe_torch_load(written / file), safe_torch_load(reference / file)
        assert a["checkpoint_version"] == b["checkpoint_version"] and a["iteration"] == b["iteration"]
        for name, value in vars(b["args"]).items():
            if name not in ("seed", "consumed_valid_samples"):
                assert getattr(a["args"], name) == value, name
        tensors, other, rank = flat(a["model"]), flat(b["model"]), int(re.search(r"rank_(\d\d)", str(file))[1])
        assert list(tensors) == list(other) if in_order else set(tensors) == set(other)
        for name in other:
            tensor, expected = tensors[name], other[name]
            assert tensor.shape == expected.shape and tensor.dtype == expected.dtype, name
            if "word_embeddings" in name or name == "lm_head.bias":
                real = max(0, min(len(expected), VOCABULARY - rank * len(expected)))
                assert not tensor[real:].any()
                tensor, expected = tensor[:real], expected[:real]
            assert torch.equal(tensor, expected), name
            assert tensors[name].untyped_storage().nbytes() == tensors[name].nbytes, (
                name
            )  # no view drags its whole along


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 4), (2, 2), (4, 4)])
def test_megatron_export_is_what_megatron_writes(megatron_dir, convert_to, tmp_path, tp, pp):
    flags = ["--tensor-model-parallel-size", tp, "--pipeline-model-parallel-size", pp]
    target, _ = convert_to(megatron_dir, "out", "--target", "megatron", *flags)
    write_megatron(tmp_path / "expected", random_weights(), tp, pp, 3.0)
    assert (target / "latest_checkpointed_iteration.txt").read_text() == "1000"
    for file in target.rglob("*.pt"):
        assert file.stat().st_size < 2 * (tmp_path / "expected" / file.relative_to(target)).stat().st_size
    assert_same_files(target, tmp_path / "expected", in_order=False)


@needs_fixtures
def test_megatron_export_equals_the_fixture(convert_to):
    flags = ["--tensor-model-parallel-size", 2, "--pipeline-model-parallel-size", 2]
    target, _ = convert_to(FIXTURES / "tp1_pp1_v3", "out", "--target", "megatron", *flags, "--verify")
    assert_same_files(target, FIXTURES / "tp2_pp2_v3")


@pytest.mark.parametrize(
    ("tp", "pp", "message"),
    [
        (3, 1, "--tensor-model-parallel-size 3 must divide num-attention-heads 4"),
        (8, 1, "--tensor-model-parallel-size 8 must divide num-attention-heads 4"),
        (1, 3, "--pipeline-model-parallel-size 3 must divide num-layers 4"),
    ],
)
def test_uneven_splits_are_refused_by_name(megatron_dir, convert_to, tp, pp, message):
    flags = ["--tensor-model-parallel-size", tp, "--pipeline-model-parallel-size", pp]
    assert message in convert_to(megatron_dir, "out", "--target", "megatron", *flags, status=2)[1]


def test_uneven_ffn_is_refused_by_name(tmp_path, convert_to):
    write_megatron(tmp_path / "in", random_weights(ffn=90))
    flags = ["--target", "megatron", "--tensor-model-parallel-size", 4]
    assert "must divide ffn-hidden-size 90" in convert_to(tmp_path / "in", "out", *flags, status=2)[1]


# ---- round trips


@pytest.mark.parametrize(
    ("seed", "hidden", "heads", "layers", "ffn"), [(1, 32, 4, 4, 128), (2, 24, 2, 2, 40), (3, 64, 8, 6, 96)]
)
def test_round_trip_through_everything(tmp_path, convert_to, seed, hidden, heads, layers, ffn):
    """DCP -> Megatron (TP 2, PP 2) -> TAPE -> Hugging Face -> DCP: bit for bit, but for what TAPE cannot hold."""
    weights = random_weights(seed, hidden, heads, layers, 40, ffn)
    write_megatron(tmp_path / "in", weights)
    path, first = tmp_path / "in", None
    trip = (
        ("dcp", []),
        ("megatron", ["--tensor-model-parallel-size", 2, "--pipeline-model-parallel-size", 2]),
        ("tape", []),
        ("hf", []),
        ("dcp", []),
    )
    for step, (target, flags) in enumerate(trip):
        path, printed = convert_to(path, f"{step}_{target}", "--target", target, *flags)
        if target == "tape":
            assert "rows of [unused1] left out" in printed
        if target == "hf":
            assert "rows of [unused1] are zeros" in printed
        first = first or read(path)
    last = read(path)
    keep = ("hidden_act", "lm_head_act", "ffn_hidden_size", "layernorm_epsilon", "num_attention_heads", "vocab_size")
    assert [getattr(last.config, name) for name in keep] == [getattr(first.config, name) for name in keep]
    assert last.config.make_vocab_size_divisible_by == 128
    expected = {name: tensor.clone() for name, tensor in first.tensors.items()}
    for name in ("word_embeddings.weight", "lm_head.bias"):
        assert expected[name][UNUSED].any()
        expected[name][UNUSED] = 0
    assert_equal(last.tensors, expected)
    for name, tensor in our_tensors(weights).items():
        assert torch.equal(first.tensors[name][: len(tensor)], tensor), name


# ---- dtype, heads, verification


@pytest.mark.parametrize("target", ["tape", "hf", "megatron", "dcp"])
@pytest.mark.parametrize(("flag", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
@pytest.mark.slow
def test_dtype(megatron_dir, convert_to, target, flag, dtype):
    path, printed = convert_to(megatron_dir, "out", "--target", target, "--dtype", flag, "--verify")
    assert "rounding to" in printed
    model = read(path)
    assert {tensor.dtype for tensor in model.tensors.values()} == {dtype}
    back, _ = convert_to(path, "back", "--target", "dcp", "--dtype", "fp32")
    assert read(back).dtype == torch.float32
    qkv = "layers.3.attention.query_key_value.weight"
    assert torch.equal(read(back).tensors[qkv], our_tensors(random_weights())[qkv].to(dtype).float())


def test_numbers_beyond_half_precision_are_refused(tmp_path, convert_to):
    weights = random_weights()
    weights.final["weight"][3] = 1e6
    write_megatron(tmp_path / "in", weights)
    printed = convert_to(tmp_path / "in", "out", "--dtype", "fp16", status=2)[1]
    assert "final_layernorm.weight holds 1e+06, beyond float16" in printed


@pytest.mark.parametrize("target", ["hf", "megatron", "dcp"])
def test_a_source_without_head(megatron_dir, convert_to, tmp_path, target):
    model = FORMATS["tape"].prepare(read(megatron_dir), WriteOptions())
    encoder = {name: tensor for name, tensor in model.tensors.items() if not name.startswith("lm_head.")}
    (tmp_path / "encoder").mkdir()
    FORMATS["tape"].write(replace(model, tensors=encoder), tmp_path / "encoder", WriteOptions())
    path, printed = convert_to(tmp_path / "encoder", "out", "--target", target, "--verify")
    assert "without masked-LM head" in printed
    assert read(path).has_lm_head == (target != "hf")
    if target != "hf":
        assert "a fresh one was made" in printed


@pytest.mark.parametrize("target", ["tape", "hf", "megatron", "dcp"])
def test_verification_sees_a_wrong_result(megatron_dir, convert_to, monkeypatch, target):
    """Negative control: one number of one tensor is written wrongly, and nothing appears under the final name."""

    def wrong(model, directory, options):
        tensors = {n: t.clone() for n, t in model.tensors.items()}
        tensors["layers.2.attention.query_key_value.weight"][5, 7] += 1e-3
        right.write(replace(model, tensors=tensors), directory, options)

    right = FORMATS[target]
    monkeypatch.setitem(FORMATS, target, replace(right, write=wrong))
    printed = convert_to(megatron_dir, "out", "--target", target, "--verify", status=1)[1]
    assert "1 of 57 tensors read back differ, first layers.2.attention.query_key_value.weight" in printed


@pytest.mark.parametrize("target", ["tape", "hf"])
def test_verification_sees_a_wrong_activation(megatron_dir, convert_to, monkeypatch, target):
    """The tensors are right and the model is not: the format's own software shows it."""

    def wrong(model, directory, options):
        right.write(model.with_config(hidden_act="relu"), directory, options)

    right = FORMATS[target]
    monkeypatch.setitem(FORMATS, target, replace(right, write=wrong))
    assert "that is more than 1e-05" in convert_to(megatron_dir, "out", "--target", target, "--verify", status=1)[1]


def test_final_layernorm_false_stays_in_tape(megatron_dir, convert_to):
    tape, _ = convert_to(megatron_dir, "tape")
    config = json.loads((tape / "config.json").read_text())
    (tape / "config.json").write_text(json.dumps(config | {"final_layernorm": False}))
    for target in ("hf", "megatron", "dcp"):
        assert "final_layernorm is false" in convert_to(tape, target, "--target", target, status=2)[1]
    assert convert_to(tape, "again", "--verify")


def test_an_activation_that_megatron_cannot_say(megatron_dir, convert_to):
    tape, _ = convert_to(megatron_dir, "tape")
    config = json.loads((tape / "config.json").read_text()) | {"hidden_act": "gelu", "lm_head_act": "gelu_new"}
    (tape / "config.json").write_text(json.dumps(config))
    path, printed = convert_to(tape, "out", "--target", "megatron", "--verify")
    assert "Megatron cannot express hidden_act gelu with lm_head_act gelu_new" in printed
    assert "logits are not compared" in printed
    assert (read(path).config.hidden_act, read(path).config.lm_head_act) == ("gelu", "gelu")
