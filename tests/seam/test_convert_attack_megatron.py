"""Corrupted, truncated, mixed and mis-shaped Megatron checkpoints: each is one line, status 2, and nothing written."""

import pickle
import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from damage import (
    FILE,
    LANGUAGE,
    ONE,
    SMALL,
    Case,
    at,
    nothing,
    refused,
    removed,
    replaced,
    rewritten,
    set_arg,
    taken_from,
    truncated,
    write_bases,
)
from megatron_writer import padded, random_weights, write_megatron

from converter import __main__ as convert
from converter.megatron.files import find_shards
from converter.sources import read
from pretrain.checkpoint import files as checkpoint
from proteinlm.errors import InputError, run

# ---- Megatron: files


def megatron_file_cases():
    for i in range(24):
        yield Case(f"megatron truncated at {i}/24", "megatron", truncated(ONE, i / 24), FILE)
    rng = random.Random(1)
    for t in (0, 1):
        for p in (0, 1):
            rank = f"iter_0001000/mp_rank_{t:02d}_{p:03d}"
            yield Case(f"rank {t} {p} missing", "two_by_two", removed(rank), f"mp_rank_{t:02d}_{p:03d}")
            yield Case(f"file of rank {t} {p} missing", "two_by_two", removed(f"{rank}/{FILE}"), rank)
            share = rng.random()
            yield Case(f"rank {t} {p} truncated", "two_by_two", truncated(f"{rank}/{FILE}", share), rank)
            yield Case(f"rank {t} {p} of another run", "two_by_two", taken_from("other", f"{rank}/{FILE}"), "")
    for p in (0, 1):
        file = f"iter_0001000/mp_rank_00_{p:03d}/{FILE}"
        yield Case(f"stage {p} of another run", "pipeline", taken_from("other_pipeline", file), "mixed")
    for what, content in (
        ("empty", b""),
        ("text", b"hello"),
        ("pickle", pickle.dumps({"a": 1})),
        ("zeros", bytes(999)),
    ):
        yield Case(f"megatron {what}", "megatron", replaced(ONE, content), FILE)
    for text in ("", "x", "-1", "1.5", "2000", "release", "1000\n2000", "9" * 40):
        yield Case(f"tracker {text[:9]!r}", "megatron", replaced("latest_checkpointed_iteration.txt", text), "latest")
    yield Case("no tracker, two iterations", "megatron", _second_iteration, "--iteration")
    yield Case("no such iteration", "megatron", nothing, "--iteration 7", ("--iteration", 7))
    yield Case("two layouts in one", "two_by_two", _two_layouts, "two layouts")


def _second_iteration(path: Path, marker: Path) -> None:
    shutil.copytree(path / "iter_0001000", path / "iter_0002000")
    (path / "latest_checkpointed_iteration.txt").unlink()


def _two_layouts(path: Path, marker: Path) -> None:
    shutil.copytree(path / "iter_0001000/mp_rank_00_000", path / "iter_0001000/mp_rank_00")


# ---- Megatron: contents


LAYER_NAMES = [
    f"layers.1.{part}.{kind}"
    for part in (
        "input_layernorm",
        "attention.query_key_value",
        "attention.dense",
        "post_attention_layernorm",
        "mlp.dense_h_to_4h",
        "mlp.dense_4h_to_h",
    )
    for kind in ("weight", "bias")
]
PLACES = [
    *[((*LANGUAGE, "transformer"), name) for name in [*LAYER_NAMES, "final_layernorm.weight", "final_layernorm.bias"]],
    ((*LANGUAGE, "embedding", "word_embeddings"), "weight"),
    ((*LANGUAGE, "embedding", "position_embeddings"), "weight"),
    *[(("model", "lm_head"), f"{part}.{kind}") for part in ("dense", "layernorm") for kind in ("weight", "bias")],
    (("model", "lm_head"), "bias"),
]


