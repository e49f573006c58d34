"""What tape-embed writes for other tools, opened as they do; several layers; and proteins that cannot be embedded."""

import hashlib
import itertools
import os
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from toy_fasta import by_hand, toy_config, toy_proteins, write_fasta, write_model

from proteinlm import errors
from proteinlm.errors import InputError
from tape import ProteinBertModel, embed
from tape.inference import encoding
from tape.inference.encoding import TrunkEncoder
from tape.inference.parts import PartStore
from tape.registry import resolve_task

PROTEINS = toy_proteins(10) | {"P12345/10-50": "MKVLA", "twin": "ACDEF", "twin2": "ACDEF"}
PER_PROTEIN = ("--format", "h5-per-protein")


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> tuple[Path, ProteinBertModel]:
    root = tmp_path_factory.mktemp("files")
    write_fasta(root / "in.fasta", PROTEINS)
    return root, write_model(root / "toy_model")


def run(root: Path, out: str, *flags: str, data: str = "in.fasta", status: int = 0) -> Path:
    words = ["transformer", str(root / data), str(root / out), str(root / "toy_model"), "--part_proteins", "4", *flags]
    assert errors.run(embed.main, words) == status
    return root / out


def read_bio_embeddings(path: Path) -> dict[str, np.ndarray]:
    """bio_embeddings' files, as biotrainer up to 0.9 reads them."""
    with h5py.File(path, "r") as file:
        return {file[key].attrs["original_id"]: np.array(data) for key, data in file.items()}


def read_biotrainer(path: Path, sequences: list[str]) -> list[np.ndarray]:
    """biotrainer's EmbeddingService.load_embeddings with ids_to_load."""
    keys = [hashlib.sha256(f"{sequence}_{len(sequence)}".encode()).hexdigest() for sequence in sequences]
    with h5py.File(path, "r") as file:
        return [torch.tensor(file[key][:]).float().numpy() for key in keys]


def read_vespa(path: Path) -> dict[str, np.ndarray]:
    """VESPA's SequenceDataset: every key, per residue."""
    with h5py.File(path, "r") as file:
        return {key: torch.from_numpy(file[key][:]).to(torch.float32).numpy() for key in list(file)}


