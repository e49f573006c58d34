"""Encoders of transformers under every task: trained, saved, scored, embedded and predicted with; ProtBert natively."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_data import FOLDERS, write_data
from toy_fasta import write_fasta
from toy_huggingface import FAMILIES, load_trunk, write_family

import proteinlm
from proteinlm import errors
from proteinlm.errors import InputError
from proteinlm.untrusted.json_files import read_json
from tape import embed, evaluate, predict, train
from tape.finetuning.layers import layer_of, num_layers
from tape.finetuning.lora import add_lora, lora_layers
from tape.models.zoo import MODELS
from tape.registry import resolve_task
from tape.runs import plan

FAST = ("ProtT5", "ProtXLNet")
FIVE = [task for task in FOLDERS if task != "masked_language_modeling"]
WITH_HEAD = ("ProtBert", "ProtAlbert", "ProtElectra generator", "ESM C")
PROTEINS = [("a", "MKVLAWUX"), ("b", "ACDEFGHIKLMNPQRSTVWYACDX"), ("c", "G")]


def families(*fast: str) -> list:
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in FAMILIES]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Toy data of every task, a FASTA file, and directories of families, which are made when they are first used."""
    root = tmp_path_factory.mktemp("world")
    for task in FOLDERS:
        write_data(root, task, train=12, valid=6)
    write_fasta(root / "in.fasta", dict(PROTEINS))
    return root


def family(world: Path, name: str) -> Path:
    directory = world / name.replace(" ", "_")
    return directory if directory.exists() else write_family(name, directory)


def command(main, *words: object) -> int:
    return errors.run(main, [str(word) for word in words])


def finetune(world: Path, task: str, source: Path, out: Path, *flags: object, model_type="huggingface") -> int:
    base = [model_type, task, "--from_pretrained", source, "--data_dir", world, "--output_dir", out]
    base += ["--device", "cpu", "--head", "tape", "--batch_size", 4, "--max_steps", 2]
    return command(train.main, *base, *flags)


@pytest.mark.parametrize(
    ("name", "task"),
    [("ProtT5", task) for task in FIVE]
    + [
        pytest.param(name, task, marks=pytest.mark.slow)
        for name in FAMILIES
        for task in ("contact_prediction", "stability")
        if name != "ProtT5"
    ],
)
def test_every_task_from_training_to_predictions(world, tmp_path, name, task):
    """The run is scored and predicted with after the directory that it came from is gone.

    Heads are the same over every encoder: all over one family, over the others one of residues and one of proteins.
    """
    source = shutil.copytree(family(world, name), tmp_path / "source")
    run = tmp_path / "run"
    assert finetune(world, task, source, run, *(("--lora", 2) if task == "stability" else ())) == 0
    shutil.rmtree(source)
    assert read_json(run / "config.json")["base_model"] == "huggingface"
    score = ("huggingface", task, run, "--data_dir", world, "--split", "valid", "--device", "cpu")
    assert command(evaluate.main, *score) == 0
    out = tmp_path / ("out.npz" if task == "contact_prediction" else "out.tsv")
    assert command(predict.main, run, world / "in.fasta", out, "--device", "cpu", "--no-png") == 0
    assert out.stat().st_size > 0
    model = resolve_task(task, "huggingface").model.from_pretrained(run, require_head=True)
    assert not model.load_report


@pytest.mark.parametrize("name", families("ProtT5", "ProtXLNet"))
def test_embed_writes_what_the_encoder_gives(world, tmp_path, name):
    words = ("huggingface", world / "in.fasta", tmp_path / "out.npz", family(world, name), "--device", "cpu")
    assert command(embed.main, *words, "--embeddings", "pooled", "avg", "mean", "--tokens_per_batch", 40) == 0
    written = np.load(tmp_path / "out.npz", allow_pickle=True)
    encoder = load_trunk(family(world, name))
    for i, (protein, residues) in enumerate(PROTEINS):
        for key, pooling in (("pooled", "cls"), ("avg", "avg"), ("mean", "mean")):
            expected = encoder.embed(residues, pooling)[0]
            np.testing.assert_allclose(written[protein].item()[key], expected, atol=1e-5, err_msg=f"{i} {key}")