def tensor_cases():
    def changed(place: tuple, name: str, make: Callable) -> Callable:
        def change(content: dict) -> None:
            holder = at(content, place)
            holder[name] = make(holder[name])

        return rewritten(change)

    def dropped(place: tuple, name: str) -> Callable:
        return rewritten(lambda content: at(content, place).pop(name))

    for place, name in PLACES:
        where = f"{place[-1]}.{name}"
        yield Case(f"{where} missing", "megatron", dropped(place, name))
        yield Case(f"{where} a row short", "megatron", changed(place, name, lambda t: t[:-1].clone()))
        yield Case(f"{where} a row long", "megatron", changed(place, name, lambda t: torch.cat([t, t[:1]])))
        yield Case(f"{where} integers", "megatron", changed(place, name, lambda t: t.int()), "int32")
        yield Case(f"{where} a list", "megatron", changed(place, name, lambda t: t.tolist()), "list")
    layers = (*LANGUAGE, "transformer")
    for key in (
        "layers.2.input_layernorm.weight",
        "layers.9.input_layernorm.weight",
        "layers.x.weight",
        "rotary",
        "\n",
    ):
        extra = rewritten(lambda content, key=key: at(content, layers).update({key: torch.ones(8)}))
        yield Case(f"unknown tensor {key!r}", "megatron", extra)
    both = rewritten(lambda content: content["model"]["language_model"].update(encoder=at(content, layers)))
    yield Case("transformer and encoder", "megatron", both, "two spellings")
    yield Case(
        "a key that is a number", "megatron", rewritten(lambda c: at(c, layers).update({5: torch.ones(1)})), "text"
    )
    for rank in ((0, 0), (1, 0), (0, 1), (1, 1)):
        for name in (
            "layers.0.input_layernorm.bias",
            "layers.0.attention.dense.bias",
            "layers.0.mlp.dense_4h_to_h.bias",
        ):
            touched = rewritten(lambda c, name=name: at(c, layers)[name].add_(1e-3), 2, 2, rank)
            yield Case(f"rank {rank} disagrees on {name}", "two_by_two", touched, "must be equal")
        cut = rewritten(lambda c: at(c, layers).update(_halved(at(c, layers))), 2, 2, rank)
        yield Case(f"rank {rank} of another width", "two_by_two", cut)
        half = rewritten(lambda c: at(c, layers).update(_half_precision(at(c, layers))), 2, 2, rank)
        yield Case(f"rank {rank} of another dtype", "two_by_two", half)
    for rank in ((0, 1), (1, 1)):
        copy = rewritten(lambda c: c["model"]["word_embeddings_for_head"]["weight"].add_(1), 1, 2, rank)
        if rank == (0, 1):
            yield Case("the head's embedding is another", "pipeline", copy, "word_embeddings_for_head")


def _halved(layers: dict) -> dict:
    name = "layers.0.mlp.dense_h_to_4h.weight"
    return {name: layers[name][::2].clone()}


def _half_precision(layers: dict) -> dict:
    name = "layers.0.mlp.dense_h_to_4h.weight"
    return {name: layers[name].half()}


def _without_args(tp: int, pp: int, missing: str) -> Callable:
    def damage(path: Path, marker: Path) -> None:
        shutil.rmtree(path)
        write_megatron(path, random_weights(1, **SMALL), tp, pp, no_args=True)
        shutil.rmtree(path / "iter_0001000" / missing)

    return damage


