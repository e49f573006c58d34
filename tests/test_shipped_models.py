"""The models in models/, and one that is made here as they are made: their files, their numbers, their names at every
door. What no model of models/ can show yet, the one made here shows."""

import importlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tape_lmdb import random_protein, write_lmdb
from toy_esm import esm_model, transformers

import proteinlm
from converter import __main__ as convert
from probe import __main__ as probe_main
from proteinlm.errors import InputError
from proteinlm.model_dir import find
from proteinlm.model_dir.regression import export_regression, read_regression
from proteinlm.untrusted.safetensors_files import open_safetensors
from scripts import model_card, ship_model
from tape import reproduce
from tape.models.modeling_bert import ProteinBertModel
from tape.runs.plan import plan
from tape.runs.results import file_sha256

pytest.importorskip("sklearn")
NAMES = sorted(path.parent.name for path in find.SHIPPED.glob("*/config.json"))
PROTEINS = ["MKTAYIAKQRQISFVKSHFSRQ", "GCTVEDRCLIGMGAILLNGCVIGSGSLVAAGALITQ", "MXUZBOK"]
TOY = "toy-2"


def helix(protein: str, name: str) -> dict:
    """A chain of known structure that winds, so that its contacts follow from the distance along it, as attention of
    random weights does in part."""
    turn = 2 * np.pi * np.arange(len(protein)) / 8
    points = np.stack([5 * np.cos(turn), 5 * np.sin(turn), 0.5 * np.arange(len(protein))], 1).astype(np.float32)
    whole = {"protein_length": len(protein), "valid_mask": np.ones(len(protein), bool)}
    return {"primary": protein, "id": name.encode(), "tertiary": points, **whole}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder like models/, with one model that scripts/ship_model.py made."""
    place, rng = tmp_path_factory.mktemp("shelf"), np.random.default_rng(0)
    write_lmdb(place / "proteinnet_train.lmdb", [helix(random_protein(rng), str(i)) for i in range(20)])
    esm_model(num_hidden_layers=2, token_dropout=False).save_pretrained(place / "trained")
    ship_model.main([str(place / "trained"), TOY, str(place), "--models", str(place / "models")])
    return place / "models"


@pytest.fixture(params=[TOY, *NAMES] if NAMES else [TOY, None])
def model(request, shelf) -> Path:
    if request.param is None:
        pytest.skip("models/ holds no model yet")
    return (shelf if request.param == TOY else find.SHIPPED) / request.param


@pytest.fixture
def at_hand(shelf, monkeypatch, tmp_path):
    """The made model is one of this project's; the working directory and the home are empty."""
    monkeypatch.setattr(find, "SHIPPED", shelf)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("TAPE_MODELS", raising=False)
    monkeypatch.chdir(tmp_path)


# ---- their files


def wrong_sums(directory: Path) -> set[str]:
    """Files that SHA256SUMS says something else of, or nothing, or that are not there."""
    lines = (directory / "SHA256SUMS").read_text().splitlines()
    sums = {name: digest for digest, name in (line.split("  ") for line in lines)}
    files = {file.name: file_sha256(file) for file in directory.iterdir() if file.is_file()}
    for name in ("SHA256SUMS", "README.md"):
        files.pop(name, None)
    return {name for name in {*sums, *files} if sums.get(name) != files.get(name)}


def test_every_file_is_what_was_shipped(model):
    assert wrong_sums(model) == set()


def test_another_file_is_seen(shelf, tmp_path):
    copy = shutil.copytree(shelf / TOY, tmp_path / "copy")
    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)
    (copy / "vocab.txt").unlink()
    (copy / "more.txt").write_text("")
    assert wrong_sums(copy) == {"model.safetensors", "vocab.txt", "more.txt"}


def test_weights_are_small_and_halves(model):
    path = model / "model.safetensors"
    names, read = open_safetensors(path)
    kinds = {name: read(name).dtype for name in names}
    assert path.stat().st_size <= 8_000_000
    exact = {name for name, kind in kinds.items() if kind != torch.float16}
    assert exact == {name for name in names if "inv_freq" in name or "contact_head" in name}


