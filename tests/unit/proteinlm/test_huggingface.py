"""Other projects' encoders: each family called as its authors write it is the reference, and what cannot be opened."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import Attack
from safetensors.torch import load_file, save_file
from toy_huggingface import FAMILIES, LETTERS, load_trunk, write_family
from toy_model import write_model

import proteinlm
from proteinlm.encoder import Encoder
from proteinlm.errors import InputError
from proteinlm.files import write_json
from proteinlm.huggingface.directory import build, open_directory
from proteinlm.huggingface.families import FAMILIES as TABLE
from proteinlm.huggingface.families import find_family
from proteinlm.huggingface.tokens import TokenTable
from proteinlm.model_dir.weights import WeightFiles
from proteinlm.tokenizer import build_tokenizer
from proteinlm.untrusted.json_files import read_json

PROTEINS = ["MKVLAW", "ACDEFGHIKLMNPQRSTVWYACDXK", "G", "WWKX"]


def spaced(protein: str) -> str:
    return " ".join(protein)


@dataclass(frozen=True)
class Readme:
    """A family's page as code: transformers' classes, how a protein is written, which rows are its residues."""

    model: str
    tokenizer: str
    write: Callable[[str], str]
    first: int  # row of the first residue in the protein without padding
    wrong: Callable[[str], str] | None = spaced  # another way to write it, which is not the same
    words: bool = False  # the tokenizer is given a list of letters
    head: str = ""  # the class with the masked-LM head


BERT = {"tokenizer": "BertTokenizer", "write": spaced, "first": 1, "wrong": str}
T5 = {"model": "T5EncoderModel", "tokenizer": "T5Tokenizer"}
READMES = {
    "ProtBert": Readme("BertModel", **BERT, head="BertForMaskedLM"),
    "ProtAlbert": Readme("AlbertModel", "AlbertTokenizer", spaced, 1, str, head="AlbertForMaskedLM"),
    "ProtElectra generator": Readme("ElectraModel", **BERT, head="ElectraForMaskedLM"),
    "ProtElectra discriminator": Readme("ElectraModel", **BERT),
    "ProtXLNet": Readme("XLNetModel", "XLNetTokenizer", lambda p: spaced(p).replace("X", "<unk>"), 0, str),
    "ProtT5": Readme(**T5, write=spaced, first=0, wrong=str),
    "ProstT5": Readme(**T5, write=lambda protein: f"<AA2fold> {spaced(protein)}", first=1),
    "Ankh": Readme("T5EncoderModel", "AutoTokenizer", str, 0, lambda protein: f"[{protein}", words=True),
    "Ankh3": Readme("T5EncoderModel", "AutoTokenizer", lambda protein: f"[NLU]{protein}", 1, str),
    "ESM C": Readme("EsmcModel", "AutoTokenizer", str, 1, head="EsmcForMaskedLM"),
    "RoBERTa": Readme("RobertaModel", "AutoTokenizer", str, 1, head="RobertaForMaskedLM"),
}


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: write_family(name, root / name.replace(" ", "_"), seed=i) for i, name in enumerate(FAMILIES)}


def peer(directory: Path, class_name: str, **options) -> torch.nn.Module:
    import transformers

    return getattr(transformers, class_name).from_pretrained(directory, **options).double().eval()


def tokens_of(directory: Path, readme: Readme, texts: list[str], **options) -> dict:
    import transformers

    tokenizer = getattr(transformers, readme.tokenizer).from_pretrained(directory, do_lower_case=False)
    inputs = [list(text) for text in texts] if readme.words else texts
    encoded = tokenizer(inputs, padding=True, is_split_into_words=readme.words, return_tensors="pt", **options)
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


@torch.no_grad()
def states_as_written(
    directory: Path, readme: Readme, proteins: list[str], write=None, mask=True
) -> list[torch.Tensor]:
    """[layers + 1, L, h] of each protein, from one batch of transformers."""
    inputs = tokens_of(directory, readme, [(write or readme.write)(protein) for protein in proteins])
    model = peer(directory, readme.model)
    real, inputs = inputs["attention_mask"], inputs if mask else {"input_ids": inputs["input_ids"]}
    hidden = torch.stack(model(**inputs, output_hidden_states=True).hidden_states)
    starts = real.argmax(1) + readme.first  # XLNet's tokenizer pads on the left
    rows = zip(hidden.unbind(1), starts, proteins, strict=True)
    return [states[:, start : start + len(protein)] for states, start, protein in rows]


def in_double(directory: Path) -> Encoder:
    encoder = load_trunk(directory)
    encoder.model.double()
    return encoder


def difference(results: list, peers: list) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(results, peers, strict=True))


@pytest.mark.parametrize("name", READMES)
def test_every_layer_is_what_the_authors_page_gives(directories, name):
    """A batch of different lengths against transformers' own batch, and against each protein alone; fp64."""
    directory, readme = directories[name], READMES[name]
    states = in_double(directory).hidden_states(PROTEINS, tensors=True, batch_tokens=10_000)
    assert [one.shape for one in states] == [(3, len(protein), 16) for protein in PROTEINS]
    assert difference(states, states_as_written(directory, readme, PROTEINS)) < 1e-6
    alone = [states_as_written(directory, readme, [protein])[0] for protein in PROTEINS]
    assert difference(states, alone) < 1e-6
    # Negative controls: the mask left out, the protein written otherwise, residues taken one row off.
    assert difference(states, states_as_written(directory, readme, PROTEINS, mask=False)) > 1e-2
    if readme.wrong:
        otherwise = states_as_written(directory, readme, PROTEINS[:1], write=readme.wrong)[0]
        assert otherwise.shape != states[0].shape or difference(states[:1], [otherwise]) > 1e-2
    assert difference([states[1][:, 1:]], [alone[1][:, :-1]]) > 1e-2