def args_cases():
    impossible = (0, -1, 3, 10**12, 2.5, "2", None.__class__, float("nan"), [2], True)
    for name in ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings", "ffn_hidden_size"):
        for value in impossible:
            value = str(value) if isinstance(value, type) else value
            yield Case(f"args.{name} {value!r}", "megatron", rewritten(set_arg(**{name: value})), FILE)
    for name, values in {
        "padded_vocab_size": (31, 256, "x"),
        "make_vocab_size_divisible_by": (1, 64, 0, "x"),
        "layernorm_epsilon": (-1.0, float("inf"), "x"),
        "hidden_dropout": (1.0, -0.1, "x"),
        "tensor_model_parallel_size": (0, 2, 4, "x", 10**9),
        "pipeline_model_parallel_size": (0, 2, 3, [1]),
        "apply_residual_connection_post_layernorm": (True,),
    }.items():
        for value in values:
            yield Case(f"args.{name} {value!r}", "megatron", rewritten(set_arg(**{name: value})))
    for key, value in (
        *[("checkpoint_version", v) for v in (4.0, -1, "3.0", float("nan"), [3], 2.5)],
        *[("iteration", v) for v in (-1, "x", 1.5, 999)],
        *[("args", v) for v in ([1], 7, "x")],
        *[("model", v) for v in (None, [], 5, {}, {"language_model": None}, {"language_model": {}})],
    ):
        damage = rewritten(lambda c, key=key, value=value: c.update({key: value}))
        yield Case(f"{key} is {value!r}", "megatron", damage)
    yield Case("no model", "megatron", rewritten(lambda c: c.pop("model")), "no 'model'")
    yield Case("only the second chunk", "megatron", rewritten(lambda c: c.update(model1=c.pop("model"))), "no 'model'")
    for name, value in (
        ("seed", 9),
        ("lr", 1.0),
        ("consumed_train_samples", 5),
        ("hidden_size", 16),
        ("num_layers", 4),
    ):
        for rank in ((1, 0), (0, 1)):
            mixed = rewritten(set_arg(**{name: value}), 2, 2, rank)
            yield Case(f"args.{name} of rank {rank}", "two_by_two", mixed, "mixed")
    for key, value in (("checkpoint_version", 2.0), ("iteration", 999), ("args", None)):
        mixed = rewritten(lambda c, key=key, value=value: c.update({key: value}), 2, 2, (1, 1))
        yield Case(f"{key} of one rank", "two_by_two", mixed)
    flags = ("--num-attention-heads", 4)
    yield Case("heads unlike args", "megatron", nothing, "--num-attention-heads 4", flags)
    no_args = rewritten(lambda c: c.pop("args"))
    yield Case("no args, no heads", "megatron", no_args, "--num-attention-heads")
    yield Case("no args, impossible heads", "megatron", no_args, "", ("--num-attention-heads", 3))
    heads = ("--num-attention-heads", 2)
    for name, tp, pp, rank in (("stage", 1, 2, "mp_rank_00_001"), ("rank", 2, 1, "mp_rank_01")):
        yield Case(f"no args, last {name} missing", "megatron", _without_args(tp, pp, rank), rank, heads)
    rows = rewritten(
        lambda c: at(c, (*LANGUAGE, "embedding", "word_embeddings")).update(weight=torch.zeros(padded(1) * 99, 8))
    )
    yield Case("another vocabulary", "megatron", rows)


CASES = [*megatron_file_cases(), *tensor_cases(), *args_cases()]


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("attack") / "bases"
    write_bases(directory)
    return directory


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused_in_one_line(bases, tmp_path, capsys, case):
    refused(case, bases, tmp_path, capsys)


@pytest.mark.parametrize(
    ("base", "file"),
    [
        ("megatron", ONE),
        ("tape_bin", "pytorch_model.bin"),
        ("tape", "model.safetensors"),
        ("dcp", "iter_0001000/.metadata"),
    ],
)
def test_a_flipped_bit_is_refused_or_harmless(bases, tmp_path, capsys, base, file):
    """Anywhere in a file: one line and status 2, or (padding between entries) the same weights. Never a crash.
    safetensors has no checksums: there a changed number may pass for a number."""
    expected, rng = read(bases / base).tensors, random.Random(3)
    for trial in range(40):
        source, target = bases.parent / "flipped", tmp_path / f"out{trial}"
        shutil.copytree(bases / base, source)
        content = bytearray((source / file).read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        (source / file).write_bytes(content)
        status = run(convert.main, ["--load", str(source), "--save", str(target), "--target", "dcp"])
        error = capsys.readouterr().err
        shutil.rmtree(source)
        assert target.exists() == (status == 0) and status in (0, 2)
        assert len(error.strip().splitlines()) == (1 if status else 0), error
        if status == 0 and base != "tape":
            tensors = read(target).tensors
            known = [name for name in expected if name not in ("word_embeddings.weight", "lm_head.bias")]
            assert all(torch.equal(tensors[name], expected[name]) for name in known)


@pytest.mark.parametrize(
    ("base", "opened"), [("megatron", lambda path: find_shards(path, None)), ("dcp", checkpoint.latest_iteration)]
)
def test_of_a_huge_tracker_only_the_beginning_is_read(bases, tmp_path, base, opened):
    shutil.copytree(bases / base, tmp_path / base)
    with (tmp_path / base / checkpoint.TRACKER).open("r+b") as file:
        file.truncate(1 << 29)
    tracemalloc.start()
    with pytest.raises(InputError, match=checkpoint.TRACKER):
        opened(tmp_path / base)
    assert tracemalloc.get_traced_memory()[1] < 1 << 24
    tracemalloc.stop()


def test_there_are_enough_of_them():
    assert len({case.name for case in CASES}) == len(CASES) >= 200