def read_protspace(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """ProtSpace's load_h5: datasets of one dimension at the root, the model's name in an attribute."""
    with h5py.File(path, "r") as file:
        assert all(isinstance(data, h5py.Dataset) and data.ndim == 1 for data in file.values())
        return str(file.attrs["model_name"]), {key: np.array(data) for key, data in file.items()}


def test_vectors_are_read_by_bio_embeddings_readers_and_protspace(toy):
    root, model = toy
    path = run(root, "vectors.h5", *PER_PROTEIN)
    results, (name, vectors) = read_bio_embeddings(path), read_protspace(path)
    assert set(results) == set(PROTEINS) and name == "toy_model"
    assert set(vectors) == {protein.replace("/", "_") for protein in PROTEINS}  # one level, whatever is in a name
    for protein, residues in PROTEINS.items():
        np.testing.assert_allclose(results[protein], by_hand(model, residues)["mean"], atol=1e-5)
        np.testing.assert_array_equal(vectors[protein.replace("/", "_")], results[protein])
    assert run(root, "again.h5", *PER_PROTEIN).read_bytes() == path.read_bytes()
    average = read_bio_embeddings(run(root, "average.h5", *PER_PROTEIN, "--embeddings", "avg"))
    np.testing.assert_allclose(average["twin"], by_hand(model, "ACDEF")["avg"], atol=1e-5)
    with pytest.raises(KeyError):  # negative control: the flat layout is another
        read_bio_embeddings(run(root, "flat.h5"))


def test_residues_are_read_by_vespa(toy):
    root, model = toy
    results = read_vespa(run(root, "residues.h5", *PER_PROTEIN, "--full_sequence_embed", "--h5_keys", "accession"))
    assert {"P00003", "odd", "P12345_10_50"} <= set(results)  # sp|P00003|TOY
    assert {key: len(rows) for key, rows in results.items()} == {
        re.sub("[^a-zA-Z0-9]", "_", protein.split("|")[1] if "|" in protein else protein): len(residues)
        for protein, residues in PROTEINS.items()
    }
    np.testing.assert_allclose(results["P12345_10_50"], by_hand(model, "MKVLA")["seq"][1:-1], atol=1e-5)


def test_sequence_hashes_are_biotrainers(toy):
    root, model = toy
    flags = [*PER_PROTEIN, "--h5_keys", "sequence_hash", "--half"]
    path = run(root, "hashes.h5", *flags)
    for residues, vector in zip(PROTEINS.values(), read_biotrainer(path, list(PROTEINS.values())), strict=True):
        np.testing.assert_allclose(vector, by_hand(model, residues)["mean"], atol=2e-3)
    with h5py.File(path) as file:
        assert len(file) == len(PROTEINS) - 1  # twins are one
        assert all(data.dtype == np.float16 for data in file.values())


@pytest.mark.parametrize(
    ("names", "flags", "message"),
    [
        (("a/b", "a_b"), [], r"records 1 and 2 are a/b and a_b, one key in the output \(1 names repeated\)"),
        (("a/b", "a/b"), [], "records 1 and 2 are both named a/b"),
        (("sp|P1|X", "tr|P1|Y"), ["--h5_keys", "accession"], "records 1 and 2 are sp|P1|X and tr|P1|Y, one key"),
        (("a", "b"), ["--embeddings", "mean", "avg"], "holds one kind of embedding, mean and avg were asked for"),
        (("a", "b"), ["--duplicates", "keep"], "the names are the keys of an h5-per-protein file"),
        (("a", "b"), ["--format", "hdf5", "--h5_keys", "id"], "--h5_keys id: is for --format h5-per-protein"),
        (("a", "b"), ["--layers", "0", "7"], "--layers 7: the model has 2 layers"),
    ],
)
def test_what_such_a_file_cannot_hold_is_refused_before_the_work(toy, capsys, names, flags, message):
    root, _ = toy
    write_fasta(root / "names.fasta", {})
    (root / "names.fasta").write_text("".join(f">{name}\nMK\n" for name in names))
    run(root, "refused.h5", *PER_PROTEIN, *flags, data="names.fasta", status=2)
    assert re.search(message, capsys.readouterr().err)
    assert not (root / "refused.h5").exists() and not (root / "refused.h5.parts").exists()


def test_a_name_that_is_a_dot_has_a_key(toy):
    root, _ = toy
    (root / "dot.fasta").write_text(">.\nMK\n>..\nMKV\n")
    assert set(read_bio_embeddings(run(root, "dot.h5", *PER_PROTEIN, data="dot.fasta"))) == {".", ".."}


def read_layers(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """name -> output -> array, of the three formats that hold several outputs."""
    if path.suffix == ".npz":
        file = np.load(path, allow_pickle=True)
        return {name: file[name].item() for name in file.files}
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            names, bounds = file["ids"].asstr()[:], file["offsets"][:]
            outputs = {name: file[name][:] for name in file if name not in ("ids", "length", "offsets")}
        rows = {
            output: [a[b:e] for b, e in itertools.pairwise(bounds)] if output.startswith("seq") else list(a)
            for output, a in outputs.items()
        }
        return {name: {output: rows[output][i] for output in rows} for i, name in enumerate(names)}
    table = pytest.importorskip("pyarrow.parquet").read_table(path).to_pylist()
    return {row["id"]: {name: np.array(v, np.float32) for name, v in row.items() if "layer" in name} for row in table}


@pytest.mark.parametrize("out", ["layers.npz", "layers.h5", "layers.parquet"])
def test_several_layers_are_what_each_layer_alone_is(toy, out):
    root, _ = toy
    flags = ["--embeddings", "mean", "pooled", "--full_sequence_embed"]
    together = read_layers(run(root, out, *flags, "--layers", "0", "-1", "1", "--part_proteins", "9"))
    for layer, number in (("0", 0), ("1", 1), ("-1", 2)):  # parts of as many proteins, so the same batches
        alone = read_layers(run(root, "alone.npz", *flags, "--layer", layer, "--part_proteins", "3"))
        for protein, outputs in alone.items():
            assert len(together[protein]) == 9
            for output, values in outputs.items():
                np.testing.assert_array_equal(together[protein][f"{output}_layer_{number}"], values)
    first, last = (together["odd"][f"mean_layer_{number}"] for number in (0, 2))
    assert np.abs(first - last).max() > 0.01  # negative control: layers differ


def test_a_file_a_layer_where_a_tool_reads_one(toy):
    root, _ = toy
    flags = [*PER_PROTEIN, "--layers", "1", "-1"]
    out = run(root, "deep.h5", *flags)
    assert not out.exists() and not (root / "deep.h5.parts").exists()
    for layer, number in (("1", 1), ("-1", 2)):
        results = read_bio_embeddings(root / f"deep.layer_{number}.h5")
        alone = read_bio_embeddings(run(root, "alone.h5", *PER_PROTEIN, "--layer", layer, "--part_proteins", "2"))
        assert all(np.array_equal(results[protein], vector) for protein, vector in alone.items())


def test_padded_models_give_several_layers_too():
    torch.manual_seed(0)
    cls = resolve_task("embed", "tape_transformer").model
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    model = cls(cls.config_class(**small)).eval()
    proteins, device = list(PROTEINS.values()), torch.device("cpu")
    together = TrunkEncoder(model, [2, 0], device, torch.float32).embed(proteins, ("mean", "pooled"))
    assert list(together) == ["mean_layer_2", "pooled_layer_2", "mean_layer_0", "pooled_layer_0"]
    for layer in (0, 2):
        alone = TrunkEncoder(model, layer, device, torch.float32).embed(proteins, ("mean", "pooled"))
        assert all(torch.equal(together[f"{name}_layer_{layer}"], value) for name, value in alone.items())
    onehot = resolve_task("embed", "onehot").model
    with pytest.raises(InputError, match=r"--layers 0 -1: .* gives only its last layer"):
        TrunkEncoder(onehot(onehot.config_class()).eval(), [0, -1], device, torch.float32)


def short_of_memory(patch: pytest.MonkeyPatch, most: int) -> list[int]:
    """Have a batch of more than `most` tokens end as on a full device. Returns the sizes of the batches that fit."""
    make, sizes = encoding.make_stream, []

    def spy(proteins, tokenizer):
        stream = make(proteins, tokenizer)
        if len(stream.tokens) > most:
            raise encoding.OutOfMemory("full")
        sizes.append(len(proteins))
        return stream

    patch.setattr(encoding, "make_stream", spy)
    return sizes


LISTED = [
    ("id", "record", "residues", "reason"),
    ("huge", "2", "50", "does not fit in CPU memory, even alone"),
    ("empty", "4", "0", "no residues"),
    ("long", "5", "63", "longer than 62 residues"),
    ("a", "6", "2", "a name met before"),
]
ODD = f">a\nMKVLA\n>huge\n{'A' * 50}\n>b\nAC\n>empty\n\n>long\n{'A' * 63}\n>a\nGG\n>c\nMKVLAAGIV\n"
FLAGS = ("--too_long", "skip", "--duplicates", "first")


def read_failed(path: Path) -> list[tuple[str, ...]]:
    return [tuple(line.split("\t")) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("format_flags", [["--format", "hdf5"], [*PER_PROTEIN], ["--format", "parquet"]])
def test_what_does_not_fit_is_listed_and_the_rest_is_written(toy, monkeypatch, capsys, format_flags):
    root, _ = toy
    (root / "odd.fasta").write_text(ODD)
    flags = [*FLAGS, *format_flags]
    names = ["a", "b", "c"]
    (root / "kept.fasta").write_text(">a\nMKVLA\n>b\nAC\n>c\nMKVLAAGIV\n")
    with monkeypatch.context() as patch:
        sizes = short_of_memory(patch, 20)
        path = run(root, "memory.out", *flags, data="odd.fasta", status=3)
        assert max(sizes) == 2  # halved until it fitted: a and b of one part
    assert read_failed(root / "memory.out.failed.tsv") == LISTED
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert "3 proteins (16 residues)" in last and "1 that could not be embedded (listed in " in last
    if "hdf5" in format_flags:
        with h5py.File(path) as file:
            assert file["ids"].asstr()[:].tolist() == names and file["length"][:].tolist() == [5, 2, 9]
    elif "parquet" not in format_flags:
        alone = read_bio_embeddings(run(root, "kept.h5", *PER_PROTEIN, data="kept.fasta"))
        results = read_bio_embeddings(path)
        assert list(results) == names
        assert all(np.allclose(results[name], alone[name], atol=1e-6) for name in names)
    # enough memory: only what the flags leave out is listed, which is no failure
    run(root, "memory.out", *flags, data="odd.fasta")
    assert read_failed(root / "memory.out.failed.tsv") == [LISTED[0], *LISTED[2:]]
    run(root, "memory.out", *flags, data="kept.fasta")
    assert not (root / "memory.out.failed.tsv").exists()


def test_failures_are_in_the_parts_so_that_a_stopped_run_ends_in_the_same_bytes(toy, monkeypatch):
    root, _ = toy
    (root / "odd.fasta").write_text(ODD)
    flags = [*FLAGS, *PER_PROTEIN, "--layers", "0", "2", "--full_sequence_embed", "--part_proteins", "1"]
    short_of_memory(monkeypatch, 20)
    run(root, "whole.h5", *flags, data="odd.fasta", status=3)
    finish = PartStore.finish
    with monkeypatch.context() as patch:
        patch.setattr(PartStore, "finish", lambda self, outputs: (_ for _ in ()).throw(InputError("stop")))
        run(root, "stopped.h5", *flags, data="odd.fasta", status=2)
    assert PartStore.finish is finish and not (root / "stopped.layer_0.h5").exists()
    (root / "stopped.h5.parts" / "part_000003.npz").unlink()
    run(root, "stopped.h5", *flags, data="odd.fasta", status=3)
    for ending in ("layer_0.h5", "layer_2.h5", "h5.failed.tsv"):
        assert (root / f"stopped.{ending}").read_bytes() == (root / f"whole.{ending}").read_bytes()


def test_nothing_that_fits_is_one_line_and_a_list(toy, monkeypatch, capsys):
    root, _ = toy
    short_of_memory(monkeypatch, 3)  # <cls> A <sep>, which the widths are taken from
    (root / "two.fasta").write_text(">a\nMKVLA\n>b\nACD\n")
    run(root, "none.h5", data="two.fasta", status=2)
    assert "no protein could be embedded; " in capsys.readouterr().err
    assert [row[0] for row in read_failed(root / "none.h5.failed.tsv")] == ["id", "a", "b"]
    assert not (root / "none.h5").exists() and not (root / "none.h5.parts").exists()


def test_numbers_that_are_not_finite_are_no_embedding(tmp_path):
    """A tryptophan's embedding beyond float16, in one model; float32 takes it."""
    torch.manual_seed(0)
    model = ProteinBertModel(toy_config()).eval()
    with torch.no_grad():
        model.encoder.word_embeddings.weight[TOKEN_W] = 1e5
    model.save_pretrained(tmp_path / "toy_model")
    (tmp_path / "in.fasta").write_text(">a\nMKV\n>w\nMKW\n>c\nMK\n")
    flags = ["--layer", "0", "--embeddings", "mean", "--full_sequence_embed"]
    run(tmp_path, "half.h5", *flags, "--half", status=3)
    reason = "a number that is not finite in float16 (largest: 65,504)"
    assert read_failed(tmp_path / "half.h5.failed.tsv")[1:] == [("w", "2", "3", reason)]
    with h5py.File(tmp_path / "half.h5") as file:
        assert file["ids"].asstr()[:].tolist() == ["a", "c"] and file["offsets"][:].tolist() == [0, 5, 9]
        assert len(file["seq"]) == 9 and np.isfinite(file["mean"][:]).all()
    run(tmp_path, "full.h5", *flags)
    assert not (tmp_path / "full.h5.failed.tsv").exists()
    named = run(tmp_path, "named.h5", *flags, "--save_fp16", status=3)
    assert named.read_bytes() == (tmp_path / "half.h5").read_bytes()  # --half is the same flag


TOKEN_W = int(encoding.TOKENIZER.encode("W")[0])


def test_parts_leave_nothing_before_the_first_and_name_what_was_damaged(tmp_path):
    store = PartStore(tmp_path / "new" / "out.h5", {"a": 1})
    with pytest.raises(InputError, match="early"), store.open() as resumed:
        assert not resumed
        raise InputError("early")
    assert not (tmp_path / "new").exists()
    with store.open():
        store.save(0, {"x": np.arange(3)})
    with store.open() as resumed:
        assert resumed and store.load(0)["x"].tolist() == [0, 1, 2]
    store.path(0).write_bytes(b"not whole")
    with pytest.raises(InputError, match=r"part_000000.npz: damaged .* remove it, and it is made again"):
        store.load(0)
    (tmp_path / "file").write_text("")
    for output, message in (("file/out.h5", "file is not a directory"), ("new", "a directory; the output is a file")):
        for store in (PartStore(tmp_path / output, {}), PartStore(tmp_path / "a.h5", {}, [tmp_path / output])):
            with pytest.raises(InputError, match=message), store.open():
                pass
    assert not (tmp_path / "a.h5.parts").exists()


def test_parts_that_are_being_removed_are_still_known(tmp_path, monkeypatch):
    """A kill before any of the removals: the next run takes the directory for its own."""
    for number in itertools.count():
        store, removed, unlink = PartStore(tmp_path / f"out{number}.npz", {"a": 1}), [], os.unlink
        for part in range(3):
            store.save(part, {"ids": np.zeros(1)})

        def killed(path, *more, at=number, counted=removed, unlink=unlink, **named):
            if len(counted) == at:
                raise KeyboardInterrupt
            counted.append(path)
            unlink(path, *more, **named)

        with monkeypatch.context() as patch:
            patch.setattr(os, "unlink", killed)
            try:
                store.finish({store.output: lambda path: path.write_text("whole")})
                break
            except KeyboardInterrupt:
                pass
        if store.directory.exists():
            with PartStore(store.output, {"a": 1}).open() as resumed:
                assert resumed == bool(list(store.directory.iterdir()))
    assert number >= 4 and not store.directory.exists()
