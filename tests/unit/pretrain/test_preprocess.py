"""The command: its files and summary, the same bytes for every number of workers, one clear line for every mistake."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tape_lmdb import write_lmdb

from pretrain.data import preprocess
from pretrain.data.indexed import IndexedDataset
from proteinlm.errors import InputError, run
from proteinlm.tokenizer import Tokenizer, build_tokenizer

FASTA = ">a\nMkV*\n>empty\n>b\nA-CJ\nJ1\n"


@pytest.fixture
def call(tmp_path, capsys):
    """call(flags...) -> (status, stdout, stderr) of the command with --output-prefix tmp_path/out."""

    def call(*flags: object) -> tuple[int, str, str]:
        words = ["--output-prefix", str(tmp_path / "out"), *map(str, flags)]
        try:
            status = run(preprocess.main, words)
        except SystemExit as leaving:  # argparse
            status = leaving.code
        return status, *capsys.readouterr()

    return call


def shard(tmp_path: Path) -> list[str]:
    """The proteins of tmp_path/out_text_document."""
    data = IndexedDataset(tmp_path / "out_text_document")
    return [build_tokenizer().decode(data.read(i)) for i in range(len(data))]


def summary(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out_text_document.summary.json").read_text())


def many(folder: Path, number: int = 20_000) -> Path:
    """A FASTA of a few chunks."""
    rng = np.random.default_rng(0)
    letters = rng.choice(np.frombuffer(b"ACDEFGHIKLMNPQRSTVWY", np.uint8), 400).tobytes().decode()
    spans = np.sort(rng.integers(0, 400, (number, 2)), axis=1).tolist()
    path = folder / "many.fasta"
    path.write_text("".join(f">{i}\n{letters[a:b]}\n" for i, (a, b) in enumerate(spans)))
    return path


def test_fasta_by_hand(call, tmp_path):
    (tmp_path / "x.fasta").write_text(FASTA)
    status, out, err = call("--input", tmp_path / "x.fasta")
    assert (status, err) == (0, "")
    assert (tmp_path / "out_text_document.bin").read_bytes() == bytes([17, 15, 26, 6, 8, 4, 4, 4])
    assert shard(tmp_path) == ["MKV", "AC[UNK][UNK][UNK]"]
    assert "2 proteins, 8 residues" in out and "unknown letters, now [UNK]: J 2, 1 1" in out
    assert "removed: '*' 1, '-' 1; empty records skipped: 1" in out


def test_max_length_leaves_longer_proteins_out_and_counts_them(call, tmp_path):
    (tmp_path / "x.fasta").write_text(">a\nMKV\n>b\nMKVL\n>c\nAC\n")
    status, out, _ = call("--input", tmp_path / "x.fasta", "--max-length", 3)
    assert status == 0 and "longer than --max-length: 1 proteins" in out
    assert shard(tmp_path) == ["MKV", "AC"] and summary(tmp_path)["longer_left_out"] == 1
    status, _, err = call("--input", tmp_path / "x.fasta", "--max-length", 1)
    assert status == 2 and "no proteins, 3 longer than --max-length 1" in err
    assert call("--input", tmp_path / "x.fasta", "--max-length", 0)[0] == 2


def test_summary_file(call, tmp_path):
    (tmp_path / "x.fasta").write_text(FASTA + ">long\n" + "A" * 65)
    assert call("--input", tmp_path / "x.fasta")[0] == 0
    result = summary(tmp_path)
    assert (result["proteins"], result["residues"], result["tokens"]) == (3, 73, 73)
    assert (result["shortest"], result["longest"], result["empty_records_skipped"]) == (3, 65, 1)
    assert result["unknown"] == {"J": 2, "1": 1} and result["removed"] == {"*": 1, "-": 1}
    assert result["length_histogram"][:2] == [
        {"from": 1, "to": 64, "proteins": 2},
        {"from": 65, "to": 128, "proteins": 1},
    ]
    assert sum(bar["proteins"] for bar in result["length_histogram"]) == 3
    assert result["inputs"] == [{"path": str(tmp_path / "x.fasta"), "kind": "fasta", "proteins": 3}]
    assert Tokenizer.from_dict(result["tokenizer"]) == build_tokenizer() and result["dtype"] == "uint8"
    assert result["seconds"] > 0 and result["proteins_per_second"] > 0


def test_several_inputs_of_every_kind_in_order(call, tmp_path):
    (tmp_path / "a.fasta.gz").write_bytes(gzip.compress(b">1\nMK\n") + gzip.compress(b">2\nV\n"))
    (tmp_path / "b.jsonl").write_text('{"text": "A C"}\n{"text": "DE"}\n')
    (tmp_path / "c.txt").write_text("FG\n")
    write_lmdb(tmp_path / "d.lmdb", [{"primary": "HI"}])
    (tmp_path / "e.fasta").write_text("")
    inputs = [tmp_path / name for name in ("b.jsonl", "a.fasta.gz", "d.lmdb", "e.fasta", "c.txt")]
    status, out, _ = call("--input", *inputs)
    assert status == 0 and shard(tmp_path) == ["AC", "DE", "MK", "V", "HI", "FG"]
    assert f"notice: {tmp_path / 'e.fasta'}: no proteins" in out
    assert [one["proteins"] for one in summary(tmp_path)["inputs"]] == [2, 2, 1, 0, 1]


def test_the_bytes_do_not_depend_on_the_workers(call, tmp_path):
    path = many(tmp_path)
    written = []
    for workers in (1, 2, 3):
        assert call("--input", path, path, "--workers", workers)[0] == 0
        written.append([(tmp_path / f"out_text_document.{end}").read_bytes() for end in ("bin", "idx")])
    assert written[0] == written[1] == written[2]
    lengths = IndexedDataset(tmp_path / "out_text_document").lengths
    assert len(lengths) > 39_000 and (lengths[: len(lengths) // 2] == lengths[len(lengths) // 2 :]).all()


@pytest.mark.parametrize("workers", [1, 2])
def test_strict_names_file_line_and_letter(workers, call, tmp_path):
    path = many(tmp_path)
    lines = path.read_text().splitlines()
    lines[30_001] = "MKJ"
    path.write_text("\n".join(lines))
    status, _, err = call("--input", path, "--strict", "--workers", workers)
    assert status == 2 and f"{path}, line 30002: letter 'J' is not in the vocabulary" in err
    assert sorted(one.name for one in tmp_path.iterdir()) == ["many.fasta"]
    assert call("--input", path, "--workers", workers)[0] == 0  # negative control
    assert summary(tmp_path)["unknown"] == {"J": 1}


def test_strict_passes_what_is_known(call, tmp_path):
    (tmp_path / "x.fasta").write_text(">a J1\nmk v*-.\nABCDEFGHIKLMNOPQRSTUVWXYZ\n")
    assert call("--input", tmp_path / "x.fasta", "--strict")[0] == 0


@pytest.mark.parametrize("text, words", [("", "no proteins"), (">a\n>b\n*\n", "no proteins, 2 empty records")])
def test_no_proteins_is_an_error_and_the_old_shard_stays(text, words, call, tmp_path):
    (tmp_path / "x.fasta").write_text(FASTA)
    assert call("--input", tmp_path / "x.fasta")[0] == 0
    (tmp_path / "y.fasta").write_text(text)
    status, _, err = call("--input", tmp_path / "y.fasta")
    assert status == 2 and f"{tmp_path / 'y.fasta'}: {words}" in err and err.count("\n") == 1
    assert len(shard(tmp_path)) == 2


WRONG = {
    "missing file": (["--input", "{0}/absent.fasta"], "absent.fasta: no such file"),
    "a later file missing": (["--input", "{0}/x.fasta", "{0}/absent.fasta"], "absent.fasta: no such file"),
    "no input": ([], "--input"),
    "unknown flag": (["--input", "{0}/x.fasta", "--worker", "2"], "did you mean --workers?"),
    "no workers": (["--input", "{0}/x.fasta", "--workers", "0"], "--workers 0: at least 1"),
    "append eod": (["--input", "{0}/x.fasta", "--append-eod"], "--append-eod"),
    "cached": (["--input", "{0}/x.fasta", "--dataset-impl", "cached"], "--dataset-impl cached: only mmap"),
    "unknown tokenizer": (["--input", "{0}/x.fasta", "--tokenizer-type", "GPT2"], "--tokenizer-type GPT2: unknown"),
    "tape ids": (["--input", "{0}/x.fasta", "--tokenizer-type", "tape"], "use iupac"),
    "missing vocabulary": (["--input", "{0}/x.fasta", "--vocab-file", "{0}/v.txt"], "v.txt: no such file"),
    "vocabulary is FASTA": (["--input", "{0}/x.fasta", "--vocab-file", "{0}/x.fasta"], "line 1: token '>a'"),
    "no model": (["--input", "{0}/x.fasta", "--tokenizer-type", "SentencePiece"], "needs --vocab-file"),
    "train iupac": (["--input", "{0}/x.fasta", "--train-tokenizer", "--vocab-size", "50"], "needs --tokenizer-type"),
    "size without train": (["--input", "{0}/x.fasta", "--vocab-size", "50"], "go together"),
    "broken json": (["--input", "{0}/x.jsonl"], "x.jsonl, line 1: not JSON"),
}


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_reported_in_one_line(name, call, tmp_path):
    (tmp_path / "x.fasta").write_text(FASTA)
    (tmp_path / "x.jsonl").write_text("MKV\n")
    flags, message = WRONG[name]
    status, _, err = call(*(flag.format(tmp_path) for flag in flags))
    assert status == 2 and message in err and err.count("\n") == 1 and "Traceback" not in err
    assert list(tmp_path.glob("*out*")) == []


def test_unwritable_output_names_the_output(call, tmp_path):
    (tmp_path / "x.fasta").write_text(FASTA)
    status, _, err = call("--input", tmp_path / "x.fasta", "--output-prefix", tmp_path / "x.fasta" / "out")
    assert status == 2 and f"{tmp_path}/x.fasta/out_text_document.idx: cannot be written" in err


def test_the_originals_launch_line(call, tmp_path):
    from proteinlm.tokenizer import PRETRAIN_TOKENS

    (tmp_path / "iupac_vocab.txt").write_text("\n".join(PRETRAIN_TOKENS) + "\n")
    (tmp_path / "corpus.json").write_text('{"text": "M K V"}\n')
    flags = ["--vocab-file", tmp_path / "iupac_vocab.txt", "--tokenizer-type", "BertWordPieceLowerCase"]
    flags += ["--dataset-impl", "mmap", "--split-sentences", "--json-keys", "text", "--log-interval", 100]
    status, _, err = call("--input", tmp_path / "corpus.json", *flags)
    assert status == 0 and shard(tmp_path) == ["MKV"]
    assert err == "notice: --split-sentences has no meaning for proteins; ignored\n"


def test_sentencepiece_is_trained_then_used(call, tmp_path):
    path, model = many(tmp_path, 300), tmp_path / "x.model"
    kind = ["--input", path, "--tokenizer-type", "SentencePiece", "--vocab-file", model]
    status, out, _ = call(*kind, "--train-tokenizer", "--vocab-size", 300)
    assert status == 0 and f"trained {model}: 300 tokens" in out
    first = (tmp_path / "out_text_document.bin").read_bytes()
    assert call(*kind, "--workers", 2)[0] == 0
    assert (tmp_path / "out_text_document.bin").read_bytes() == first
    data, result = IndexedDataset(tmp_path / "out_text_document"), summary(tmp_path)
    assert data.dtype == np.uint16 and data.num_tokens == result["tokens"] < result["residues"] / 2
    tokenizer = Tokenizer.from_dict(result["tokenizer"])
    proteins = [line for line in path.read_text().splitlines() if line and line[0].isalpha()]
    assert [tokenizer.decode(data.read(i)) for i in range(len(data))] == proteins
    status, _, err = call(*kind, "--train-tokenizer", "--vocab-size", 300)
    assert status == 2 and "x.model: exists" in err


def test_results_come_in_order_and_an_error_passes_through():
    assert list(preprocess.map_in_order(abs, range(0, -50, -1), 2)) == list(range(50))
    with pytest.raises(ValueError, match="invalid literal"):
        list(preprocess.map_in_order(int, ["1", "x"], 2))
    with pytest.raises(InputError, match="fewer --workers"):
        list(preprocess.map_in_order(_die, [0], 2))


def _die(_: int) -> None:
    import os

    os._exit(1)


def test_no_heavy_import_at_the_start():
    code = (
        "import sys, pretrain.preprocess; print({'torch', 'scipy', 'lmdb', 'sentencepiece', 'tqdm'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_module_runs_as_a_command(tmp_path):
    (tmp_path / "x.fasta").write_text(FASTA)
    command = [sys.executable, "-m", "pretrain.preprocess", "--output-prefix", str(tmp_path / "out")]
    good = subprocess.run([*command, "--input", str(tmp_path / "x.fasta")], capture_output=True, text=True)
    assert good.returncode == 0 and "2 proteins" in good.stdout and good.stderr == ""
    bad = subprocess.run([*command, "--input", str(tmp_path / "no.fasta")], capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stderr == f"error: {tmp_path / 'no.fasta'}: no such file\n"