def test_nothing_in_it_names_a_place(model):
    for file in model.iterdir():
        if file.suffix in (".json", ".md", ".txt"):
            assert not re.search(r"(?<![\w.:/])/(?:tmp|home|root|work|data)\b", file.read_text()), file


# ---- their numbers


def huggingface(directory: Path):
    return transformers.EsmForMaskedLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    ).eval()


@torch.no_grad()
def differences(peer, directory: Path) -> tuple[float, float]:
    """(logits, contacts): the largest over PROTEINS, beside those of `peer`; fp32."""
    encoder = proteinlm.load(directory, device="cpu")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    largest = np.zeros(2)
    for protein in PROTEINS:
        batch = tokenizer(protein, return_tensors="pt")
        logits = peer(**batch).logits[0, 1:-1].numpy()
        contacts = peer.predict_contacts(batch["input_ids"], batch["attention_mask"])[0].numpy()
        ours = encoder.logits(protein, quiet=True)[0], encoder.contacts(protein, quiet=True)[0]
        largest = np.maximum(largest, [np.abs(a - b).max() for a, b in zip(ours, (logits, contacts), strict=True)])
    return tuple(largest)


def test_hugging_face_loads_it_to_equal_logits_and_contacts(model):
    """fp32 rounding over a few layers: 1e-5 was seen, and the smallest step of the weights below moves more."""
    logits, contacts = differences(huggingface(model), model)
    assert logits < 1e-4 and contacts < 1e-5


def test_other_logits_would_be_seen(shelf):
    peer = huggingface(shelf / TOY)
    with torch.no_grad():
        peer.esm.encoder.layer[1].attention.self.query.weight.mul_(1.01)
        peer.esm.contact_head.regression.bias.add_(0.01)
    logits, contacts = differences(peer, shelf / TOY)
    assert logits > 1e-4 and contacts > 1e-5


def stored(directory: Path) -> tuple[float, list[str]]:
    """The stored perplexity, and the proteins that it is of."""
    lines = (directory / "perplexity.fasta").read_text().splitlines()
    return json.loads((directory / "perplexity.json").read_text())["perplexity"], lines[1::2]


def test_the_perplexity_of_50_proteins_is_the_stored_one(model):
    expected, proteins = stored(model)
    assert len(proteins) == 50
    assert ship_model.perplexity(proteinlm.load(model, device="cpu"), proteins) == pytest.approx(expected, rel=1e-4)


def test_another_perplexity_would_be_seen(model):
    expected, proteins = stored(model)
    encoder = proteinlm.load(model, device="cpu")
    with torch.no_grad():
        encoder.model.layers["0"].attention.dense.weight.mul_(0.9)
    assert ship_model.perplexity(encoder, proteins) != pytest.approx(expected, rel=1e-4)


def test_perplexity_by_hand(shelf):
    """One protein of nine residues has two hidden ones, the fourth alone below seven more: 4 and, out of reach, 11."""
    encoder = proteinlm.load(shelf / TOY, device="cpu")
    tokens = torch.tensor([[0, *encoder.tokenizer.encode("MKTAYIAKQ").tolist(), 2]])
    answer = tokens[0, 4].item()
    tokens[0, 4] = encoder.tokenizer.mask_id
    with torch.no_grad():
        logits = huggingface(shelf / TOY)(input_ids=tokens).logits[0, 4].double()
    assert ship_model.perplexity(encoder, ["MKTAYIAKQ"]) == pytest.approx(float((-logits.log_softmax(0)[answer]).exp()))


def test_the_regression_is_the_one_in_the_weights(model):
    own = proteinlm.load(model, device="cpu").contact_head
    beside = read_regression(model / "contact_regression.safetensors")
    assert torch.equal(own.weight.float(), beside.weight) and torch.equal(own.bias.float(), beside.bias)
    assert own.weight.any()


