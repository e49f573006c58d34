"""tape-* on ESM's models: embeddings and logits against Hugging Face's, the five tasks, runs that are opened again."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_data import build_model, write_split
from toy_esm import ESM_1B, esm_model, transformers
from toy_fasta import write_fasta

import proteinlm
from converter.__main__ import main as convert
from proteinlm import errors
from proteinlm.network.rotary import RotaryEmbedding
from proteinlm.tokenizer import build_tokenizer
from tape import TAPETokenizer, embed, evaluate, predict, reproduce, train, tune
from tape.models.config import ProteinBertConfig
from tape.models.modeling_bert import ProteinBertForMaskedLM, ProteinBertModel
from tape.registry import resolve_task
from tape.runs import jobs
from tape.runs.results import file_sha256, weights_identity

TASKS = ("secondary_structure", "contact_prediction", "remote_homology", "fluorescence", "stability")
ESM2_8M = {"hidden_size": 320, "num_hidden_layers": 6, "num_attention_heads": 20, "intermediate_size": 1280}
TOKENIZER = build_tokenizer("esm")
PROTEINS = {"a": "MKVLAAGIVPWXBUZO", "b": "A", "c": "ACDEFGHIKLMNPQRSTVWY" * 4, "d": "mkvw"}
INV_FREQ = "bert.embeddings.rotary_embeddings.inv_freq"
SHORT = ("--recipe", "none", "--max_steps", "1", "--eval_steps", "1", "--batch_size", "2", "--device", "cpu")
SHORT = (*SHORT, "--max_length", "40", "--too_long", "crop")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Data of every task, a FASTA file, ESM-2 and ESM-1b."""
    root = tmp_path_factory.mktemp("esm")
    for task in (*TASKS, "masked_language_modeling"):
        write_split(root, task, "train", 3, seed=1, longest=24)
        write_split(root, task, "valid", 2, seed=2, longest=24)
    write_fasta(root / "in.fasta", PROTEINS)
    return root


def write_esm(directory: Path, **changes):
    """A directory of EsmForMaskedLM; returns that model."""
    peer = esm_model(**changes)
    peer.save_pretrained(directory)
    return peer


