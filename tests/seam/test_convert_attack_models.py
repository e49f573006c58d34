"""Malicious files of every kind, and corrupted or mis-shaped model directories and DCP checkpoints: each is one line,
status 2, nothing written, and nothing run. The last test shows that the planted calls do run in an unguarded reader."""

import io
import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from damage import (
    LANGUAGE,
    ONE,
    SMALL,
    Attack,
    Case,
    at,
    json_changed,
    nothing,
    refused,
    removed,
    replaced,
    state_changed,
    truncated,
    write_bases,
)
from megatron_writer import random_weights

from converter import __main__ as convert
from proteinlm.errors import run

# ---- attacks


def attack_cases():
    """Calls of several kinds in every place of a file, in both formats of torch.save."""

    def calls(marker: Path) -> dict[str, object]:
        import builtins
        import os
        import subprocess

        return {
            "os.system": Attack(os.system, f"touch {marker}"),
            "eval": Attack(builtins.eval, f"open({str(marker)!r}, 'w')"),
            "exec": Attack(builtins.exec, f"open({str(marker)!r}, 'w')"),
            "Popen": Attack(subprocess.Popen, ["touch", str(marker)]),
            "open": Attack(builtins.open, str(marker), "w"),
            "nested": [{"deep": (Attack(os.system, f"touch {marker}"),)}],
        }

    def planted(place: tuple, key: object, name: str, legacy: bool = False) -> Callable:
        def damage(path: Path, marker: Path) -> None:
            content = torch.load(path / ONE, weights_only=False)
            if place == ("args",):
                setattr(content["args"], str(key), calls(marker)[name])
            else:
                at(content, place)[key] = calls(marker)[name]
            torch.save(content, path / ONE, _use_new_zipfile_serialization=not legacy)

        return damage

    kinds = ("os.system", "eval", "exec", "Popen", "open", "nested")
    for name in kinds:
        for place, key in (
            ((), "optimizer"),
            ((), "iteration"),
            (("args",), "lr"),
            (LANGUAGE, "pooler"),
            ((*LANGUAGE, "transformer"), "final_layernorm.bias"),
        ):
            where = ".".join((*place, key))
            yield Case(f"{name} in {where}", "megatron", planted(place, key, name), "refused")
        yield Case(f"{name}, old format", "megatron", planted((), "rng_state", name, legacy=True), "refused")

    def as_whole(file: str, name: str, legacy: bool) -> Callable:
        def damage(path: Path, marker: Path) -> None:
            torch.save({"a": calls(marker)[name]}, path / file, _use_new_zipfile_serialization=not legacy)

        return damage

    for base in ("tape_bin", "hf_bin"):
        for name in kinds:
            for legacy in (False, True):
                title = f"{name} in {base}, {'old' if legacy else 'new'} format"
                yield Case(title, base, as_whole("pytorch_model.bin", name, legacy), "refused")

    def in_metadata(name: str) -> Callable:
        def damage(path: Path, marker: Path) -> None:
            (path / "iter_0001000/.metadata").write_bytes(pickle.dumps(calls(marker)[name]))
            _fix_sizes(path)

        return damage

    def in_archive(name: str) -> Callable:
        """A tensor's archive replaced by one that holds a call: .metadata points at it, all sizes are right."""

        def damage(path: Path, marker: Path) -> None:
            shard, entry = _shard(path), io.BytesIO()
            torch.save(calls(marker)[name], entry)
            metadata = pickle.loads((path / "iter_0001000/.metadata").read_bytes())
            place = next(p for index, p in metadata.storage_data.items() if index.fqn == "model.lm_head.dense.weight")
            place.offset, place.length = shard.stat().st_size, len(entry.getvalue())
            shard.write_bytes(shard.read_bytes() + entry.getvalue())
            (path / "iter_0001000/.metadata").write_bytes(pickle.dumps(metadata))
            _fix_sizes(path)

        return damage

    def in_byte_entry(name: str) -> Callable:
        def damage(path: Path, marker: Path) -> None:
            from pretrain.checkpoint.files import load_meta, read_model_tensors, save_checkpoint

            tensors, (iteration, meta) = read_model_tensors(path), load_meta(path)
            save_checkpoint(path, iteration, {"model": tensors | {"extra": calls(marker)[name]}}, meta)

        return damage

    for name in kinds:
        yield Case(f"{name} in .metadata", "dcp", in_metadata(name), "iter_0001000")
        yield Case(f"{name} in a tensor's archive", "dcp", in_archive(name), "iter_0001000")
        yield Case(f"{name} in a byte entry", "dcp", in_byte_entry(name), "iter_0001000")