# ---- their cards


@pytest.mark.parametrize("name", NAMES or [None])
def test_a_card_has_its_words_and_its_numbers(name):
    if name is None:
        pytest.skip("models/ holds no model yet")
    text = (find.SHIPPED / name / "README.md").read_text()
    assert model_card.UNWRITTEN not in text and "CC0" in text and "CC BY 4.0" in text
    assert all(f"## {title}\n" in text for title in model_card.SECTIONS)
    results = find.SHIPPED.parent / "benchmarks/results" / name
    assert model_card.numbers(results) in text


# ---- their names


def data_of(place: Path, tape_data: Path) -> dict[str, str]:
    """Words of the commands below: a few small files."""
    (place / "in.fasta").write_text("".join(f">p{i}\n{protein}\n" for i, protein in enumerate(PROTEINS)))
    (place / "wt.fasta").write_text(f">wild\n{PROTEINS[0]}\n")
    (place / "mutants.csv").write_text("mutant,DMS_score\nK2A,0.5\nT3W,-1\n")
    rng = np.random.default_rng(1)
    rows = [f"{random_protein(rng)},{'ab'[i % 2]},{'train' if i < 12 else 'test'}" for i in range(18)]
    (place / "table.csv").write_text("\n".join(["sequence,label,split", *rows]) + "\n")
    return {"in": "in.fasta", "data": str(tape_data)}


TRAIN = "transformer stability --from_pretrained {model} --data_dir {data}"
SHORT = "--recipe none --max_steps 1 --batch_size 4 --device cpu"
# The commands that take a model, with words that make little work.
DOORS = {
    "tape.train": f"{TRAIN} {SHORT} --eval_freq 0 --output_dir out",
    "tape.embed": "transformer {in} out.npz {model} --device cpu",
    "tape.reproduce": "{model} {data} out --preset cpu --tasks stability --arms pretrained random --seeds 0",
    "tape.tune": f"out --grid pooling mean -- {TRAIN} {SHORT}",
    "converter.__main__": "--load {model} --save out --target tape",
    "probe.contacts.command": "{model} {in} out.npz --device cpu",
    "probe.variants.command": "{model} wt.fasta mutants.csv --output out.csv --score wt-marginals --device cpu",
    "probe.projection.command": "{model} --amino_acids --method pca --arms pretrained --output out --device cpu",
    "probe.probes.command": "{model} table.csv --target label --split_column split --heads logistic --arms pretrained "
    "--seeds 0 --epochs 1 --output out --device cpu",
}
STARTS_PROCESSES = ("tape.reproduce", "tape.tune")  # what they do with a name: test_plans_take_a_name
LONGER = ("tape.train", "probe.projection.command", "probe.probes.command")


def call(door: str, words: dict[str, str]) -> None:
    line = DOORS[door].format(**words)
    assert importlib.import_module(door).main(line.split()) == 0


@pytest.mark.parametrize(
    "door",
    [
        pytest.param(door, marks=[pytest.mark.slow] if door in LONGER else [])
        for door in DOORS
        if door not in STARTS_PROCESSES
    ],
)
def test_every_command_takes_a_name(door, at_hand, tmp_path, tiny_tape_data):
    call(door, data_of(tmp_path, tiny_tape_data) | {"model": TOY})
    assert any(path.name.startswith("out") for path in tmp_path.iterdir())


@pytest.mark.parametrize("door", DOORS)
def test_every_command_refuses_another_name_with_those_that_there_are(door, at_hand, tmp_path, tiny_tape_data):
    with pytest.raises(InputError, match=rf"^toy-3: no such directory; names at hand: {TOY}; ") as error:
        call(door, data_of(tmp_path, tiny_tape_data) | {"model": "toy-3"})
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_plans_take_a_name(at_hand, shelf, tiny_tape_data):
    words = DOORS["tape.reproduce"].format(model=TOY, data=tiny_tape_data).split()
    jobs = plan(reproduce.build_parser().parse_args(words))
    flags = [" ".join(job.train) for job in jobs]
    assert f"--from_pretrained {TOY} " in flags[0] and f"--model_config_file {shelf / TOY / 'config.json'}" in flags[1]
    assert jobs[0].arm.source == file_sha256(shelf / TOY / "model.safetensors")