@torch.no_grad()
def peer_outputs(peer, residues: str, masked: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """(hidden states [layers + 1, L + 2, h], logits [L + 2, 33]) of one protein; the residue at `masked` is hidden."""
    ids = [TOKENIZER.cls_id, *TOKENIZER.encode(residues).tolist(), TOKENIZER.sep_id]
    if masked is not None:
        ids[masked + 1] = TOKENIZER.mask_id
    tokens = torch.tensor([ids])
    results = peer(tokens, attention_mask=torch.ones_like(tokens), output_hidden_states=True)
    return torch.cat(results.hidden_states), results.logits[0]


@pytest.fixture(scope="module")
def esm2(root):
    return write_esm(root / "esm2")


@pytest.fixture(scope="module")
def esm1b(root):
    return write_esm(root / "esm1b", **ESM_1B)


@pytest.fixture
def without_token_dropout(monkeypatch):
    monkeypatch.setattr("proteinlm.network.model.MASKED_IN_TRAINING", 0.0)


@pytest.fixture
def recomputing(monkeypatch):
    """Frequencies of the base in the place of the stored ones."""

    def computed(self, positions):
        angles = positions.float()[:, None, None] * self.initial()
        return angles.cos(), angles.sin()

    monkeypatch.setattr(RotaryEmbedding, "forward", computed)


def embed_residues(root: Path, model: str, layer: int) -> dict[str, np.ndarray]:
    out = root / f"{model}_{layer}.h5"
    words = ["transformer", root / "in.fasta", out, root / model, "--format", "h5-per-protein", "--device", "cpu"]
    words += ["--full_sequence_embed", "--layer", layer, "--too_long", "skip"]
    assert embed.main([str(word) for word in words]) == 0
    with h5py.File(out) as file:
        return {name: data[:] for name, data in file.items()}


def largest_difference(results: dict[str, np.ndarray], peer, layer: int) -> float:
    states = {name: peer_outputs(peer, PROTEINS[name].upper())[0][layer, 1:-1].numpy() for name in results}
    return max(np.abs(results[name] - state).max() for name, state in states.items())


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_embeddings_are_hugging_faces_row_by_row(root, esm2, layer):
    results = embed_residues(root, "esm2", layer)
    assert {name: len(rows) for name, rows in results.items()} == {name: len(p) for name, p in PROTEINS.items()}
    assert largest_difference(results, esm2, layer) < 1e-5


@pytest.mark.parametrize("wrong", ["without_token_dropout", "recomputing"])
def test_what_ports_leave_out_is_seen(root, esm2, request, wrong):
    """Negative control of the test above."""
    request.getfixturevalue(wrong)
    assert largest_difference(embed_residues(root, "esm2", -1), esm2, -1) > 0.01


def test_esm_1b_has_its_positions_and_no_more(root, esm1b, capsys):
    results = embed_residues(root, "esm1b", -1)
    assert set(results) == set(PROTEINS) - {"c"} and largest_difference(results, esm1b, -1) < 1e-5
    assert (root / "esm1b_-1.h5.failed.tsv").read_text().splitlines()[1] == "c\t3\t80\tlonger than 62 residues"
    words = ["transformer", str(root / "in.fasta"), str(root / "x.h5"), str(root / "esm1b")]
    assert errors.run(embed.main, words) == 2
    assert "1 of 4 proteins exceed 62 residues, the first is record 3 (c) of 80" in capsys.readouterr().err


def test_a_masked_residue_is_esms_mask(root, esm2):
    model = ProteinBertForMaskedLM.from_pretrained(root / "esm2", require_head=True)
    ids = torch.from_numpy(TAPETokenizer().encode("MKVLAAGIVPW"))[None]
    letters = "LAGVSERTIDPKQNFYMHWCXBUZO"
    columns = [[tokenizer.tokens.index(letter) for letter in letters] for tokenizer in (TAPETokenizer(), TOKENIZER)]
    for masked in (None, 4):
        tokens = ids.clone()
        if masked is not None:
            tokens[0, masked + 1] = TAPETokenizer().vocab["<mask>"]
        with torch.no_grad():
            logits = model(tokens)[0][0]
        expected = peer_outputs(esm2, "MKVLAAGIVPW", masked)[1]
        torch.testing.assert_close(logits[:, columns[0]], expected[:, columns[1]], atol=1e-5, rtol=0)
    assert (logits[:, columns[0]] - peer_outputs(esm2, "MKVLAAGIVPW")[1][:, columns[1]]).abs().max() > 0.01


def finetune(root: Path, task: str, model: str, out: Path, *flags: str) -> Path:
    words = ["transformer", task, "--from_pretrained", root / model, "--data_dir", root, "--output_dir", out]
    assert train.main([*map(str, words), *SHORT, *flags]) == 0
    return out


def check_run(run: Path, peer, learns: bool = True) -> None:
    """A run that began with ESM-2 holds its frequencies and its form, and Python opens it as an encoder."""
    config, tensors = json.loads((run / "config.json").read_text()), load_file(run / "model.safetensors")
    assert config["position_embedding_type"] == "rope" and config["token_dropout"] and config["mask_token_id"] == 1
    assert torch.equal(tensors[INV_FREQ], peer.esm.rotary_embeddings.inv_freq)
    state = torch.from_numpy(proteinlm.load(run, device="cpu").embed("MKVLA", None)[0])
    difference = (state - peer_outputs(peer, "MKVLA")[0][-1, 1:-1]).abs().max()
    assert 1e-5 < difference < 1 if learns else difference < 1e-5


@pytest.mark.parametrize("task", [*TASKS, "masked_language_modeling"])
def test_every_task_trains_scores_and_predicts(root, esm2, tmp_path, task):
    out = finetune(root, task, "esm2", tmp_path / "run", "--learning_rate", "1e-3")
    check_run(out, esm2)
    words = ["transformer", task, str(out), "--data_dir", str(root), "--split", "valid", "--device", "cpu"]
    assert evaluate.main(words) == 0
    result = json.loads((out / f"{task}-valid.json").read_text())
    assert result["n_examples"] == 2
    maps = task == "contact_prediction"
    name = tmp_path / ("maps.npz" if maps else "out.tsv")
    png = ["--no-png"] if maps else []
    assert predict.main([str(out), str(root / "in.fasta"), str(name), "--too_long", "crop", *png]) == 0
    ids = np.load(name).files if maps else [line.split("\t")[0] for line in name.read_text().splitlines()[1:]]
    assert list(dict.fromkeys(ids)) == list(PROTEINS)


def test_a_finetuned_encoder_goes_back_to_hugging_face(root, esm2, tmp_path):
    out = finetune(root, "stability", "esm2", tmp_path / "run", "--learning_rate", "1e-2")
    assert convert(["--load", str(out), "--save", str(tmp_path / "hf"), "--target", "esm"]) == 0
    back = transformers.EsmModel.from_pretrained(tmp_path / "hf", add_pooling_layer=False).eval()
    ids = torch.tensor([[TOKENIZER.cls_id, *TOKENIZER.encode("MKVLA").tolist(), TOKENIZER.sep_id]])
    with torch.no_grad():
        expected = back(ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        states = ProteinBertModel.from_pretrained(out)(torch.from_numpy(TAPETokenizer().encode("MKVLA"))[None])[0]
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=0)
    assert (states[0] - peer_outputs(esm2, "MKVLA")[0][-1]).abs().max() > 1e-4  # it has learned


def test_a_file_of_fair_esm_is_opened_as_it_is(root, esm2):
    assert convert(["--load", str(root / "esm2"), "--save", str(root / "fair"), "--target", "fair-esm"]) == 0
    assert largest_difference(embed_residues(root, "fair", -1), esm2, -1) < 1e-5
    (file,) = (path for path in (root / "fair").glob("*.pt") if "contact" not in path.name)
    identity = weights_identity(file)
    assert identity["weights"] == file.name and identity["weights_sha256"] == file_sha256(file)
    assert weights_identity(root / "fair")["weights_sha256"] == identity["weights_sha256"]


def test_a_file_of_fair_esm_in_each_command(root, esm2, tmp_path, capsys):
    """It is predicted with as the directory is; what needs a directory says how to make one."""
    assert convert(["--load", str(root / "esm2"), "--save", str(tmp_path / "fair"), "--target", "fair-esm"]) == 0
    (file,) = (path for path in (tmp_path / "fair").glob("*.pt") if "contact" not in path.name)
    for name, model in (("file", file), ("directory", root / "esm2")):
        words = [model, root / "in.fasta", tmp_path / f"{name}.tsv", "--task", "masked_language_modeling"]
        assert predict.main(list(map(str, words))) == 0
    assert (tmp_path / "file.tsv").read_text() == (tmp_path / "directory.tsv").read_text()
    score = ["transformer", "masked_language_modeling", str(file), "--data_dir", str(root), "--split", "valid"]
    for main, words in ((evaluate.main, score), (reproduce.main, [str(file), str(root), str(tmp_path / "table")])):
        assert errors.run(main, words) == 2
        assert f"python -m converter --load {file} --save DIR --target tape makes one" in capsys.readouterr().err


def test_weights_in_several_files_have_one_identity(root, esm2, tmp_path):
    esm2.save_pretrained(tmp_path / "several", max_shard_size="10KB")
    identity = weights_identity(tmp_path / "several")
    assert identity["weights"] == "model.safetensors.index.json"
    assert ProteinBertModel.from_pretrained(tmp_path / "several") is not None
    shard = min((tmp_path / "several").glob("*.safetensors"))
    save_file({name: value + 1 for name, value in load_file(shard).items()}, shard)
    assert weights_identity(tmp_path / "several") != identity


@pytest.mark.parametrize("flags", [["--lora", "2"], ["--freeze_encoder"], ["--freeze_layers", "1", "--recompute"]])
def test_lora_and_frozen_layers(root, esm2, tmp_path, flags):
    if "--lora" in flags:
        pytest.importorskip("peft")
    out = finetune(root, "stability", "esm2", tmp_path / "run", "--learning_rate", "1e-2", *flags)
    check_run(out, esm2, learns="--freeze_encoder" not in flags)


def test_gradients_reach_every_weight_and_no_frequency(root, esm2):
    model = ProteinBertForMaskedLM.from_pretrained(root / "esm2").train()
    ids = torch.from_numpy(TAPETokenizer().encode("MKVLAAGIVPW"))[None]
    model(ids, targets=ids)[0][0].backward()
    assert all(p.grad.abs().sum() > 0 for p in model.parameters())
    assert not any("inv_freq" in name for name, _ in model.named_parameters())


def test_tune_tries_recipes_on_it(root, esm2, tmp_path, monkeypatch):
    def in_process(module, words, log):
        assert module == "tape.train" and train.main(words) == 0

    monkeypatch.setattr(tune, "call", in_process)
    words = ["transformer", "stability", "--from_pretrained", str(root / "esm2"), "--data_dir", str(root), *SHORT]
    write_split(tmp_path, "stability", "train", 20, seed=3, longest=24)
    words[words.index("--data_dir") + 1] = str(tmp_path)
    assert tune.main([str(tmp_path / "out"), "--grid", "learning_rate", "1e-3", "--", *words]) == 0
    assert "learning_rate: 0.001" in (tmp_path / "out/recipe.yaml").read_text()


def reproduce_table(root: Path, model: str, out: Path, monkeypatch, tasks: tuple[str, ...]) -> dict:
    commands = {"tape.train": train.main, "tape.evaluate": evaluate.main}

    def in_process(module, words, log):
        assert commands[module](list(words)) == 0
        return 0.1

    monkeypatch.setattr(jobs, "call", in_process)
    preset = "all: {max_steps: 1, eval_steps: 1, batch_size: 2, seeds: [0], max_length: 2000, too_long: crop}\n"
    (root / "preset.yaml").write_text(preset)
    words = [root / model, root, out, "--preset", root / "preset.yaml", "--arms", "pretrained", "random"]
    words += ["--device", "cpu", "--tasks", *tasks]
    assert reproduce.main([str(word) for word in words]) == 0
    return json.loads((out / "results.json").read_text())


def test_reproduce_makes_the_table_of_it(root, esm2, tmp_path, monkeypatch):
    results = reproduce_table(root, "esm2", tmp_path / "table", monkeypatch, ("stability",))
    assert not results["not_run"]
    for arm in ("pretrained", "random"):
        flags = json.loads((tmp_path / f"table/runs/{arm}/stability/seed0/args.json").read_text())["args"]
        assert flags["max_length"] == 2000  # no table of positions ends at 1,026
        config = json.loads((tmp_path / f"table/runs/{arm}/stability/seed0/config.json").read_text())
        assert config["position_embedding_type"] == "rope" and config["num_hidden_layers"] == 2
    random = load_file(tmp_path / "table/runs/random/stability/seed0/model.safetensors")
    assert torch.equal(random[INV_FREQ], RotaryEmbedding(4, 10000.0).initial())  # a new model's own


@pytest.mark.slow
def test_the_shape_of_esm2_8m(tmp_path, root, monkeypatch):
    """6 x 320 x 20: two tasks trained, scored and in a table; embeddings are Hugging Face's."""
    peer = write_esm(root / "esm2_8m", spread=320**-0.5, **ESM2_8M)
    results = embed_residues(root, "esm2_8m", -1)
    assert largest_difference(results, peer, -1) < 1e-5
    tasks = "secondary_structure", "stability"
    table = reproduce_table(root, "esm2_8m", tmp_path / "table", monkeypatch, tasks)
    assert not table["not_run"]
    for task in tasks:
        check_run(tmp_path / f"table/runs/pretrained/{task}/seed0", peer)
    run = tmp_path / "table/runs/pretrained/stability/seed0"
    assert predict.main([str(run), str(root / "in.fasta"), str(tmp_path / "out.tsv")]) == 0
    assert len((tmp_path / "out.tsv").read_text().splitlines()) == 1 + len(PROTEINS)


# Options of the other modern encoders, under TAPE's class.
OPTIONS = {
    "esm_c": {
        "position_embedding_type": "rope",
        "add_bias_linear": False,
        "swiglu": True,
        "qk_layernorm": True,
        "residual_scale": 0.5,
        "untie_embeddings_and_output_weights": True,
    },
    "amplify": {"position_embedding_type": "rope", "normalization": "RMSNorm", "swiglu": True}
    | {"lm_head_transform": False, "untie_embeddings_and_output_weights": True},
    "esm_1b": {"position_offset": 2, "embedding_layernorm": True, "token_dropout": True, "mask_token_id": 1},
    "none": {"position_embedding_type": "none"},
}
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SMALL |= {"max_position_embeddings": 64, "initializer_range": 0.3}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_survive_saving_and_loading(name, tmp_path):
    torch.manual_seed(0)
    model = ProteinBertForMaskedLM(ProteinBertConfig(**SMALL, **OPTIONS[name])).eval()
    model.save_pretrained(tmp_path / "saved")
    again = ProteinBertForMaskedLM.from_pretrained(tmp_path / "saved", require_head=True)
    ids = torch.from_numpy(TAPETokenizer().encode("MKVLAAGIVPW"))[None]
    with torch.no_grad():
        assert torch.equal(again(ids)[0], model(ids)[0])
    stored = json.loads((tmp_path / "saved/config.json").read_text())
    assert OPTIONS[name].items() <= stored.items()
    assert not {"rotary_base", "untie_embeddings_and_output_weights"} - set(OPTIONS[name]) & set(stored)
    other = ProteinBertForMaskedLM(ProteinBertConfig(**SMALL, **OPTIONS[name])).eval()
    other.load_state_dict(load_file(tmp_path / "saved/model.safetensors"))  # TAPE's names
    with torch.no_grad():
        assert torch.equal(other(ids)[0], model(ids)[0])
        assert other.bert(ids)[0].abs().max() > 0.1
    assert build_model(resolve_task("stability", "transformer"), tmp_path / "saved").bert is not None


def test_the_mask_token_is_tapes(tmp_path):
    """Another id would turn other tokens into zeros."""
    ProteinBertModel(ProteinBertConfig(**SMALL, **OPTIONS["esm_1b"])).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"mask_token_id": 3}))
    for load in (ProteinBertModel.from_pretrained, proteinlm.load):
        with pytest.raises(errors.InputError, match=r"config.json: mask_token_id 3; <mask> is 1 in TAPE's vocabulary$"):
            load(tmp_path)


