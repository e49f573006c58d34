"""Files read as what they hold, damaged there, and written back.

damage_content(rng, path)          what was done, or "" where nothing is known of the format
"""

import gzip
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import yaml
from damage import Attack
from safetensors.torch import load_file, save
from tape_lmdb import put_lmdb

from fuzz.process import MARKER
from fuzz.texts import json_file, json_lines, lines_of, python_file, table, write_tree, yaml_file
from fuzz.trees import TWICE, Raw, array, damage, name_of, odd, tensor
from proteinlm.untrusted.array_files import SEAL


def plain(value: Any) -> Any:
    """A tree without Raws, for formats that hold Python's values."""
    if isinstance(value, Raw):
        nested: Any = 1
        for _ in range(400):
            nested = [nested]
        return 10**5000 if "digits" in value.name else nested
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if not (isinstance(v, Raw) and v.name == TWICE)}
    return [plain(v) for v in value] if isinstance(value, list) else value


def lmdb_file(rng: random.Random, path: Path) -> str:
    """data.mdb: the entries of the environment, written anew."""
    import lmdb

    with lmdb.open(str(path.parent), readonly=True, lock=False) as environment, environment.begin() as transaction:
        entries = {key: pickle.loads(value) for key, value in transaction.cursor()}
    numbers = [key for key in entries if key.isdigit()]
    how = rng.choice(["record"] * 8 + ["count", "count", "key", "bytes", "attack"])
    key = rng.choice(numbers)
    what = f"{how} {key.decode()}"
    if how == "record":
        entries[key], changed = damage(rng, entries[key])
        what += f" {changed}"
    elif how == "count":
        value = odd(rng, rng.choice([len(numbers), None, 10**12, 2**70, len(numbers) - 1, -1, True, 3.0, "3"]))
        entries[b"num_examples"], what = value, f"num_examples {name_of(value)}"
    elif how == "key":
        entries[rng.choice([b"00", b"-1", b"x", b"\xff", str(len(numbers)).encode()])] = entries.pop(key)
    elif how == "bytes":
        entries[key] = rng.choice(
            [b"", b"\x80", b"\x80\x04.", pickle.dumps(1)[:-1], b"\x80\x05\x95" + b"\xff" * 8, b"("]
        )
    else:
        entries[key] = Attack(os.system, f"touch {MARKER}")
    shutil.rmtree(path.parent)
    values = {key: value if isinstance(value, bytes) else pickle.dumps(plain(value)) for key, value in entries.items()}
    put_lmdb(path.parent, values)
    return what


def torch_file(rng: random.Random, path: Path) -> str:
    if rng.random() < 0.1:
        torch.save({"model": Attack(os.system, f"touch {MARKER}")}, path)
        return "attack"
    tree, what = damage(rng, torch.load(path, weights_only=False))
    if rng.random() < 0.3:  # once more, further inside
        tree, more = damage(rng, tree)
        what += f"; {more}"
    torch.save(plain(tree), path)
    return what


def safetensors_file(rng: random.Random, path: Path) -> str:
    content = path.read_bytes()
    if rng.random() < 0.5:
        size = struct.unpack("<Q", content[:8])[0]
        tree, what = damage(rng, json.loads(content[8 : 8 + size]))
        header = write_tree(tree, json.dumps).encode("utf-8", "surrogatepass")
        length = len(header) if rng.random() < 0.8 else rng.choice([0, 2**63, 2**64 - 1, size * 2, len(header) - 1])
        path.write_bytes(struct.pack("<Q", length) + header + content[8 + size :])
        return f"header {what}" + ("" if length == len(header) else f", length {length}")
    tensors = load_file(path)
    name = rng.choice(sorted(tensors))
    how = rng.choice(["tensor"] * 6 + ["drop", "rename", "extra", "none"])
    what = f"{how} {name}"
    if how == "tensor":
        tensors[name] = tensor(rng, tensors[name])
        what += f" {name_of(tensors[name])}"
    elif how == "drop":
        del tensors[name]
    elif how == "rename":
        new = rng.choice([name + "x", name.upper(), "", "é", name.split(".", 1)[-1]])
        tensors[new] = tensors.pop(name)
        what += f" to {new}"
    elif how == "extra":
        tensors["extra"] = torch.zeros(3)
    else:
        tensors = {}
    kept = {name: value.contiguous() for name, value in tensors.items() if value.layout == torch.strided}
    path.write_bytes(save({name: value for name, value in kept.items() if value.numel() < 2**20}, {"format": "pt"}))
    return what