def test_python_takes_a_name(at_hand, shelf, tmp_path, capsys):
    by_name, by_path = (proteinlm.load(model, device="cpu") for model in (TOY, shelf / TOY))
    assert np.array_equal(by_name.embed(PROTEINS, quiet=True), by_path.embed(PROTEINS, quiet=True))
    assert ProteinBertModel.from_pretrained(TOY).config.hidden_size == by_name.config.hidden_size
    export_regression(TOY, by_name.contact_head, tmp_path / "copy")
    assert (tmp_path / "copy/config.json").read_bytes() == (shelf / TOY / "config.json").read_bytes()
    assert proteinlm.models() == {TOY: shelf / TOY}
    assert probe_main.main(["models"]) == 0
    assert capsys.readouterr().out == f"{TOY}  {shelf / TOY}\n"


def test_what_the_user_has_comes_before_a_name_and_that_is_said(at_hand, shelf, tmp_path, monkeypatch, caplog):
    find._warn_hidden.cache_clear()
    assert find.find_model(TOY) == shelf / TOY and find.find_model(shelf / TOY) == shelf / TOY
    assert not caplog.messages
    own = shutil.copytree(shelf / TOY, tmp_path / "own" / TOY)
    monkeypatch.setenv("TAPE_MODELS", str(own.parent))
    assert find.find_model(TOY) == own and proteinlm.models() == {TOY: own}
    (tmp_path / TOY).mkdir()
    assert find.find_model(TOY) == Path(TOY) and find.find_model(TOY) == Path(TOY)
    said = "opened instead of the model of that name that comes with proteinlm"
    assert [message.split(f": {said}")[0] for message in caplog.messages] == [str(own), TOY]
    monkeypatch.chdir(shelf)  # where the path is the model
    assert find.find_model(TOY) == Path(TOY) and len(caplog.messages) == 2


def test_a_copy_in_tapes_format_would_be_the_same_again(model, tmp_path):
    """Which is why there is none beside it: the converter makes one, and the classes open both."""
    convert.main(["--load", str(model), "--save", str(tmp_path / "tape"), "--target", "tape"])
    here, there = (ProteinBertModel.from_pretrained(path).state_dict() for path in (model, tmp_path / "tape"))
    assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in here)
    assert (tmp_path / "tape/model.safetensors").stat().st_size > 0.9 * (model / "model.safetensors").stat().st_size


# ---- making them


def test_a_name_that_is_a_path_or_taken_is_refused(shelf, tmp_path):
    for name in ("a.b", "a/b", ""):
        with pytest.raises(InputError, match="should be letters, digits"):
            ship_model.make("checkpoint", name, "chains", tmp_path)
    with pytest.raises(InputError, match="exists already"):
        ship_model.make("checkpoint", TOY, "chains", shelf)
    assert list(tmp_path.iterdir()) == []


def test_what_training_left_of_itself(tmp_path):
    assert ship_model.training_record(tmp_path) == {}
    (tmp_path / "iter_0000020").mkdir()
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("20")
    config = {"data": {"data_path": ["/some/where/shard", "valid=/else/x"]}, "optim": {"lr": 0.1}}
    (tmp_path / "iter_0000020/meta.json").write_text(json.dumps({"config": config}))
    steps = [
        {"iteration": i, "lm_loss": 3, "seconds": 1.5, "consumed_tokens": i, "consumed_proteins": 1}
        for i in (10, 20, 20)
    ]
    judged = {"iteration": 20, "valid_loss": 3, "consumed_tokens": 22, "consumed_proteins": 1}
    log = [*steps, judged, {**steps[0], "iteration": 30}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, log)))
    record = ship_model.training_record(tmp_path)
    assert record["config"] == {"data": {"data_path": ["shard", "valid=x"]}, "optim": {"lr": 0.1}}
    assert (record["seconds_of_steps"], record["consumed_tokens"], record["iteration"]) == (3.0, 22, 20)


