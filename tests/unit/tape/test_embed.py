"""tape-embed: against the model called by hand, against Hugging Face layer by layer, and killed in the middle."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_fasta import by_hand, toy_config, toy_proteins, write_fasta, write_model

import proteinlm
from proteinlm import errors
from proteinlm.encoder import make_stream, token_batches
from proteinlm.errors import InputError
from proteinlm.untrusted.array_files import read_kept, write_kept
from tape import TAPETokenizer, embed
from tape.inference.encoding import TOKENIZER, TrunkEncoder
from tape.inference.fasta import Rules, read_proteins, scan_fasta
from tape.inference.parts import PartStore, plan_parts, split_rows
from tape.models.modeling_bert import ProteinBertModel

CPU, FP32 = torch.device("cpu"), torch.float32


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> tuple[Path, ProteinBertModel]:
    root = tmp_path_factory.mktemp("toy")
    write_fasta(root / "in.fasta", toy_proteins())
    return root, write_model(root / "model")


def run(root: Path, out: str, *flags: str, data: str = "in.fasta") -> Path:
    assert embed.main(["transformer", str(root / data), str(root / out), str(root / "model"), *flags]) == 0
    assert not (root / f"{out}.parts").exists()
    return root / out


def read(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Any of the formats, as name -> kind -> array; names in the file's order."""
    if path.suffix == ".npz":
        file = np.load(path, allow_pickle=True)
        return {name: file[name].item() for name in file.files}
    if path.suffix == ".h5":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path) as file:
            names, lengths = file["ids"].asstr()[:], file["length"][:]
            results = {name: {} for name in names}
            for kind in {"pooled", "avg", "mean"} & set(file):
                for name, row in zip(names, file[kind][:], strict=True):
                    results[name][kind] = row
            if "seq" in file:
                bounds = file["offsets"][:]
                assert (np.diff(bounds) == lengths + 2).all()
                for i, name in enumerate(names):
                    results[name]["seq"] = file["seq"][bounds[i] : bounds[i + 1]]
        return results
    table = pytest.importorskip("pyarrow.parquet").read_table(path)
    kinds = [name for name in table.column_names if name not in ("id", "length")]
    rows = table.to_pylist()
    assert all(len(row["seq"]) == row["length"] + 2 for row in rows if "seq" in row)
    return {row["id"]: {kind: np.array(row[kind], np.float32) for kind in kinds} for row in rows}


@pytest.mark.parametrize("out", ["all.npz", "all.h5", "all.parquet"])
def test_every_format_holds_what_the_model_says_of_each_protein_alone(toy, out):
    root, model = toy
    flags = ["--embeddings", "mean", "pooled", "avg", "--full_sequence_embed", "--part_proteins", "6"]
    path = run(root, out, *flags, "--tokens_per_batch", "70")
    results = read(path)
    assert list(results) == list(toy_proteins())  # input order
    for name, residues in toy_proteins().items():
        expected = by_hand(model, residues)
        assert set(results[name]) == set(expected)
        for kind, value in expected.items():
            np.testing.assert_allclose(results[name][kind], value, atol=1e-5)
    # negative control: neighbours differ by far more than the tolerance
    first, second = list(results)[:2]
    assert np.abs(results[first]["avg"] - results[second]["avg"]).max() > 0.01
    again = path.with_name(f"again_{out}")
    run(root, again.name, *flags, "--tokens_per_batch", "70")
    assert again.read_bytes() == path.read_bytes()


def test_the_default_file_is_tapes(toy):
    root = toy[0]
    results = read(run(root, "tape.npz"))
    assert all(list(entry) == ["pooled", "avg"] for entry in results.values())
    full = read(run(root, "full.npz", "--full_sequence_embed"))
    assert all(list(entry) == ["pooled", "seq"] for entry in full.values())
    assert full["odd"]["seq"].shape == (8, 16) and full["odd"]["seq"].dtype == np.float32  # <cls> 6 residues <sep>