def _fix_sizes(path: Path) -> None:
    """meta.json lists the sizes of the files; an attacker would put them right."""
    directory = path / "iter_0001000"
    meta = json.loads((directory / "meta.json").read_text())
    meta["files"] = {name: (directory / name).stat().st_size for name in meta["files"]}
    (directory / "meta.json").write_text(json.dumps(meta))


# ---- model directories


def config_cases():
    hf_keys = ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings")
    for base in ("tape", "hf"):
        for key in (*hf_keys, "num_attention_heads"):
            for value in (0, -2, 10**9, "8", 2.5, None, [8], True, 7):
                if (key, value) != ("num_attention_heads", True):
                    yield Case(f"{base} {key} {value!r}", base, json_changed("config.json", **{key: value}))
            if key in hf_keys[1:3]:
                yield Case(f"{base} without {key}", base, json_changed("config.json", **{key: KeyError}))
        for key, values in {
            "hidden_act": ("gelu_magic", 5, None),
            "layer_norm_eps": ("x", -1),
            "hidden_dropout_prob": (1.0, "x"),
        }.items():
            for value in values:
                yield Case(f"{base} {key} {value!r}", base, json_changed("config.json", **{key: value}))
        for text in ("", "{", "[]", "null", '"x"', "[" * 20000, "\xff"):
            content = text.encode("latin-1")
            yield Case(f"{base} config {text[:4]!r}", base, replaced("config.json", content), "config.json")
        yield Case(f"{base} of another type", base, json_changed("config.json", model_type="t5"), "model_type")
    yield Case("tape pruned heads", "tape", json_changed("config.json", pruned_heads={"1": [0]}), "pruned_heads")
    yield Case(
        "hf relative positions", "hf", json_changed("config.json", position_embedding_type="relative_key"), "relative"
    )
    yield Case("hf decoder", "hf", json_changed("config.json", is_decoder=True), "is_decoder")


def weights_cases():
    for base in ("tape", "hf"):
        for i in range(8):
            yield Case(f"{base} weights cut at {i}/8", base, truncated("model.safetensors", i / 8), "safetensors")
        yield Case(f"{base} without weights", base, removed("model.safetensors"), "model.safetensors")
        for length in (0, 1, 2**40, 2**63, 2**64 - 1):
            damage = replaced("model.safetensors", struct.pack("<Q", length) + b"{}" * 50)
            yield Case(f"{base} header of {length} bytes", base, damage, "safetensors")
        for entry in (
            {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]},
            {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
            {"dtype": "F32", "shape": [1], "data_offsets": [8, 4]},
            {"dtype": "F32", "shape": [1], "data_offsets": [0, 10**12]},
            {"dtype": "OBJ", "shape": [1], "data_offsets": [0, 4]},
        ):
            head = json.dumps({"bert.embeddings.word_embeddings.weight": entry}).encode()
            content = struct.pack("<Q", len(head)) + head + bytes(4)
            yield Case(
                f"{base} header {list(entry.values())}", base, replaced("model.safetensors", content), "safetensors"
            )
    names = {
        "tape_bin": ("bert.encoder.layer.1.attention.self.key.weight", "bert.encoder.final_ln.bias", "mlm.bias"),
        "hf_bin": ("bert.encoder.layer.1.attention.self.key.weight", "bert.encoder.ln.bias", "cls.predictions.bias"),
    }
    for base, chosen in names.items():
        for i in range(8):
            yield Case(f"{base} cut at {i}/8", base, truncated("pytorch_model.bin", i / 8), "pytorch_model.bin")
        for name in chosen:
            for problem, change in {
                "missing": lambda s, n: s.pop(n),
                "short": lambda s, n: s.update({n: s[n][:-1].clone()}),
                "integers": lambda s, n: s.update({n: s[n].int()}),
                "text": lambda s, n: s.update({n: "x"}),
                "scalar": lambda s, n: s.update({n: torch.tensor(1.0)}),
            }.items():
                damage = state_changed(lambda s, n=name, change=change: change(s, n))
                yield Case(f"{base} {name} {problem}", base, damage)
        extra = state_changed(lambda s: s.update({"bert.encoder.layer.9.x.weight": torch.ones(1)}))
        yield Case(f"{base} with an unknown tensor", base, extra)
        yield Case(f"{base} a list", base, _saved_list, "state dict")