def test_files_of_default_models_are_what_they_were(tmp_path):
    ProteinBertModel(ProteinBertConfig(**SMALL)).save_pretrained(tmp_path)
    assert not set(json.loads((tmp_path / "config.json").read_text())) & set().union(*OPTIONS.values())


def spoil(path: Path, how: str) -> None:
    config = json.loads((path / "config.json").read_text())
    weights = path / "model.safetensors"
    tensors = load_file(weights)
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "gone":
        weights.unlink()
    elif how in config:
        config[how] = {"vocab_size": 34, "num_attention_heads": 3, "hidden_act": "relu"}[how]
        (path / "config.json").write_text(json.dumps(config))
    else:
        name = next(name for name in tensors if name.endswith(how))
        tensors[name] = tensors[name][:1] if how == "query.weight" else tensors.pop(name) * float("nan")
        save_file(tensors, weights)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", "model.safetensors: not a whole safetensors file"),
        ("gone", "neither model.safetensors nor pytorch_model.bin is there"),
        ("vocab_size", "config.json: vocab_size 34; only ESM's vocabulary of 33 tokens"),
        ("num_attention_heads", "num_attention_heads 3 must divide hidden_size 16"),
        ("hidden_act", "hidden_act 'relu' is another network"),
        ("query.weight", "layer.0.attention.self.query.weight"),
        ("inv_freq", "inv_freq holds what are no frequencies"),
    ],
)
def test_damaged_directories_are_one_line(root, esm2, tmp_path, capsys, how, message):
    shutil.copytree(root / "esm2", tmp_path / "esm2")
    spoil(tmp_path / "esm2", how)
    model, out = str(tmp_path / "esm2"), tmp_path / "out"
    output = ("--output_dir", str(out))
    lines = {
        embed.main: ["transformer", str(root / "in.fasta"), f"{out}.h5", model],
        train.main: ["transformer", "stability", "--from_pretrained", model, "--data_dir", str(root), *SHORT, *output],
        predict.main: [model, str(root / "in.fasta"), f"{out}.tsv", "--task", "masked_language_modeling"],
    }
    for main, words in lines.items():
        assert errors.run(main, words) == 2
        printed = capsys.readouterr().err.strip().splitlines()
        assert len([line for line in printed if line.startswith("error: ")]) == 1 and message in printed[-1], printed
        assert not Path(f"{out}.h5").exists() and not Path(f"{out}.tsv").exists()
        assert not (out / "config.json").exists()