@pytest.mark.parametrize("flags", [[], ["--bf16", "--layer", "1"]])
def test_python_and_the_command_share_one_path(toy, flags):
    root, _ = toy
    results = read(run(root, "shared.npz", "--embeddings", "pooled", "avg", "mean", *flags))
    encoder = proteinlm.load(root / "model", "bf16" if flags else "fp32", "cpu")
    for pooling, kind in (("cls", "pooled"), ("avg", "avg"), ("mean", "mean")):
        vectors = encoder.embed(toy_proteins().values(), pooling, 1 if flags else -1)
        np.testing.assert_array_equal(vectors, [entry[kind] for entry in results.values()])  # the same bits


def test_gzip_changes_no_byte(toy):
    root, _ = toy
    write_fasta(root / "in.fasta.gz", toy_proteins())
    packed = run(root, "packed.npz", "--part_proteins", "4", data="in.fasta.gz")
    assert packed.read_bytes() == run(root, "plain.npz", "--part_proteins", "4").read_bytes()


@pytest.mark.slow
def test_killed_in_the_middle_and_started_again_ends_in_the_same_bytes(toy, python):
    root, _ = toy
    write_fasta(root / "many.fasta", toy_proteins(100))
    flags = ["--part_proteins", "1", "--layer", "1", "--format", "h5-per-protein", "--full_sequence_embed"]
    whole = run(root, "whole.h5", *flags, data="many.fasta")
    words = ["transformer", root / "many.fasta", root / "killed.h5", root / "model", *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    child = subprocess.Popen([str(python), "-m", "tape.embed", *map(str, words)], env=environment)
    parts = root / "killed.h5.parts"
    while not (parts / "part_000005.npz").exists():
        assert child.poll() is None
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    done = sorted(parts.glob("part_*.npz"))
    assert 6 <= len(done) < 101 and not (root / "killed.h5").exists()
    stamp = done[0].stat().st_mtime_ns
    with pytest.raises(InputError, match=r"begun with --layer 1, this run has 2"):
        run(root, "killed.h5", *flags[:3], "2", *flags[4:], data="many.fasta")
    write_fasta(root / "other.fasta", toy_proteins(100, seed=1))
    with pytest.raises(InputError, match="begun with input sha256"):
        run(root, "killed.h5", *flags, data="other.fasta")
    assert done[0].stat().st_mtime_ns == stamp  # what was done is not done again, and refusals touch nothing
    assert run(root, "killed.h5", *flags, data="many.fasta").read_bytes() == whole.read_bytes()


def test_a_part_of_other_numbers_would_show(toy):
    """Negative control of the test above: resuming does use the parts that are there."""
    root, _ = toy
    flags = ["--part_proteins", "4"]
    path = run(root, "clean.h5", *flags)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartStore, "finish", lambda self, write: (_ for _ in ()).throw(InputError("stop")))
        with pytest.raises(InputError, match="stop"):
            run(root, "dirty.h5", *flags)
    part = root / "dirty.h5.parts" / "part_000002.npz"
    arrays = read_kept(part)
    write_kept(part, arrays | {"avg": arrays["avg"] + 1})
    assert run(root, "dirty.h5", *flags).read_bytes() != path.read_bytes()


@pytest.mark.slow
def test_every_layer_is_hugging_faces(tmp_path):
    transformers = pytest.importorskip("transformers")
    from converter.__main__ import main as convert

    model = write_model(tmp_path / "model", num_hidden_layers=3)
    convert(["--load", str(tmp_path / "model"), "--save", str(tmp_path / "hf"), "--target", "hf"])
    reference = transformers.MegatronBertModel.from_pretrained(tmp_path / "hf", add_pooling_layer=False).eval()
    ids = make_stream(["MKVLAAGIVPW"], TOKENIZER).tokens
    with torch.no_grad():  # pretraining's vocabulary has one token more before the letters
        states = reference(torch.from_numpy(ids + (ids >= 5))[None], output_hidden_states=True).hidden_states
    assert len(states) == 4
    for layer in (0, 1, 2, 3, -1, -2):
        encoder = TrunkEncoder(ProteinBertModel.from_pretrained(tmp_path / "model"), layer, CPU, FP32)
        results = encoder.embed(["MKVLAAGIVPW", "AC"], ("seq", "pooled"))
        torch.testing.assert_close(results["seq"][:13], states[layer][0], atol=1e-5, rtol=0)
        torch.testing.assert_close(results["pooled"][0], states[layer][0, 0], atol=1e-5, rtol=0)
    assert (states[1] - states[2]).abs().max() > 0.1  # negative control: layers differ
    with pytest.raises(InputError, match=r"--layer 4: the model has 3 layers"):
        TrunkEncoder(model, 4, CPU, FP32)