@pytest.mark.parametrize("name", families(*FAST))
def test_padding_changes_nothing_and_states_are_in_tapes_layout(world, name):
    model = MODELS["huggingface"]["embed"].from_pretrained(family(world, name))
    ids = torch.tensor([[2, 16, 14, 25, 15, 3, 0, 0], [2, 5, 7, 8, 9, 10, 11, 3]])  # MKVL, ACDEFG
    with torch.no_grad():
        states, pooled = model(ids)[:2]
        alone, own = model(ids[:1, :6])[:2]
    assert states.shape == (2, 8, 16) and not states[0, 6:].any()
    assert torch.allclose(states[0, :6], alone[0], atol=1e-5) and torch.allclose(pooled[:1], own, atol=1e-5)
    expected = load_trunk(family(world, name)).embed("MKVL", None)[0]
    assert np.abs(alone[0, 1:5].numpy() - expected).max() < 1e-5 < 1e-2 < np.abs(alone[0, :4].numpy() - expected).max()


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "ESM C" else pytest.mark.slow) for n in WITH_HEAD])
def test_the_masked_lm_is_the_directorys_own(world, tmp_path, name):
    """TAPE's hidden ids in, logits of TAPE's tokens out; trained, saved and opened again."""
    model = MODELS["huggingface"]["masked_language_modeling"].from_pretrained(family(world, name), require_head=True)
    tokenizer = proteinlm.build_tokenizer("tape")
    ids = torch.from_numpy(np.array([[2, *tokenizer.encode("MKVLAW"), 3]]).astype(np.int64))
    with torch.no_grad():
        logits = model(ids)[0][0, 1:-1]
        hidden = model(torch.where(ids == tokenizer.encode("V")[0], tokenizer.mask_id, ids))[0][0, 1:-1]
    expected = load_trunk(family(world, name)).logits("MKVLAW")[0]
    np.testing.assert_allclose(logits.numpy(), expected, atol=1e-5)
    assert (hidden - logits).abs().max() > 1e-2
    assert finetune(world, "masked_language_modeling", family(world, name), tmp_path / "run") == 0
    again = type(model).from_pretrained(tmp_path / "run", require_head=True)
    trained = proteinlm.load(tmp_path / "run", device="cpu")
    np.testing.assert_allclose(trained.logits("MKVLAW")[0], again(ids)[0][0, 1:-1].detach().numpy(), atol=1e-5)
    assert np.abs(trained.logits("MKVLAW")[0] - expected).max() > 1e-6


def test_a_family_without_a_masked_lm_head(world):
    masked_lm = MODELS["huggingface"]["masked_language_modeling"]
    with pytest.raises(InputError, match=r"^ProtT5 has no masked-LM head"):
        masked_lm.from_pretrained(family(world, "ProtT5"))
    with pytest.raises(InputError, match="no usable masked-LM head"):
        masked_lm.from_pretrained(family(world, "ProtElectra discriminator"), require_head=True)


@pytest.mark.parametrize("name", families(*FAST))
def test_layers_and_lora(world, name):
    """Every layer's linear parts get an update; embeddings are below layer 0; the first loss is that of the base."""
    model = MODELS["huggingface"]["value"].from_pretrained(family(world, name))
    assert num_layers(model) == (1 if name == "ProtAlbert" else 2)  # ALBERT's layers share one layer's weights
    words = next(n for n, p in model.trunk.named_parameters() if p.shape[0] > 25 and p.dim() == 2)
    assert layer_of(words) == -1
    ids = torch.tensor([[2, 16, 14, 26, 15, 3]])
    before = model(ids)[0]
    add_lora(model, 2)
    assert torch.allclose(model(ids)[0], before, atol=1e-6)
    assert {layer_of(layer.removeprefix("trunk.")) for layer in lora_layers(model)} >= set(range(num_layers(model)))
    model.train()(ids)[0].sum().backward()
    trained = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert trained and all("lora_" in name or name.startswith("predict.") for name in trained)


def test_recompute_gives_the_same_gradients(world):
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        model = MODELS["huggingface"]["value"].from_pretrained(family(world, "ProtT5"))
        assert model.trunk.encoder.recompute is False
        model.trunk.encoder.recompute = recompute
        assert model.trunk.encoder.recompute is recompute
        torch.manual_seed(0)
        model.train()(torch.tensor([[2, 16, 14, 26, 15, 3]]))[0].sum().backward()
        gradients.append([p.grad.clone() for p in model.trunk.parameters() if p.grad is not None])
    assert len(gradients[0]) > 10 and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))
    xlnet = MODELS["huggingface"]["value"].from_pretrained(family(world, "ProtXLNet"))
    assert xlnet.trunk.encoder.recompute is None