def _saved_list(path: Path, marker: Path) -> None:
    torch.save([torch.ones(2)], path / "pytorch_model.bin")


def vocabulary_cases():
    for problem, text in (
        ("empty", ""),
        ("twice", "[PAD]\n" * 31),
        ("English", "\n".join(["[PAD]", "[MASK]", "[CLS]", *(f"word{i}" for i in range(20))])),
        ("longer than the rows", "\n".join(f"t{i}" for i in range(64))),
    ):
        yield Case(f"hf vocabulary {problem}", "hf", replaced("vocab.txt", text), "vocabulary")
    yield Case("hf vocabulary not text", "hf", replaced("vocab.txt", b"\xff\xfe"), "vocab.txt")
    for index in (
        {"weight_map": {"a": "../../secret"}},
        {"weight_map": {"a": "absent.safetensors"}},
        {"weight_map": [1]},
        {},
    ):
        yield Case(f"hf index {index}", "hf", _with_index(index), "index.json")


def _with_index(index: dict) -> Callable:
    def damage(path: Path, marker: Path) -> None:
        (path / "model.safetensors").unlink()
        (path / "model.safetensors.index.json").write_text(json.dumps(index))

    return damage


# ---- DCP


def dcp_cases():
    directory = "iter_0001000"
    for i in range(8):
        yield Case(f"dcp .metadata cut at {i}/8", "dcp", _sized(truncated(f"{directory}/.metadata", i / 8)))
        yield Case(f"dcp shard cut at {i}/8", "dcp", _sized(_shard_cut(i / 8)))
    for file in (".metadata", "meta.json"):
        yield Case(f"dcp without {file}", "dcp", removed(f"{directory}/{file}"), directory)
    for i in range(6):
        yield Case(f"dcp shard flipped at {i}/6", "dcp", _flip_in_tensor(i), "")
    config = {
        "hidden_size": 8,
        "num_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 8,
        "ffn_hidden_size": 16,
    }
    for name, value in (
        *[(key, v) for key in config for v in (0, -1, "8", 10**9, None, 7) if (key, v) != ("ffn_hidden_size", None)],
        ("hidden_act", "magic"),
        ("vocab_size", 30),
        ("unknown_field", 1),
        ("layernorm_epsilon", "x"),
    ):
        damage = json_changed(f"{directory}/meta.json", model_config=config | {"vocab_size": 31, name: value})
        yield Case(f"dcp {name} {value!r}", "dcp", damage, directory.removeprefix("iter_000"))
    for tokenizer in (
        {},
        {"name": "x"},
        {"name": "tape", "tokens": ["A"]},
        [],
        {"name": "sentencepiece", "model": "!!"},
    ):
        yield Case(f"dcp tokenizer {tokenizer}", "dcp", json_changed(f"{directory}/meta.json", tokenizer=tokenizer))
    for value in (None, 0, 7, "1000"):
        yield Case(f"dcp says iteration {value!r}", "dcp", json_changed(f"{directory}/meta.json", iteration=value))
        yield Case(f"dcp format {value!r}", "dcp", json_changed(f"{directory}/meta.json", format=value))
    yield Case("dcp tracker", "dcp", replaced("latest_checkpointed_iteration.txt", "7"), "latest")


