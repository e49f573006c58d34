"""What a user may hand in by mistake or by habit: odd names and configurations, links in a circle, pipes."""

import csv
import gzip
import json
import os
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import toy_model
from toy_data import TINY, write_config, write_data
from toy_fasta import toy_config, toy_proteins, write_fasta, write_model

from pretrain.data import preprocess
from probe.contacts import command as contacts
from probe.projection import command as projection
from probe.variants import command as variants
from proteinlm import errors, files
from proteinlm.errors import InputError
from tape import embed, evaluate, predict, train
from tape.models.config import ProteinBertConfig
from tape.models.zoo import MODELS
from tape.registry import resolve_task


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("odd") / "model"
    write_model(directory)
    return directory


@pytest.fixture
def complaint(capsys):
    """The one line of a command that must refuse."""

    def run(main, *words) -> str:
        assert errors.run(main, [str(word) for word in words]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return run


def embedded(model: Path, source: object, target: Path, *flags: str) -> int:
    words = ("transformer", source, target, model, "--device", "cpu", *flags)
    return errors.run(embed.main, [str(word) for word in words])


# ---- names, links


@pytest.mark.parametrize("out", ["out.npz", "out.h5", "out.parquet"])
@pytest.mark.parametrize(("name", "fault"), [("a\0b", "a NUL byte"), ("a" * 3_000_000, "3,000,000 letters")])
def test_a_name_that_no_file_of_results_holds(model, tmp_path, complaint, name, fault, out):
    (tmp_path / "in.fasta").write_text(f">good\nMKV\n>{name} more\nMKV\n")
    line = complaint(embed.main, "transformer", tmp_path / "in.fasta", tmp_path / out, model, "--device", "cpu")
    assert line == f"error: {tmp_path}/in.fasta, record 2: a name with {fault}; is this a FASTA file?"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.fasta"]


def test_a_long_name_is_no_mistake(model, tmp_path):
    (tmp_path / "in.fasta").write_text(f">{'a' * 10_000}\nMKV\n")
    assert embedded(model, tmp_path / "in.fasta", tmp_path / "out.npz") == 0
    assert np.load(tmp_path / "out.npz").files == ["a" * 10_000]


@pytest.mark.parametrize("place", ["input", "output", "plugin"])
def test_a_link_that_leads_back_to_itself(model, tmp_path, complaint, place):
    link, fasta = tmp_path / "link.fasta", tmp_path / "in.fasta"
    link.symlink_to(link.name)
    fasta.write_text(">a\nMKV\n")
    words = {
        "input": (link, tmp_path / "out.npz", model),
        "output": (fasta, link / "out.npz", model),
        "plugin": (fasta, tmp_path / "out.npz", model, "--plugin", link),
    }
    line = complaint(embed.main, "transformer", *words[place], "--device", "cpu")
    assert str(link) in line and ("leads back to itself" in line or "no such file" in line or ".py" in line)


def test_a_level_of_logging_that_there_is_not(model, tmp_path, capsys):
    (tmp_path / "in.fasta").write_text(">a\nMKV\n")
    for main, words in (
        (embed.main, ("transformer", tmp_path / "in.fasta", tmp_path / "out.npz", model)),
        (evaluate.main, ("transformer", "stability", tmp_path)),
    ):
        with pytest.raises(SystemExit):
            main([*map(str, words), "--log_level", "foo"])
        assert "argument --log_level: invalid choice: 'FOO'" in capsys.readouterr().err


# ---- pipes


@pytest.fixture
def stdin(monkeypatch):
    """Put bytes on standard input, as a pipe that can be read once."""
    files.reread.cache_clear()
    saved = os.dup(0)

    def put(data: bytes) -> None:
        source, target = os.pipe()
        os.dup2(source, 0)
        os.close(source)
        threading.Thread(target=lambda: (os.write(target, data), os.close(target))).start()

    yield put
    os.dup2(saved, 0)
    os.close(saved)
    files.reread.cache_clear()


def fifo(path: Path, data: bytes) -> Path:
    """What `<(command)` gives."""
    os.mkfifo(path)
    threading.Thread(target=lambda: path.write_bytes(data)).start()
    return path


def test_a_pipe_is_embedded_as_the_file_is(model, tmp_path, stdin):
    """Plain and gzipped, of standard input and of a shell's <( ): tape-embed reads it twice."""
    whole = write_fasta(tmp_path / "in.fasta", toy_proteins(8)).read_bytes()
    assert embedded(model, tmp_path / "in.fasta", tmp_path / "file.h5") == 0
    stdin(gzip.compress(whole))
    assert embedded(model, "-", tmp_path / "stdin.h5") == 0
    assert embedded(model, fifo(tmp_path / "fifo", whole), tmp_path / "fifo.h5") == 0
    one, *others = (h5py.File(tmp_path / f"{name}.h5") for name in ("file", "stdin", "fifo"))
    for other in others:
        assert list(one["ids"]) == list(other["ids"]) and np.array_equal(one["avg"][:], other["avg"][:])


def test_a_pipe_is_preprocessed_as_the_file_is(tmp_path, stdin, complaint):
    """--cluster reads the shard again, a refusal the input."""
    whole = write_fasta(tmp_path / "in.fasta", toy_proteins(8)).read_bytes()
    stdin(whole)
    for source, out in ((tmp_path / "in.fasta", "file"), ("-", "stdin")):
        assert errors.run(preprocess.main, ["--input", str(source), "--output-prefix", str(tmp_path / out)]) == 0
    one, two = ((tmp_path / f"{out}_text_document.bin").read_bytes() for out in ("file", "stdin"))
    assert one == two
    odd = fifo(tmp_path / "odd", b">a\nMKV\n>b\nMKJ\n")
    line = complaint(preprocess.main, "--strict", "--input", odd, "--output-prefix", tmp_path / "odd_out")
    assert f"{odd}, line 4: letter 'J'" in line


def test_a_piped_table_trains(tmp_path, stdin):
    """FASTA with labels in its headers, where a name with a suffix says so elsewhere."""
    proteins = toy_proteins(40).values()
    stdin("".join(f">p{i} TARGET={'AB'[i % 2]}\n{residues}\n" for i, residues in enumerate(proteins)).encode())
    config = write_config(tmp_path / "config.json")
    words = ("transformer", "-", "--model_config_file", config, "--output_dir", tmp_path / "run", "--device", "cpu")
    assert errors.run(train.main, [str(word) for word in (*words, "--max_steps", 1, "--eval_steps", 1)]) == 0
    assert json.loads((tmp_path / "run/data.json").read_text())["kind"] == "classification"
    assert list((tmp_path / "run/embeddings").iterdir())  # not beside a copy that goes as the process ends
    table = fifo(tmp_path / "new.csv", b"id,sequence\na,MKVLA\nb,MKTAY\n")  # its columns, then its proteins
    words = (tmp_path / "run", table, tmp_path / "p.csv", "--device", "cpu")
    assert errors.run(predict.main, [str(word) for word in words]) == 0
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 3


@pytest.mark.slow
def test_pipes_of_the_command_proteinlm(tmp_path, stdin):
    (tmp_path / "model").mkdir()
    model = toy_model.write_model(tmp_path / "model")
    for verb, flags, out in (
        (variants, ("--scan", "--output", tmp_path / "scan.csv"), "scan.csv"),
        (contacts, ("--output", tmp_path / "map"), "map.html"),
    ):
        wild_type = fifo(tmp_path / out.replace(".", "_"), b">wt\nMKVLA\n")
        words = (model, "--view", wild_type) if verb is contacts else (model, wild_type)
        assert errors.run(verb.main, [str(word) for word in (*words, *flags, "--device", "cpu")]) == 0
        assert (tmp_path / out).is_file()
    proteins = toy_proteins(20).values()
    stdin("".join(f">p{i} TARGET={'AB'[i % 2]}\n{residues}\n" for i, residues in enumerate(proteins)).encode())
    words = (model, "-", "--output", tmp_path / "points", "--method", "pca", "--device", "cpu")
    assert errors.run(projection.main, [str(word) for word in words]) == 0 and (tmp_path / "points.html").is_file()


def test_a_copy_of_a_pipe_is_made_once_and_a_file_is_not_copied(tmp_path, stdin):
    (tmp_path / "in.fasta").write_text(">a\nMKV\n")
    assert files.reread(str(tmp_path / "in.fasta")) == str(tmp_path / "in.fasta")
    assert files.reread(str(tmp_path / "absent")) == str(tmp_path / "absent")
    stdin(b">a\nMKV\n")
    copies = {files.reread("-", ".fasta") for _ in range(2)}
    assert {Path(copy).read_bytes() for copy in copies} == {b">a\nMKV\n"} and len(copies) == 1
    for name, suffix in (("a.tsv", ".tsv"), ("a.csv.gz", ".csv"), ("a.b", ".fasta")):
        assert Path(files.reread(str(fifo(tmp_path / name, b"x")), ".fasta")).suffix == suffix


# ---- configurations

WRONG = {
    "layer_norm_eps": "x",
    "initializer_range": -0.02,
    "hidden_size": 0,
    "num_attention_heads": 3,
    "hidden_dropout_prob": 1.5,
    "pooling": "last",
    "contact_dropout_prob": None,
    "num_labels": "2",
    "type_vocab_size": -1,
    "torchscript": "no",
    "finetuning_task": 7,
    "base_model": [],
}


@pytest.mark.parametrize("key", WRONG)
def test_a_key_of_a_configuration_names_its_file(key, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY | {key: WRONG[key]}))
    for read, source in (
        (ProteinBertConfig, path),
        (ProteinBertConfig.from_json_file, path),
        (ProteinBertConfig.from_pretrained, tmp_path),
    ):
        with pytest.raises(InputError, match=rf"^{path}: (key ')?{key}'? "):
            read(source)
    with pytest.raises(InputError, match=rf"^ProteinBertConfig: {key} "):  # of Python there is no file
        ProteinBertConfig(**TINY | {key: WRONG[key]})