@pytest.mark.parametrize("name", ["ProtBert", "Ankh3"])
def test_the_arms_of_reproduce(world, tmp_path, name):
    """The same shape with random weights is trained as the directory itself is."""
    directory = family(world, name)
    for word in ("pretrained", "random"):
        arm = plan.parse_arm(word, directory)
        assert arm.model_type == "huggingface"
        words = (arm.model_type, "stability", *arm.flags, "--data_dir", world, "--output_dir", tmp_path / word)
        assert command(train.main, *words, "--device", "cpu", "--max_steps", 1, "--learning_rate", 1e-9) == 0
    pretrained, random = (
        proteinlm.load(tmp_path / word, device="cpu").embed("MKV") for word in ("pretrained", "random")
    )
    np.testing.assert_allclose(pretrained, proteinlm.load(directory, device="cpu").embed("MKV"), atol=1e-5)
    assert np.abs(pretrained - random).max() > 1e-2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda model: model.from_pretrained(None), "no transformers_config; give a directory of transformers"),
        (lambda model: model(model.config_class(transformers_config={"model_type": "bert"})), "tokens should"),
    ],
)
def test_a_model_needs_a_directory(make, message):
    with pytest.raises(InputError, match=message):
        make(MODELS["huggingface"]["value"])


def test_a_directory_of_another_model_type(world, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"base_model": "lstm"}))
    with pytest.raises(InputError, match="its model type is 'lstm', not huggingface"):
        MODELS["huggingface"]["embed"].from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("claims", "message"),
    [
        ({"max_position_embeddings": 2**36}, r"has shape \[64, 16\], but config.json gives \[68719476736, 16\]$"),
        ({"hidden_size": 2**40}, "config.json: no encoder can be made of it"),
        ({"num_hidden_layers": 10**6}, "cannot be the 1000000 layers of config.json$"),
        ({"num_hidden_layers": 1}, r"encoder.layer.1.\S+ does not belong to the model"),
    ],
)
def test_claims_of_a_run_are_compared_before_memory_is_taken(world, tmp_path, claims, message):
    MODELS["huggingface"]["embed"].from_pretrained(family(world, "ProtBert")).save_pretrained(tmp_path)
    config = read_json(tmp_path / "config.json")
    config["transformers_config"] |= claims
    (tmp_path / "config.json").write_text(json.dumps(config))
    for load in (MODELS["huggingface"]["embed"].from_pretrained, proteinlm.load):
        with pytest.raises(InputError, match=message):
            load(tmp_path)


# ---- ProtBert natively


def test_protbert_is_songlabs_network_by_another_name(world):
    """States and logits are those of Hugging Face's BERT (through the trunk, which is compared with it)."""
    directory = family(world, "ProtBert")
    tokenizer = proteinlm.build_tokenizer("tape")
    encoder, residues = proteinlm.load(directory, device="cpu"), "ACDEFGHIKLMNPQRSTVWYXUZOB"
    ids = torch.from_numpy(np.array([[2, *tokenizer.encode(residues), 3]]).astype(np.int64))
    native = MODELS["tape_transformer"]["embed"].from_pretrained(directory, output_hidden_states=True)
    with torch.no_grad():
        states = torch.stack(native(ids)[2])[:, 0, 1:-1].numpy()
        logits = MODELS["tape_transformer"]["masked_language_modeling"].from_pretrained(directory)(ids)[0][0, 1:-1]
    np.testing.assert_allclose(states, encoder.hidden_states(residues)[0], atol=1e-5)
    columns = [tokenizer.tokens.index(letter) for letter in "ACDEFGHIKLMNPQRSTVWYX"]
    np.testing.assert_allclose(logits[:, columns].numpy(), encoder.logits(residues)[0][:, columns], atol=1e-5)
    shifted = native(torch.where(ids > 5, ids - 1, ids))[0][0, 1:-1].detach().numpy()
    assert np.abs(shifted - states[-1]).max() > 1e-2


def few_rows(path: Path) -> None:
    state = load_file(path / "model.safetensors")
    words = "bert.embeddings.word_embeddings.weight"
    save_file(state | {words: state[words][:10].clone()}, path / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (few_rows, r"word_embeddings.weight has shape \[10, 16\]; vocab.txt has 30 tokens$"),
        (lambda path: (path / "vocab.txt").unlink(), r"vocab.txt: no such file; ProtBert's 30 tokens are needed$"),
        (lambda path: (path / "vocab.txt").write_text("[PAD]\nM\n"), r"vocab.txt: no token A; ProtBert's 30 tokens"),
    ],
)
def test_a_damaged_protbert_is_one_line(world, tmp_path, damage, message):
    copy = shutil.copytree(family(world, "ProtBert"), tmp_path / "copy")
    damage(copy)
    with pytest.raises(InputError, match=message):
        MODELS["tape_transformer"]["embed"].from_pretrained(copy)


def test_protbert_natively_trains_and_is_saved_as_songlabs(world, tmp_path):
    run = tmp_path / "run"
    assert finetune(world, "stability", family(world, "ProtBert"), run, model_type="tape_transformer") == 0
    config = read_json(run / "config.json")
    assert config["base_model"] == "tape_transformer" and config["pooling"] == "mean" and config["vocab_size"] == 30
    assert not resolve_task("stability", "tape_transformer").model.from_pretrained(run, require_head=True).load_report