@pytest.mark.parametrize("pooling", ["first", "mean"])
def test_padded_models_give_the_same_as_the_stream(pooling):
    """A trunk that is not ours gets padded batches; here the transformer hidden behind another class."""

    class Other(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.inner = ProteinBertModel(toy_config(pooling=pooling)).eval()
            self.config = self.inner.config

        def forward(self, input_ids, input_mask):
            return self.inner(input_ids, input_mask)

    proteins = list(toy_proteins().values())
    for layer in (-1, 1):
        model = Other()
        padded = TrunkEncoder(model, layer, CPU, FP32).embed(proteins, ("pooled", "avg", "mean", "seq"))
        model.config.output_hidden_states = False
        flat = TrunkEncoder(model.inner, layer, CPU, FP32).embed(proteins, ("pooled", "avg", "mean", "seq"))
        for kind, value in flat.items():
            torch.testing.assert_close(padded[kind], value, atol=1e-5, rtol=0)
        means = torch.isclose(flat["pooled"], flat["mean"], atol=1e-5).all()
        assert means == (pooling == "mean" and layer == -1)


def test_bf16_and_save_fp16_are_near(toy):
    root, model = toy
    results = read(run(root, "half.npz", "--bf16", "--save_fp16"))
    for name, residues in toy_proteins().items():
        assert results[name]["avg"].dtype == np.float16
        assert np.abs(results[name]["avg"] - by_hand(model, residues)["avg"]).max() < 0.1


BROKEN = {
    "twice": ">a\nMK\n>b\nAC\n>a\nGG\n",
    "nameless": ">a\nMK\n> \nAC\n",
    "long": ">a\nMK\n>b\n" + "A" * 63 + "\n",
    "none": ">a\n\n>b\n*\n",
    "text": "MKV\n>a\nMK\n",
}


@pytest.mark.parametrize(
    ("data", "flags", "message"),
    [
        ("twice", [], r"records 1 and 3 are both named a \(1 names repeated\); --duplicates first"),
        ("twice", ["--duplicates", "keep"], "the names are the keys of an .npz file"),
        ("nameless", [], "record 2: no name after '>'"),
        ("long", [], r"1 of 2 proteins exceed 62 residues, .* record 2 \(b\) of 63; --too_long crop\|skip\|window"),
        ("long", ["--max_length", "63"], "the model has 64 positions, so at most 62 residues fit"),
        ("none", [], "no protein to work on among 2 records"),
        ("text", [], "line 1: text before the first header"),
        ("absent", [], "no such file"),
        ("in", ["--layer", "9"], "--layer 9: the model has 2 layers"),
        ("in", ["--fp16", "--bf16"], "exclude each other"),
        ("in", ["--plugin", "absent.py"], "--plugin absent.py"),
    ],
)
def test_mistakes_are_reported_in_one_line(toy, capsys, data, flags, message):
    root, _ = toy
    path = root / f"{data}.fasta"
    if data in BROKEN:
        path.write_text(BROKEN[data])
    words = ["transformer", str(path), str(root / "wrong.npz"), str(root / "model"), *flags]
    assert errors.run(embed.main, words) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, line), line
    assert not (root / "wrong.npz").exists() and not (root / "wrong.npz.parts").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["transformer", "in.fasta", "out.csv", "model"], "the suffix '.csv' says no format"),
        (["unirep", "in.fasta", "out.npz", "model"], "left out"),
        (["transformer", "in.fasta", "out.npz"], "MODEL_DIR: missing"),
        (["transformer", "in.fasta", "in.fasta", "model", "--format", "npz"], "is the input"),
    ],
)
def test_wrong_words(toy, monkeypatch, words, message):
    monkeypatch.chdir(toy[0])
    with pytest.raises(InputError, match=message):
        embed.main(words)