@pytest.mark.parametrize("name", READMES)
def test_a_batch_is_the_single_proteins(directories, name):
    """In fp32, for every pooling, in batches of any size."""
    encoder = load_trunk(directories[name])
    for pooling in ("mean", "cls", "avg"):
        alone = np.concatenate([encoder.embed(protein, pooling) for protein in PROTEINS])
        for budget in (1, 20, 10_000):
            np.testing.assert_allclose(encoder.embed(PROTEINS, pooling, batch_tokens=budget), alone, atol=1e-5)
        assert np.abs(alone[0] - alone[1]).max() > 1e-2
    np.testing.assert_allclose(
        encoder.embed(PROTEINS[1], layer=1)[0], encoder.hidden_states(PROTEINS[1])[0][1].mean(0), atol=1e-5
    )


@pytest.mark.parametrize("name", [name for name, readme in READMES.items() if readme.head])
def test_logits_are_those_of_the_masked_lm(directories, name):
    """By TAPE's letters, whatever the family's numbers are."""
    directory, readme = directories[name], READMES[name]
    letters = "ACDEFGHIKLMNPQRSTVWYX"
    with torch.no_grad():
        logits = peer(directory, readme.head)(**tokens_of(directory, readme, [readme.write(letters)])).logits[0, 1:-1]
    ids = tokens_of(directory, readme, [readme.write(letters)])["input_ids"][0, 1:-1]
    scores = in_double(directory).logits(letters, tensors=True)[0]
    columns = [build_tokenizer("tape").tokens.index(letter) for letter in letters]
    assert scores.shape == (len(letters), 30)
    assert difference([scores[:, columns]], [logits[:, ids]]) < 1e-6
    assert difference([scores[:, columns]], [logits[:, ids.roll(1)]]) > 1e-2


@pytest.mark.parametrize("name", [name for name, readme in READMES.items() if not readme.head])
def test_a_family_without_a_masked_lm_head_says_so(directories, name):
    with pytest.raises(InputError, match=r"no usable masked-LM head, so no logits; embed does without$"):
        load_trunk(directories[name]).logits("MKV")


@pytest.mark.parametrize("name", READMES)
@pytest.mark.slow
def test_half_precision_halves_the_weights(directories, name):
    full = load_trunk(directories[name]).embed(PROTEINS)
    for dtype, most in ((torch.bfloat16, 0.1), (torch.float16, 0.01)):
        encoder = load_trunk(directories[name], dtype)
        assert {parameter.dtype for parameter in encoder.model.parameters()} == {dtype}
        vectors = encoder.embed(PROTEINS)
        assert vectors.dtype == np.float32 and 0 < np.abs(vectors - full).max() < most


