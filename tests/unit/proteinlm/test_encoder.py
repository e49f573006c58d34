"""proteinlm.load and its encoder: against the network run by hand on one protein at a time, TAPE's masked-LM model on
padded batches, and Hugging Face's MegatronBert layer by layer.
"""

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from toy_model import CONFIG, write_model

import proteinlm
from proteinlm import encoder as encoder_module
from proteinlm.errors import InputError

LETTERS = list("ACDEFGHIKLMNPQRSTVWYX")


@pytest.fixture(scope="module")
def proteins():
    rng = np.random.default_rng(0)
    return ["".join(rng.choice(LETTERS, length)) for length in rng.permutation(np.arange(1, 41, 3))]


@torch.no_grad()
def by_hand(encoder, protein):
    """(hidden states [layers + 1, T, h], logits [T, V]) of one protein alone."""
    tokenizer = encoder.tokenizer
    ids = torch.tensor([tokenizer.cls_id, *map(tokenizer.tokens.index, protein), tokenizer.sep_id])
    bounds = torch.tensor([0, len(ids)], dtype=torch.int32)
    states = encoder.model.hidden_states(ids, torch.arange(len(ids)), bounds)
    return torch.stack(states).numpy(), encoder.model.lm_logits(states[-1]).numpy()


def largest_difference(results, expected):
    """Over all proteins; their shapes must agree."""
    assert [result.shape for result in results] == [value.shape for value in expected]
    return max(np.abs(result - value).max() for result, value in zip(results, expected, strict=True))


def test_each_protein_gets_what_it_gets_alone(encoder, proteins):
    alone = [by_hand(encoder, protein) for protein in proteins]
    states, logits = [states for states, _ in alone], [logits[1:-1] for _, logits in alone]
    for batch_tokens in (1, 50, None):
        options = {"batch_tokens": batch_tokens}
        assert largest_difference(encoder.hidden_states(proteins, **options), [s[:, 1:-1] for s in states]) < 1e-5
        assert largest_difference(encoder.logits(proteins, **options), logits) < 1e-5
        for layer in (0, 1, 2, -1, -3):
            rows = encoder.embed(proteins, None, layer, **options)
            assert largest_difference(rows, [s[layer, 1:-1] for s in states]) < 1e-5
            pooled = {"mean": [s[layer, 1:-1].mean(0) for s in states], "cls": [s[layer, 0] for s in states]}
            pooled["avg"] = [s[layer].mean(0) for s in states]
            for pooling, expected in pooled.items():
                vectors = encoder.embed(proteins, pooling, layer, **options)
                assert isinstance(vectors, np.ndarray) and vectors.dtype == np.float32
                assert largest_difference(vectors, expected) < 1e-5
    # negative control: layers, poolings and neighbours differ by far more than the tolerance
    assert all(np.abs(s[0] - s[1]).max() > 0.1 and np.abs(s[1] - s[2]).max() > 0.1 for s in states)
    assert np.abs(encoder.embed(proteins) - encoder.embed(proteins, "avg")).max() > 0.01
    assert np.abs(np.diff(encoder.embed(proteins), axis=0)).max(1).min() > 0.01


def test_companions_change_nothing_and_a_leak_between_proteins_would_show(directory, proteins, monkeypatch):
    """In float64, where only a real dependence is larger than 1e-12."""
    encoder = proteinlm.load(directory, device="cpu")
    encoder.model.double()
    alone = [encoder.hidden_states(protein)[0] for protein in proteins]
    assert alone[0].dtype == np.float64
    assert largest_difference(encoder.hidden_states(proteins), alone) < 1e-12
    one_protein = property(lambda stream: np.array([0, len(stream.tokens)], np.int32))
    monkeypatch.setattr(encoder_module.Stream, "bounds", one_protein)
    assert largest_difference(encoder.hidden_states(proteins), alone) > 0.01