def test_what_is_left_out_or_cut_is_counted(toy, capsys):
    root, model = toy
    text = ">a\nMKVLA\n>b\nAC\n>a\nGG\n>empty\n\n>long\n" + "A" * 70 + "\n"
    (root / "odd.fasta").write_text(text)
    results = read(run(root, "odd.npz", "--duplicates", "first", "--too_long", "crop", data="odd.fasta"))
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert (
        "3 proteins (69 residues), 1 without residues skipped, 1 cropped to 62 residues, 1 of a name met before" in last
    )
    assert "MiB" in last and "proteins/s" in last
    np.testing.assert_allclose(results["long"]["avg"], by_hand(model, "A" * 62)["avg"], atol=1e-5)
    np.testing.assert_allclose(results["a"]["avg"], by_hand(model, "MKVLA")["avg"], atol=1e-5)
    scan = scan_fasta(root / "odd.fasta", Rules(4, "skip", "keep"))
    assert [p.id for p in read_proteins(scan)] == ["b", "a"] and scan.counts["skipped_too_long"] == 2
    (root / "odd.fasta").write_text(text.replace("GG", "GGG"))
    with pytest.raises(InputError, match="changed at record 3"):
        list(read_proteins(scan))


def test_batches_and_parts_by_hand():
    lengths = np.array([3, 10, 1, 8])  # tokens 5 12 3 10
    assert [b.tolist() for b in token_batches(lengths, 15)] == [[1], [3, 0], [2]]
    assert [b.tolist() for b in token_batches(lengths, 15, padded=True)] == [[1], [3], [0, 2]]
    assert [b.tolist() for b in token_batches(lengths, 100, 3)] == [[1, 3, 0], [2]]
    assert [b.tolist() for b in token_batches(lengths, 1)] == [[1], [3], [0], [2]]
    assert plan_parts(np.ones(10, int), 4, 0).tolist() == [0, 4, 8, 10]
    assert plan_parts(np.array([98, 98, 98]), 8192, (256 << 20) // 200).tolist() == [0, 2, 3]  # room for 200 tokens
    assert plan_parts(np.array([10**8, 1]), 8192, 0).tolist() == [0, 1, 2]
    assert list(split_rows(np.array([1, 2]))) == [slice(0, 3), slice(3, 7)]


@pytest.mark.slow
def test_torchrun_ends_in_the_same_bytes(toy, python):
    root, _ = toy
    path = run(root, "alone.parquet", "--part_proteins", "3")
    words = ["transformer", root / "in.fasta", root / "both.parquet", root / "model", "--part_proteins", "3"]
    command = [str(python), "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[3])}
    subprocess.run([*command, "-m", "tape.embed", *map(str, words)], env=environment, check=True, timeout=240)
    assert (root / "both.parquet").read_bytes() == path.read_bytes()


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.mark.parametrize("model_type", ["tape_transformer", "lstm", "resnet", "onehot"])
def test_baselines_give_each_protein_what_it_gets_alone(model_type):
    from tape.registry import resolve_task

    torch.manual_seed(0)
    cls = resolve_task("embed", model_type).model
    model = cls(cls.config_class(**({} if model_type == "onehot" else SMALL))).eval()
    encoder, proteins = TrunkEncoder(model, -1, CPU, FP32), list(toy_proteins().values())
    together = encoder.embed(proteins, ("pooled", "avg", "mean", "seq"))
    rows = list(split_rows(np.array([len(residues) for residues in proteins])))
    for i, residues in enumerate(proteins):
        with torch.no_grad():
            sequence, pooled = model(torch.from_numpy(TAPETokenizer().encode(residues))[None])[:2]
        torch.testing.assert_close(together["seq"][rows[i]], sequence[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together["pooled"][i], pooled[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(together["mean"][i], sequence[0, 1:-1].mean(0), atol=1e-5, rtol=0)
    if model_type == "tape_transformer":
        states = TrunkEncoder(model, 1, CPU, FP32).embed(proteins, ("seq",))["seq"]
        assert (states - together["seq"]).abs().max() > 0.01
    elif model_type == "onehot":
        with pytest.raises(InputError, match="gives only its last layer"):
            TrunkEncoder(model, 1, CPU, FP32)