@pytest.mark.parametrize(
    ("name", "same"),
    [
        *[("ProtBert", "UZOBX"), ("ProtAlbert", "UZOBX"), ("ProtT5", "UZOBX"), ("ProstT5", "UZOBX")],
        *[("ProtXLNet", "UZOBXJ"), ("Ankh", ""), ("ESM C", "")],
    ],
)
def test_letters_that_the_authors_replace(directories, name, same):
    """`same`: letters that are one token to the model; every other pair differs."""
    encoder = load_trunk(directories[name])
    vectors = dict(zip("UZOBXJA", encoder.embed([f"MK{letter}V" for letter in "UZOBXJA"]), strict=True))
    for a in vectors:
        for b in vectors:
            if a != b:
                assert (np.abs(vectors[a] - vectors[b]).max() < 1e-6) == (a in same and b in same), (a, b)


def test_cls_is_the_familys_own_or_the_mean_of_the_residues(directories):
    """XLNet's <cls> is its last token; T5 has none."""
    directory, readme = directories["ProtXLNet"], READMES["ProtXLNet"]
    with torch.no_grad():
        last = peer(directory, "XLNetModel")(**tokens_of(directory, readme, ["M K V"]))[0][0, -1]
    np.testing.assert_allclose(proteinlm.load(directory, device="cpu").embed("MKV", "cls")[0], last, atol=1e-5)
    for name in ("ProtT5", "ProstT5", "Ankh"):
        encoder = load_trunk(directories[name])
        np.testing.assert_allclose(encoder.embed(PROTEINS, "cls"), encoder.embed(PROTEINS), atol=1e-6)
    encoder = proteinlm.load(directories["ProtBert"], device="cpu")
    assert np.abs(encoder.embed(PROTEINS, "cls") - encoder.embed(PROTEINS)).max() > 1e-2


def test_which_family_a_directory_is(directories):
    """By model type and tokens; a t5 of letters without `▁` is Ankh's."""
    tables = {name: open_directory(directory)[0].table for name, directory in directories.items()}
    expected = {name: name.split(" ")[0] if "Electra" in name else name for name in FAMILIES}
    assert {name: table.family for name, table in tables.items()} == expected | {"RoBERTa": "another encoder"}
    assert find_family("t5", {}).name == "Ankh" and find_family("gpt2", {}).name == "another encoder"
    assert len({family.name for family in TABLE}) == len(TABLE)


def test_the_longest_protein(directories):
    """Learned positions end; XLNet's, T5's and ESM C's do not."""
    limits = {"ProtBert": 62, "ProtAlbert": 62, "ProtElectra generator": 62, "RoBERTa": 60}
    for name, limit in limits.items():
        encoder = load_trunk(directories[name])
        assert encoder.embed("M" * limit).shape == (1, 16)
        with pytest.raises(InputError, match=f"{limit + 1} residues, the model takes {limit}"):
            encoder.embed("M" * (limit + 1))
    for name in ("ProtXLNet", "ProtT5", "ESM C"):
        assert np.isfinite(load_trunk(directories[name]).embed("MK" * 300)).all()


def test_of_t5_the_decoder_is_not_read(directories, monkeypatch, caplog):
    read = []
    get = WeightFiles.get
    monkeypatch.setattr(WeightFiles, "get", lambda self, name: read.append(name) or get(self, name))
    proteinlm.load(directories["ProtT5"], device="cpu")
    assert "shared.weight" in read and not any(name.startswith("decoder.") for name in read)
    assert "the decoder left out (15 tensors)" in caplog.text


def test_xlnet_keeps_no_memory(directories):
    trunk, _, _ = open_directory(directories["ProtXLNet"])
    output = trunk.model(input_ids=torch.tensor([[9, 10, 4, 3]]), attention_mask=torch.ones(1, 4))
    assert output.mems is None
    output = peer(directories["ProtXLNet"], "XLNetModel")(input_ids=torch.tensor([[9, 10, 4, 3]]))
    assert output.mems is not None