def test_logits_are_those_of_tapes_model_on_a_padded_batch(encoder, directory, proteins):
    from tape import ProteinBertForMaskedLM, TAPETokenizer

    model = ProteinBertForMaskedLM.from_pretrained(directory)
    rows = [torch.from_numpy(TAPETokenizer().encode(protein)) for protein in proteins]
    with torch.no_grad():
        logits = model(torch.nn.utils.rnn.pad_sequence(rows, batch_first=True))[0].numpy()
    expected = [row[1 : len(protein) + 1] for row, protein in zip(logits, proteins, strict=True)]
    assert largest_difference(encoder.logits(proteins), expected) < 1e-5


@pytest.mark.slow
def test_states_and_logits_are_hugging_faces(tmp_path, proteins):
    transformers = pytest.importorskip("transformers")
    from converter.__main__ import main as convert

    directory = write_model(tmp_path / "erf", hidden_act="gelu")  # Hugging Face has one activation for MLP and head
    convert(["--load", str(directory), "--save", str(tmp_path / "hf"), "--target", "hf"])
    other = transformers.MegatronBertForMaskedLM.from_pretrained(tmp_path / "hf").eval().double()
    loaded = proteinlm.load(directory, device="cpu")
    loaded.model.double()
    for protein in proteins[:5]:
        ids = torch.tensor([2, *(loaded.tokenizer.tokens.index(letter) + 1 for letter in protein), 3])  # [unused1] is 5
        with torch.no_grad():
            outputs = other(ids[None], output_hidden_states=True)
        expected = torch.stack(outputs.hidden_states)[:, 0, 1:-1].numpy()
        assert largest_difference(loaded.hidden_states(protein), [expected]) < 1e-10
        logits = np.delete(outputs.logits[0, 1:-1].numpy(), 5, axis=1)
        assert largest_difference(loaded.logits(protein), [logits]) < 1e-10
        assert largest_difference([np.roll(expected, 1, axis=0)], [expected]) > 0.1  # negative control: another layer


def test_letters_that_are_no_residue(encoder):
    lower, upper = encoder.embed("mkv", None), encoder.embed("MKV", None)
    np.testing.assert_array_equal(lower[0], upper[0])
    unknown = encoder.logits("MJV")[0]
    for letter in "j*- .1é":
        np.testing.assert_array_equal(encoder.logits(f"M{letter}V")[0], unknown)
    assert np.abs(encoder.logits("MXV")[0] - unknown).max() > 0.01  # X is a token of its own


def test_what_goes_in_and_what_comes_out(encoder, proteins):
    np.testing.assert_array_equal(encoder.embed(iter(proteins)), encoder.embed(proteins))
    assert encoder.embed(proteins[0]).shape == (1, 16) and len(encoder.logits(proteins[0])) == 1
    assert encoder.embed([]).shape == (0, 16) and encoder.embed([], None) == encoder.logits([]) == []
    assert encoder.logits("MKV")[0].shape == (3, 30) and encoder.hidden_states("MKV")[0].shape == (3, 3, 16)
    options = {"tensors": True}
    tensors = [encoder.embed(proteins, **options), encoder.embed(proteins, None, **options)[3]]
    tensors += [encoder.logits(proteins, **options)[3], encoder.hidden_states(proteins, **options)[3]]
    arrays = [encoder.embed(proteins), encoder.embed(proteins, None)[3], encoder.logits(proteins)[3]]
    arrays += [encoder.hidden_states(proteins)[3]]
    for tensor, array in zip(tensors, arrays, strict=True):
        assert isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu" and not tensor.requires_grad
        assert tensor.untyped_storage().nbytes() == tensor.numel() * 4  # of its own, not a part of a batch's
        np.testing.assert_array_equal(tensor.numpy(), array)
    assert (encoder.config.hidden_size, encoder.tokenizer.vocab_size) == (16, 30)


def test_a_device_holds_one_batch_of_the_budget(encoder, proteins, monkeypatch):
    sizes, states_after = [], encoder.model.states_after

    def spy(depths, tokens, *rest):
        sizes.append(len(tokens))
        return states_after(depths, tokens, *rest)

    monkeypatch.setattr(encoder.model, "states_after", spy)
    encoder.embed(proteins, batch_tokens=60)
    assert max(sizes) <= 60 and sum(sizes) == sum(map(len, proteins)) + 2 * len(proteins)
    assert len(sizes) < len(proteins)