@pytest.mark.parametrize("model_type", ["lstm", "resnet", "onehot", "tape_transformer"])
def test_so_do_those_of_the_other_models(model_type, tmp_path):
    model_class = MODELS[model_type]["value"]
    shape = TINY | {"input_size": 16}
    small = {key: shape[key] for key in shape.keys() & model_class.config_class.defaults.keys()}
    model_class(model_class.config_class(**small)).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    wrong = {"vocab_size": "x", "pooling": 3, "initializer_range": -1, "num_labels": None, "torchscript": 2}
    for key, value in wrong.items():
        (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
        with pytest.raises(InputError, match=rf"^{tmp_path}/config.json: {key} "):
            model_class.from_pretrained(tmp_path)


def test_a_key_of_model_config_file_names_it_beside_a_directory(model, tmp_path, complaint):
    write_data(tmp_path, "stability", train=4, valid=2)
    (tmp_path / "more.json").write_text(json.dumps({"hidden_dropout_prob": "high"}))
    words = ("transformer", "stability", "--from_pretrained", model, "--model_config_file", tmp_path / "more.json")
    line = complaint(train.main, *words, "--data_dir", tmp_path, "--output_dir", tmp_path / "run", "--device", "cpu")
    assert line.startswith(f"error: {tmp_path}/more.json: hidden_dropout_prob 'high'")


@pytest.mark.parametrize(("kind", "own"), [("bert", "huggingface"), ("esm", "transformer")])
@pytest.mark.parametrize("model_type", ["lstm", "resnet"])
def test_a_directory_of_hugging_faces_is_told_its_model_type(kind, own, model_type, model, tmp_path, complaint):
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"model_type": kind}))
    (tmp_path / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    (tmp_path / "in.fasta").write_text(">a\nMKV\n")
    line = complaint(embed.main, model_type, tmp_path / "in.fasta", tmp_path / "out.npz", tmp_path, "--device", "cpu")
    assert line.startswith(
        f"error: {tmp_path}: Hugging Face's '{kind}'; its model type is {own} (tape-train {own} TASK"
    )


# ---- predictions


@pytest.mark.parametrize("name", ["secondary_structure", "stability", "remote_homology"])
def test_a_csv_holds_what_a_tsv_holds(name, tmp_path):
    task = resolve_task(name, "transformer")
    torch.manual_seed(1)
    task.model(toy_config(num_labels=max(1, task.num_labels), finetuning_task=name)).save_pretrained(tmp_path / "run")
    (tmp_path / "in.fasta").write_text('>a"b\nMKV\n>c,d\nMKVLA\n')
    rows = {}
    for suffix, delimiter in ((".tsv", "\t"), (".csv", ",")):
        out = tmp_path / f"out{suffix}"
        assert predict.main([str(tmp_path / "run"), str(tmp_path / "in.fasta"), str(out), "--device", "cpu"]) == 0
        quoting = csv.QUOTE_NONE if suffix == ".tsv" else csv.QUOTE_MINIMAL
        with out.open(newline="") as file:
            rows[suffix] = list(csv.reader(file, delimiter=delimiter, quoting=quoting))
    assert rows[".tsv"] == rows[".csv"] and {row[0] for row in rows[".csv"]} == {"id", 'a"b', "c,d"}
    assert (tmp_path / "out.tsv").read_text().splitlines()[1].startswith('a"b\t')  # as it always was


def test_debug_shows_the_traceback_of_any_mistake(tmp_path, capsys):
    words = [str(tmp_path / "absent"), "in.fasta", "out.tsv"]
    assert errors.run(predict.main, words) == 2 and "Traceback" not in capsys.readouterr().err
    assert errors.run(predict.main, [*words, "--debug"]) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert printed[0].startswith("Traceback")
    assert printed[-1] == f"error: {words[0]}: no such directory; should be one that tape-train wrote"
