"""What `proteinlm.load` and its encoder cannot take is one InputError, and every command has the same line for it."""

import json
import re

import numpy as np
import pytest
from toy_model import write_model

import proteinlm
from proteinlm import errors
from proteinlm.errors import InputError
from tape import ProteinLSTMModel, embed, evaluate, predict, reproduce, train


@pytest.mark.parametrize(
    ("sequences", "name"),
    [
        *[({"P12345": "MKV"}, "dict"), ({"MKV"}, "set"), (frozenset({"MKV"}), "frozenset"), (b"MKV", "bytes")],
        *[(None, "NoneType"), (5, "int"), (np.array("MKV"), "ndarray")],
    ],
)
def test_what_is_no_list_of_proteins(encoder, sequences, name):
    for method in (encoder.embed, encoder.logits, encoder.hidden_states):
        with pytest.raises(InputError, match=f"^sequences: a {name}; should be a string, or a list of strings$"):
            method(sequences)


def test_whatever_has_an_order_is_a_list_of_proteins(encoder):
    expected = encoder.embed(["MKV", "MK"])
    for sequences in (("MKV", "MK"), {"MKV": 1, "MK": 2}.keys(), {1: "MKV", 2: "MK"}.values(), np.array(["MKV", "MK"])):
        np.testing.assert_array_equal(encoder.embed(sequences), expected)


@pytest.mark.parametrize("value", [1.0, 2.5, "1", True, np.True_, [1]])
def test_what_is_no_whole_number(encoder, value):
    for name in ("layer", "batch_tokens"):
        with pytest.raises(InputError, match=re.escape(f"{name} {value!r}: should be a whole number")):
            encoder.embed("MKV", **{name: value})
    with pytest.raises(InputError, match="layer None: should be a whole number"):
        encoder.embed("MKV", layer=None)
    with pytest.raises(InputError, match="batch_tokens 0: should be 1 or more"):
        encoder.logits("MKV", batch_tokens=0)


@pytest.mark.parametrize("kind", [int, np.int64, np.int8, np.uint8])
def test_whole_numbers_of_numpy_are_as_good(encoder, kind):
    np.testing.assert_array_equal(encoder.embed("MKV", layer=kind(1)), encoder.embed("MKV", layer=1))
    np.testing.assert_array_equal(encoder.embed("MKV", batch_tokens=kind(9)), encoder.embed("MKV", batch_tokens=9))


def test_other_arguments_of_a_wrong_kind(encoder, directory):
    with pytest.raises(InputError, match=r"^pooling \['mean'\]: should be one of mean, cls, avg, or None$"):
        encoder.embed("MKV", pooling=["mean"])
    for dtype in (["fp16"], {}, None, 16):
        with pytest.raises(InputError, match=re.escape(f"dtype {dtype!r}: should be one of fp32, bf16, fp16")):
            proteinlm.load(directory, dtype)
    for path in (None, 5, b"model"):
        with pytest.raises(InputError, match=re.escape(f"model {path!r}: should be the path of a model directory")):
            proteinlm.load(path)
    with pytest.raises(InputError, match=r"^device 'meta': should be auto, cpu or cuda"):
        proteinlm.load(directory, device="meta")
    assert proteinlm.load(directory, device=None).device == proteinlm.load(directory).device


CHECKPOINT = r"{0}: a training checkpoint; python -m converter --load {0} --save DIR --target tape makes a model of it"
INSIDE = r"{0}: a file of a model directory; give the directory, \S*model"
OTHER = r"{0}: a file; a model directory holds config.json and model.safetensors or pytorch_model.bin"
OTHER_TYPE = (
    "{0}: Hugging Face's 'bert'; its model type is huggingface "
    r"\(tape-train huggingface TASK --from_pretrained {0} \.\.\.\)"
)
MEGATRON_BERT = (
    "{0}: Hugging Face's 'megatron-bert'; python -m converter --load {0} --save DIR --target tape makes a model of it"
)
# What is at a path -> the one line about it.
LINES = {
    "checkpoint": CHECKPOINT,
    "checkpoint/iter_0000005": CHECKPOINT,
    "model_optim_rng.pt": CHECKPOINT,
    "other.pt": OTHER,
    "model/config.json": INSIDE,
    "model/model.safetensors": INSIDE,
    "megatron-bert": MEGATRON_BERT,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A directory of all that can be taken for a model directory and is none."""
    home = tmp_path_factory.mktemp("home")
    write_model(home / "model")
    (home / "checkpoint/iter_0000005").mkdir(parents=True)
    (home / "checkpoint/iter_0000005/meta.json").write_text("{}")
    for name in ("model_optim_rng.pt", "other.pt"):
        (home / name).write_bytes(b"PK")
    for name in ("bert", "megatron-bert"):
        (home / name).mkdir()
        (home / name / "config.json").write_text(json.dumps({"model_type": name, "vocab_size": 30}))
        (home / name / "model.safetensors").write_bytes(b"")
    (home / "one.fasta").write_text(">a\nMKV\n")
    return home


COMMANDS = {
    "tape-train": (train.main, "transformer stability --data_dir . --output_dir run --device cpu --from_pretrained {}"),
    "tape-embed": (embed.main, "transformer one.fasta out.npz {} --device cpu"),
    "tape-predict": (predict.main, "{} one.fasta out.tsv --device cpu --task stability"),
    "tape-eval": (evaluate.main, "transformer stability {} --data_dir . --device cpu"),
    "tape.reproduce": (reproduce.main, "{} . out --preset cpu --tasks stability --arms pretrained --device cpu"),
}


@pytest.mark.parametrize("path", LINES)
def test_the_message_says_what_to_do(home, path):
    with pytest.raises(InputError, match=f"^{LINES[path].format(home / path)}$"):
        proteinlm.load(home / path, device="cpu")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_says_the_same(home, monkeypatch, capsys, command):
    monkeypatch.chdir(home)
    main, words = COMMANDS[command]
    for path, line in LINES.items():
        capsys.readouterr()
        status, error = errors.run(main, words.format(path).split()), capsys.readouterr().err
        assert (path, status) == (path, 2) and re.search(f"error: {line.format(path)}$", error.strip()), error


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "tape.reproduce"])
def test_model_type_transformer_is_not_transformers(home, monkeypatch, capsys, command):
    """Which proteinlm.load and tape.reproduce find out; there is no tokenizer here, and they say so."""
    monkeypatch.chdir(home)
    main, words = COMMANDS[command]
    assert errors.run(main, words.format("bert").split()) == 2
    assert re.search(f"error: {OTHER_TYPE.format('bert')}$", capsys.readouterr().err.strip())
    with pytest.raises(InputError, match=r"bert: its tokenizer .*: A, C, D are not one token"):
        proteinlm.load(home / "bert", device="cpu")


def test_tapes_other_models_say_the_same(home):
    for path in ("checkpoint", "model_optim_rng.pt", "model/config.json", "model/model.safetensors"):
        with pytest.raises(InputError, match=f"^{LINES[path].format(home / path)}$"):
            ProteinLSTMModel.from_pretrained(home / path)