def test_a_saved_table_builds_the_same_network(directories):
    trunk, config, _ = open_directory(directories["ProstT5"])
    stored = json.loads(json.dumps({"config": config, "table": trunk.table.to_dict()}))
    again = build(stored["config"], TokenTable.from_dict(stored["table"], "config.json"), lm_head=False)
    again.load_state_dict(trunk.state_dict())
    stream = torch.tensor([2, 5, 6, 7, 3]), torch.arange(5), torch.tensor([0, 5], dtype=torch.int32)
    assert torch.equal(again(*stream), trunk(*stream))


# ---- files from elsewhere


def as_pickle(directory: Path, copy: Path, **more) -> Path:
    shutil.copytree(directory, copy)
    torch.save(load_file(copy / "model.safetensors") | more, copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    return copy


def test_a_pickled_file_is_read_by_the_safe_reader_alone(directories, tmp_path, monkeypatch):
    copy = as_pickle(directories["ProtBert"], tmp_path / "bin")

    def refuse(*_, **__):
        raise AssertionError("torch.load")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(AssertionError):  # transformers' own way
        peer(copy, "BertModel")
    expected = proteinlm.load(directories["ProtBert"], device="cpu").embed(PROTEINS)
    np.testing.assert_array_equal(proteinlm.load(copy, device="cpu").embed(PROTEINS), expected)


def test_code_of_a_directory_is_not_run(directories, tmp_path):
    marker = tmp_path / "marker"
    copy = as_pickle(directories["ProtBert"], tmp_path / "bin", more=Attack(Path.touch, marker))
    with pytest.raises(InputError, match=r"pytorch_model\.bin"):
        proteinlm.load(copy, device="cpu")
    shutil.copytree(directories["ProtBert"], tmp_path / "remote")
    (tmp_path / "remote/evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    config = read_json(tmp_path / "remote/config.json")
    config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", None]}
    write_json(tmp_path / "remote/config.json", config)
    assert proteinlm.load(tmp_path / "remote", device="cpu").embed("MKV").shape == (1, 16)
    assert not marker.exists()


@pytest.mark.parametrize(("name", "own"), [("ProtBert", "BertForMaskedLM"), ("ProtT5", "T5ForConditionalGeneration")])
def test_an_old_config_with_a_class_and_no_model_type(directories, tmp_path, name, own):
    """As Rostlab/prot_bert has it."""
    copy = shutil.copytree(directories[name], tmp_path / "old")
    changes = {"model_type": None, "architectures": [own]}
    write_json(copy / "config.json", read_json(copy / "config.json") | changes)
    expected = proteinlm.load(directories[name], device="cpu").embed(PROTEINS)
    np.testing.assert_array_equal(proteinlm.load(copy, device="cpu").embed(PROTEINS), expected)


def test_a_half_precision_file_computes_in_fp32(directories, tmp_path):
    """As Rostlab/prot_t5_xl_half_uniref50-enc has it."""
    copy = shutil.copytree(directories["ProtT5"], tmp_path / "half")
    save_file({k: v.half() for k, v in load_file(copy / "model.safetensors").items()}, copy / "model.safetensors")
    write_json(copy / "config.json", read_json(copy / "config.json") | {"dtype": "float16"})
    encoder = proteinlm.load(copy, device="cpu")
    assert {parameter.dtype for parameter in encoder.model.parameters()} == {torch.float32}
    expected = proteinlm.load(directories["ProtT5"], device="cpu").embed(PROTEINS)
    np.testing.assert_allclose(encoder.embed(PROTEINS), expected, atol=0.02)


def edit_config(**changes):
    return lambda path: write_json(path / "config.json", read_json(path / "config.json") | changes)


def edit_weights(change: Callable[[dict], object]):
    def edit(path: Path) -> None:
        state = load_file(path / "model.safetensors")
        change(state)
        save_file(state, path / "model.safetensors")

    return edit


def pieces_of_two(path: Path) -> None:
    """A vocabulary in which `MK` and others are tokens, and M, K none."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS.replace("M", "").replace("K", ""), "MK"]
    (path / "vocab.txt").write_text("\n".join(tokens) + "\n")


QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            edit_config(model_type="gpt2"),
            r"config.json: model_type 'gpt2' is no encoder that transformers has; should be bert, ",
        ),
        (edit_config(model_type="transfo-xl"), r"config.json: model_type 'transfo-xl' is no encoder"),
        (edit_config(model_type="bart"), "bart is an encoder and a decoder; of these only T5's encoder can be opened$"),
        (edit_config(hidden_size=24), r"has shape \[16\], but config.json gives \[24\]$"),
        (edit_config(hidden_size="many"), r"config.json: "),
        (edit_config(num_hidden_layers=10**6), "cannot be the 1000000 layers of config.json$"),
        (
            edit_config(max_position_embeddings=2**36),
            r"has shape \[64, 16\], but config.json gives \[68719476736, ",
        ),
        (edit_config(num_hidden_layers=1), r"bert.encoder.layer.1.\S+ is of a layer that config.json does not give$"),
        (edit_config(num_hidden_layers=3), r"model.safetensors: encoder.layer.2.\S+ is missing \(16 of the names"),
        (edit_weights(lambda state: state.pop(QUERY)), r"query.weight is missing \(1 of the names"),
        (
            edit_weights(lambda state: state.update({QUERY: torch.ones(3, 16)})),
            r"weight has shape \[3, 16\], but config.json gives \[16, 16\]$",
        ),
        (edit_weights(lambda state: state.update({QUERY: state[QUERY] > 0})), r"holds torch.bool, but config.json gi"),
        (edit_weights(lambda state: state[QUERY].fill_(torch.nan)), r"query.weight holds NaN or infinity"),
        (lambda path: (path / "vocab.txt").write_text(""), r"its tokenizer cannot be opened \(.*Missing \[UNK\]"),
        (pieces_of_two, r"its tokenizer \(BertTokenizer\): K, M are not one token, which each of the 20"),
        (lambda path: (path / "vocab.txt").unlink(), "its tokenizer"),
        (lambda path: (path / "model.safetensors").unlink(), "neither model.safetensors nor pytorch"),
        (lambda path: (path / "model.safetensors").write_bytes(b"no"), "not a whole safetensors file"),
    ],
)
def test_what_cannot_be_opened_is_one_line(directories, tmp_path, damage, message):
    copy = shutil.copytree(directories["ProtBert"], tmp_path / "damaged")
    damage(copy)
    with pytest.raises(InputError, match=message) as raised:
        proteinlm.load(copy, device="cpu")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 400


def test_a_vocabulary_larger_than_the_embedding(directories, tmp_path):
    copy = shutil.copytree(directories["ProstT5"], tmp_path / "small")
    edit_config(vocab_size=128)(copy)
    edit_weights(lambda state: state.update({"shared.weight": state["shared.weight"][:128].clone()}))(copy)
    with pytest.raises(InputError, match="vocab_size 128, but the tokenizer has the id 149"):
        proteinlm.load(copy, device="cpu")


@pytest.mark.parametrize(
    "change",
    [{"ids": [1, 2]}, {"ids": ["A"] * 30}, {"pad_id": None}, {"cls": 7}, {"prefix": None}, {"more": 1}, {"sep": -1}],
)
def test_a_damaged_table(change):
    good = TokenTable("ProtBert", (1,) * 30, (1,) * 30, (2,), (3,), 0, 0, 1).to_dict()
    assert TokenTable.from_dict(good, "here").prefix == (2,)
    with pytest.raises(InputError, match=r"^here: tokens should "):
        TokenTable.from_dict(good | change, "here")


def test_without_transformers_the_extra_is_named(directories, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(InputError, match=r"needs the package transformers .*; install this project's extra \[hugging"):
        proteinlm.load(directories["ProtBert"], device="cpu")


def test_a_directory_of_this_project_is_none_of_transformers(tmp_path):
    write_model(tmp_path / "ours")
    write_json(tmp_path / "ours/config.json", read_json(tmp_path / "ours/config.json") | {"base_model": "transformer"})
    with pytest.raises(InputError, match=r"no directory of transformers; its model type is 'transformer'$"):
        open_directory(tmp_path / "ours")