def _sized(damage: Callable) -> Callable:
    def both(path: Path, marker: Path) -> None:
        damage(path, marker)
        _fix_sizes(path)

    return both


def _shard(path: Path) -> Path:
    return next((path / "iter_0001000").glob("*.distcp"))


def _shard_cut(share: float) -> Callable:
    def damage(path: Path, marker: Path) -> None:
        truncated(str(_shard(path).relative_to(path)), share)(path, marker)

    return damage


def _flip_in_tensor(which: int) -> Callable:
    """One bit of a stored tensor's numbers: archives inside the shard have checksums."""

    def damage(path: Path, marker: Path) -> None:
        content = bytearray(_shard(path).read_bytes())
        number = struct.pack("<f", random_weights(1, **SMALL).layers[1]["query_weight"].reshape(-1)[which])
        place = content.find(number)
        assert place > 0
        content[place] ^= 1
        _shard(path).write_bytes(content)

    return damage


# ---- the command line


def _emptied(path: Path, marker: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def command_cases():
    for base in ("megatron", "tape", "hf", "dcp"):
        for kind in ("megatron", "tape", "hf", "dcp"):
            if kind != base:
                yield Case(f"{base} taken for {kind}", base, nothing, "", ("--source", kind))
    for base in ("tape", "hf"):
        yield Case(f"{base} with an iteration", base, nothing, "--iteration", ("--iteration", 5))
    for base in ("tape", "hf", "dcp"):
        yield Case(f"{base} with heads", base, nothing, "--num-attention-heads", ("--num-attention-heads", 2))
    yield Case("nothing there", "megatron", lambda path, marker: shutil.rmtree(path), "no such checkpoint")
    yield Case(
        "an empty directory", "megatron", lambda path, marker: (shutil.rmtree(path), path.mkdir()), "not recognised"
    )
    for flags, message in (
        (("--tensor-model-parallel-size", 2), "only --target"),
        (("--target", "megatron", "--tensor-model-parallel-size", 3), "must divide num-attention-heads 2"),
        (("--target", "megatron", "--bin"), "--bin"),
        (("--data-path", "x"), "--verify"),
        (("--target", "dcp", "--verify", "--data-path", "absent"), "absent"),
    ):
        yield Case(f"flags {flags}", "megatron", nothing, message, flags)


CASES = [
    *attack_cases(),
    *config_cases(),
    *weights_cases(),
    *vocabulary_cases(),
    *dcp_cases(),
    *command_cases(),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("attack") / "bases"
    write_bases(directory)
    return directory


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_refused_in_one_line(bases, tmp_path, capsys, case):
    refused(case, bases, tmp_path, capsys)


def test_there_are_enough_of_them():
    assert len({case.name for case in CASES}) == len(CASES) >= 200


def test_the_bases_convert_and_the_attacks_would_run(bases, tmp_path):
    """Control: what the cases start from is good, and the planted calls do run in an unguarded reader."""
    for base in ("megatron", "two_by_two", "pipeline", "tape", "tape_bin", "hf", "hf_bin", "dcp"):
        assert run(convert.main, ["--load", str(bases / base), "--save", str(tmp_path / base)]) == 0
    marker = tmp_path / "ran"
    case = next(case for case in CASES if case.name == "os.system in optimizer")
    shutil.copytree(bases / "megatron", tmp_path / "copy")
    case.damage(tmp_path / "copy", marker)
    assert not marker.exists()
    torch.load(tmp_path / "copy" / ONE, weights_only=False)
    assert marker.exists()