def results_of(place: Path) -> Path:
    """A folder of results, in the forms that the tools write them."""
    place.mkdir()
    own, less = {"value": 0.5, "low": 0.4, "high": 0.6}, {"value": 0.1, "low": None, "high": None}
    row = {"section": "contacts", "of": "long, 24 and more apart", "measure": "P@L, %", "count": 81, "main": True}
    row |= {"pretrained": own, "random": less, "difference": own, "beside": {"distance": less}}
    gfp = row | {"section": "variants", "of": "gfp", "measure": "Spearman's rho", "random": None, "difference": None}
    rows = [row, gfp, row | {"section": "deeploc", "of": "test, fnn"}, row | {"main": False, "count": 99}]
    notes = {"contacts": ["81 chains"]}
    (place / "prottrans.json").write_text(json.dumps({"rows": rows, "notes": notes, "commands": ["command one"]}))
    heldout = {"checkpoint": TOY, "families": 20, "masked_residues": 9000, "perplexity": 13.5}
    heldout |= {"interval_95": [13.1, 13.9], "unigram_of_these_residues": 17.46}
    (place / "perplexity_held_out.json").write_text(json.dumps(heldout))
    (place / "commands.txt").write_text("perplexity_held_out.json command two\n")
    return place


def test_a_card_keeps_its_words_and_takes_its_numbers_from_the_files(shelf, tmp_path):
    directory, results = shutil.copytree(shelf / TOY, tmp_path / TOY), results_of(tmp_path / "results")
    model_card.main([str(directory), str(results)])
    path = directory / "README.md"
    text = path.read_text()
    assert text.count(model_card.UNWRITTEN) == len(model_card.SECTIONS)
    floor = "50.0 [40.0, 60.0] | 10.0 [-, -] | +50.0 [+40.0, +60.0] | distance 10.0"
    esm = "15.9 (large valid); 9.8 (CASP14); 15.7 (CAMEO)"
    assert f"| P@L, % | long, 24 and more apart | 81 | {floor} | {esm} |" in text
    assert "| gfp | 81 | 0.500 [0.400, 0.600] | - | - | distance 0.100 | 0.078 (GFP_AEQVI_Sarkisyan_2016) |" in text
    assert re.search(r"test, fnn \|.*\| not published \|", text) and "| 99 |" not in text
    assert "- Contacts from attention: 81 chains\n- ESM-2 8M, contacts from attention: README of facebook" in text
    assert "13.50 [13.10, 13.90]" in text and all(f"```bash\ncommand {n}\n```" in text for n in ("one", "two"))
    assert wrong_sums(directory) == set()  # the card's words may change
    path.write_text(text.replace(model_card.UNWRITTEN, "Said by hand"))
    (results / "prottrans.json").unlink()
    model_card.main([str(directory), str(results)])
    again = path.read_text()
    assert "Said by hand" in again and "command one" not in again and model_card.numbers(results) in again


def test_a_card_without_results_or_marks_is_refused(shelf, tmp_path):
    with pytest.raises(InputError, match="holds none of perplexity_"):
        model_card.numbers(tmp_path)
    (results_of(tmp_path / "results") / "commands.txt").unlink()
    with pytest.raises(InputError, match=r"commands.txt: no line of perplexity_held_out.json; should be"):
        model_card.numbers(tmp_path / "results")
    (tmp_path / "README.md").write_text("words")
    with pytest.raises(InputError, match="should have one <!-- numbers -->"):
        model_card.card(tmp_path, tmp_path)