def index_file(rng: random.Random, path: Path) -> str:
    """.idx: magic, version, dtype, two counts, then lengths, offsets and bounds."""
    content = bytearray(path.read_bytes())
    number = struct.unpack_from("<Q", content, 18)[0]
    fields = {"version": (9, "<Q"), "dtype": (17, "<B"), "sequences": (18, "<Q"), "documents": (26, "<Q")}
    at = rng.randrange(number)
    fields |= {"length": (34 + 4 * at, "<i"), "offset": (34 + 4 * number + 8 * at, "<q")}
    fields |= {"bound": (34 + 12 * number + 8 * at, "<q")}
    name = rng.choice(sorted(fields))
    place, form = fields[name]
    old = struct.unpack_from(form, content, place)[0]
    large = 2 ** (8 * struct.calcsize(form) - (1 if form[-1].islower() else 0)) - 1
    value = rng.choice(
        [0, 1, old + 1, max(old - 1, 0), old * 2, large, large // 8, rng.randrange(12), 10**9 % (large + 1)]
    )
    value = min(value, large)
    struct.pack_into(form, content, place, value)
    path.write_bytes(content)
    return f"{name} {value}" if name not in ("length", "offset", "bound") else f"{name} of {at} {value}"


def npy_file(rng: random.Random, path: Path) -> str:
    if rng.random() < 0.3:
        content = path.read_bytes()
        header = content[10:128].decode("latin-1")
        change = rng.choice(
            [("'<", "'>"), ("(", "(-"), ("(", "(9999999999"), ("False", "True"), ("descr", "x"), ("{", "[")]
        )
        path.write_bytes(content[:10] + header.replace(*change, 1).encode("latin-1")[:118].ljust(118) + content[128:])
        return f"header {change}"
    value = array(rng, np.load(path))
    np.save(path, value, allow_pickle=True)
    return name_of(value)


def npz_file(rng: random.Random, path: Path) -> str:
    with np.load(path, allow_pickle=True) as file:
        arrays = dict(file)
    seal = arrays.pop(SEAL, None)
    key = rng.choice(sorted(arrays))
    how = rng.choice(["array", "array", "drop", "rename", "stored"])
    what = f"{how} {key}"
    if how == "array":
        arrays[key] = array(rng, arrays[key])
        what += f" {name_of(arrays[key])}"
    elif how == "drop":
        del arrays[key]
    elif how == "rename":
        arrays[key + "x"] = arrays.pop(key)
    np.savez(path, **arrays)
    if seal is not None:
        with zipfile.ZipFile(path, "a") as file:
            file.writestr(SEAL, seal)
    if how == "stored":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr(
                f"{key}.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
            )
    return what


def h5_file(rng: random.Random, path: Path) -> str:
    names: list[str] = []
    with h5py.File(path, "r+") as file:
        file.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
        name = rng.choice(sorted(names))
        how = rng.choice(["array"] * 4 + ["drop", "rename", "group", "attribute"])
        what = f"{how} {name}"
        if how == "attribute":
            keys = sorted(file.attrs)
            key = rng.choice(keys) if keys else "x"
            file.attrs[key] = rng.choice([0, "x", np.array([np.nan]), ""])
            return f"{what} {key}"
        value = file[name][()]
        del file[name]
        if how == "array":
            new = array(rng, np.asarray(value)) if not isinstance(value, bytes) else np.float32(1)
            new = new.astype("S") if new.dtype.kind in "UO" else new
            file[name] = new
            what += f" {name_of(np.asarray(new))}"
        elif how == "rename":
            file[name + "x"] = value
        elif how == "group":
            file.create_group(name)
    return what


def gz_file(rng: random.Random, path: Path) -> str:
    content = gzip.decompress(path.read_bytes())
    how = rng.choice(["inside"] * 4 + ["cut", "sum", "twice", "members", "bomb", "trailing"])
    if how == "inside":
        inner = path.with_suffix("")
        inner.write_bytes(content)
        what = damage_content(rng, inner)
        path.write_bytes(gzip.compress(inner.read_bytes(), mtime=0))
        inner.unlink()
        return f"inside {what}"
    packed = gzip.compress(content, mtime=0)
    path.write_bytes(
        {
            "cut": packed[: rng.randrange(len(packed))],
            "sum": packed[:-8] + b"\0\0\0\0" + packed[-4:],
            "twice": gzip.compress(packed, mtime=0),
            "members": packed + packed,
            "bomb": gzip.compress(b">a\n", mtime=0) + gzip.compress(b"A" * 1_000_000, mtime=0) * 300,
            "trailing": packed + b"rest",
        }[how]
    )
    return how


def pickle_file(rng: random.Random, path: Path) -> str:
    """DCP's .metadata: an attack, or plain values in its place."""
    value = rng.choice([Attack(os.system, f"touch {MARKER}"), {}, [], None, {"state_dict_metadata": {}}, 2**70])
    path.write_bytes(pickle.dumps(value))
    return f"pickle of {type(value).__name__}"


BY_SUFFIX: dict[str, Callable[[random.Random, Path], str]] = {
    ".json": json_file, ".jsonl": json_lines, ".yaml": yaml_file, ".csv": table, ".tsv": table, ".fasta": lines_of,
    ".txt": lines_of, ".a3m": lines_of, ".mdb": lmdb_file, ".pt": torch_file, ".bin": torch_file, ".gz": gz_file,
    ".safetensors": safetensors_file, ".idx": index_file, ".npy": npy_file, ".npz": npz_file, ".h5": h5_file,
    ".py": python_file, ".metadata": pickle_file,
}  # fmt: skip


def damage_content(rng: random.Random, path: Path) -> str:
    """Change what the file holds; "" where the format is not known, or could not be written that way."""
    change = BY_SUFFIX.get(path.suffix or path.name)
    if change is None or (path.suffix == ".bin" and path.read_bytes()[:2] != b"PK"):  # a shard's tokens
        return ""
    before = path.read_bytes()
    try:
        return change(rng, path)
    except (ValueError, TypeError, RuntimeError, RecursionError, OverflowError, AttributeError, KeyError, OSError,
            yaml.YAMLError, struct.error, pickle.PicklingError):  # fmt: skip
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(before)
        return ""