@pytest.mark.parametrize("dtype", ["bf16", torch.float16])
def test_half_precision_is_autocast_and_comes_back_as_fp32(directory, encoder, proteins, dtype):
    half = proteinlm.load(directory, dtype, "cpu")
    assert next(half.model.parameters()).dtype == torch.float32
    for results, expected in (
        (half.embed(proteins), encoder.embed(proteins)),
        (half.logits(proteins), encoder.logits(proteins)),
        (half.hidden_states(proteins), encoder.hidden_states(proteins)),
    ):
        assert results[0].dtype == np.float32
        assert 0 < largest_difference(results, expected) < 0.3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["MK", ""],), "sequence 1: empty; should be a string of one residue or more"),
        ((["MK", "A" * 62, "A" * 63],), "sequence 2: 63 residues, the model takes 62"),
        ((["MK", b"MK"],), "sequence 1: a bytes; should be"),
        (("MK", "max"), "pooling 'max': should be one of mean, cls, avg, or None"),
        (("MK", "mean", 3), r"layer 3: the model has 2 layers; 0 \(embedding\) to 2, or -1"),
    ],
)
def test_wrong_arguments_are_named(encoder, arguments, message):
    with pytest.raises(InputError, match=f"^{message}"):
        encoder.embed(*arguments)
    with pytest.raises(InputError, match="batch_tokens 0: should be 1 or more"):
        encoder.embed("MK", batch_tokens=0)
    assert encoder.embed("A" * 62).shape == (1, 16)


def test_a_directory_without_a_head_embeds_and_says_why_it_has_no_logits(tmp_path, encoder, caplog):
    headless = proteinlm.load(write_model(tmp_path / "headless", lm_head=False), device="cpu")
    np.testing.assert_array_equal(headless.embed("MKV"), encoder.embed("MKV"))
    with pytest.raises(InputError, match=r"headless: no usable masked-LM head, so no logits"):
        headless.logits("MKV")
    directory = write_model(tmp_path / "untied")
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    save_file(tensors | {"mlm.decoder.weight": tensors["mlm.decoder.weight"] + 1}, directory / "model.safetensors")
    with pytest.raises(InputError, match="no usable masked-LM head"):
        proteinlm.load(directory, device="cpu").logits("MKV")
    assert "mlm.decoder.weight differs from the embedding" in caplog.text


CONVERTER = r"python -m converter --load \S+ --save DIR --target tape"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: (path / "latest_checkpointed_iteration.txt").write_text("5"), f"checkpoint; {CONVERTER} makes a"),
        (lambda path: (path / "iter_0000005").mkdir(), f"a training checkpoint; {CONVERTER}"),
        (lambda path: (path / "meta.json").write_text("{}"), f"a training checkpoint; {CONVERTER}"),
        (lambda path: (path / "mp_rank_00").mkdir(), f"a training checkpoint; {CONVERTER}"),
        (
            lambda path: (path / "readme").write_text("?"),
            "config.json: no such file; a model directory holds config.json",
        ),
        (
            lambda path: write_config(path, model_type="gpt2"),
            "config.json: model_type 'gpt2' is no encoder that transformers has; should be bert, ",
        ),
        (lambda path: write_config(path, base_model="lstm"), "TAPE's lstm, .*; tape-embed lstm IN.fasta OUT "),
        (lambda path: write_config(path, hidden_size=16), "config.json: vocab_size is missing"),
        (lambda path: write_model(path, vocab_size=30, hidden_act="selu"), "hidden_act 'selu' is not one of gelu"),
        (lambda path: write_model(path, layer_norm_eps="tiny"), "layer_norm_eps is 'tiny'; a small positive"),
        (lambda path: write_model(path, layer_norm_eps=1.00001), "layer_norm_eps is 1.00001; a small positive number"),
        (lambda path: write_model(path, layer_norm_eps=0), "layer_norm_eps is 0; a small positive number"),
        (lambda path: write_config(path, model_type=5), "config.json: key 'model_type' is 5; a text was expected"),
        (
            lambda path: write_config(path, base_model=True),
            "config.json: key 'base_model' is True; a text was expected",
        ),
        (lambda path: path.rmdir(), "no such directory"),
    ],
)
def test_what_is_no_model_is_answered_with_what_to_do(tmp_path, make, message):
    (tmp_path / "x.y").mkdir()
    make(tmp_path / "x.y")
    with pytest.raises(InputError, match=message):
        proteinlm.load(tmp_path / "x.y", device="cpu")


def test_a_whole_number_in_a_config_is_the_same_network(tmp_path):
    for name, base in (("whole", 10000), ("float", 10000.0), ("another", 500)):
        write_model(tmp_path / name, rotary_base=base, residual_scale=1)
    whole, float_, another = (
        repr(proteinlm.load(tmp_path / n, device="cpu").config) for n in ("whole", "float", "another")
    )
    assert whole == float_ != another and "rotary_base=10000.0" in whole


def test_a_protein_that_does_not_fit_alone(directory, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("full")

    encoder = proteinlm.load(directory, device="cpu")
    for proteins, line in (
        (["MKV"], "a protein, 5 tokens, even alone, does not fit in CPU memory; should be cropped or left out"),
        (["MKV", "AC"], "a batch of 2 proteins, 9 tokens does not fit in CPU memory; lower --tokens_per_batch "),
    ):
        with pytest.raises(InputError) as error:
            encoder.run(full, encoder_module.make_stream(proteins, encoder.tokenizer))
        assert str(error.value).startswith(line)


def write_config(path, **values):
    (path / "config.json").write_text(json.dumps(values))


def test_a_checkpoint_file_dtype_and_device_are_checked(tmp_path, directory, monkeypatch):
    (tmp_path / "model_optim_rng.pt").write_bytes(b"")
    with pytest.raises(InputError, match=CONVERTER):
        proteinlm.load(tmp_path / "model_optim_rng.pt")
    for dtype in ("fp8", torch.int64):
        with pytest.raises(InputError, match="should be one of fp32, bf16, fp16"):
            proteinlm.load(directory, dtype)
    with pytest.raises(InputError, match="device 'gpu': should be auto, cpu or cuda"):
        proteinlm.load(directory, device="gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device 'cuda': this machine has no CUDA device"):
        proteinlm.load(directory, device="cuda")
    assert proteinlm.load(directory).device.type == "cpu"
    monkeypatch.setenv("TAPE_MODELS", str(directory.parent))
    assert proteinlm.load("model").config == CONFIG  # a name, as songlab's "bert-base"


def test_long_work_shows_progress_and_short_or_quiet_work_nothing(encoder, proteins, monkeypatch):
    clock = iter(range(0, 10**6, 20))
    for seconds, quiet, expected in ((0, False, 0), (20, False, 2), (20, True, 0)):
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        monkeypatch.setattr("proteinlm.progress.time.monotonic", lambda seconds=seconds: next(clock) * seconds / 20)
        encoder.embed(proteins[:4], batch_tokens=1, quiet=quiet)
        lines = sys.stderr.getvalue().splitlines()
        assert len(lines) == expected
        assert all("of 4 proteins, 0.1 proteins/s, " in line for line in lines), lines


def test_the_package_imports_without_torch():
    code = (
        "import sys, proteinlm\n"
        "assert set(proteinlm.__all__) <= set(dir(proteinlm)) and issubclass(proteinlm.InputError, ValueError)\n"
        "proteinlm.build_tokenizer('tape').encode('MKV')\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "assert all(getattr(proteinlm, name) is getattr(proteinlm, name) for name in proteinlm.__all__)\n"
        "assert 'torch' in sys.modules and proteinlm.load.__module__ == 'proteinlm.model_dir.load'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="module 'proteinlm' has no attribute 'lode'"):
        proteinlm.lode  # noqa: B018
