"""Nothing hidden in a file runs: each attack is shown to work on Python's own unpickler, and to do nothing here."""

import argparse
import builtins
import codecs
import contextlib
import errno
import functools
import io
import os
import pickle
import struct
import subprocess
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_saved import torch_bytes, torch_file

from proteinlm.errors import InputError
from proteinlm.untrusted.safe_load import safe_pickle_loads, safe_torch_load

ROOT = Path(__file__).resolve().parents[3]
FIXTURES = ROOT.parent / "shared" / "fixtures" / "megatron"


class Call:
    """Pickles as a call of `function(*arguments)`."""

    def __init__(self, function, *arguments, state=None):
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.parts

    def __call__(self):
        """Never called; pickle writes only callables where a function belongs."""


# Each makes a file when it runs: marker -> object to pickle.
def touch(marker) -> str:
    return f"touch {marker}"


def code(marker) -> str:
    return f"open({str(marker)!r}, 'w').close()"


ATTACKS = {
    "os.system": lambda m: Call(os.system, touch(m)),
    "subprocess": lambda m: Call(subprocess.call, ["touch", str(m)]),
    "eval": lambda m: Call(builtins.eval, code(m)),
    "exec": lambda m: Call(builtins.exec, code(m)),
    "open": lambda m: Call(builtins.open, str(m), "w"),
    "codecs.open": lambda m: Call(codecs.open, str(m), "w"),
    "getattr": lambda m: Call(Call(builtins.getattr, Path(m), "touch")),
    "partial": lambda m: Call(Call(functools.partial, os.system, touch(m))),
    "map": lambda m: Call(list, Call(map, os.system, [touch(m)])),
    "runpy": lambda m: Call(builtins.__import__("runpy").run_path, str(m) + ".py"),
    "pickle in a pickle": lambda m: Call(pickle.loads, pickle.dumps(Call(os.system, touch(m)))),
    "torch's own reader": lambda m: Call(
        torch.storage._load_from_bytes, torch_bytes(Call(os.system, touch(m))).getvalue()
    ),
    "torch hook": lambda m: Call(torch._utils._rebuild_parameter, Call(os.system, touch(m)), False, OrderedDict()),
    "numpy object array": lambda m: np.array([Call(os.system, touch(m))], dtype=object),
    "numpy testing": lambda m: Call(np.testing._private.utils.runstring, code(m), {}),
    "in a list": lambda m: [1, [2, [Call(os.system, touch(m))]]],
    "as a key": lambda m: {(1, Call(os.system, touch(m))): 2},
    "in a namespace": lambda m: argparse.Namespace(a=Call(os.system, touch(m))),
    "in an OrderedDict": lambda m: OrderedDict(model=OrderedDict(x=Call(os.system, touch(m)))),
    "as the state": lambda m: Call(OrderedDict, state={"x": Call(os.system, touch(m))}),
    "defaultdict factory": lambda m: defaultdict(Call(os.system, touch(m))),
}


@pytest.fixture
def marker(tmp_path):
    path = tmp_path / "marker"
    (tmp_path / "marker.py").write_text(code(path))
    return path


def unguarded(load, marker) -> bool:
    """Whether the attack works on a reader that does not guard (the control)."""
    with contextlib.suppress(Exception):
        load()
    ran = marker.exists()
    marker.unlink(missing_ok=True)
    return ran


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("form", ["protocol 0", "protocol 2", "protocol 5", "torch zip", "torch legacy"])
def test_attacks_do_not_run(tmp_path, marker, name, form):
    value = ATTACKS[name](marker)
    if form.startswith("protocol"):
        data = pickle.dumps(value, int(form[-1]))
        read, control = lambda: safe_pickle_loads(data, "value"), lambda: pickle.loads(data)
    else:
        path = torch_file(tmp_path / "x.pt", {"model": value}, legacy=form == "torch legacy")
        read, control = lambda: safe_torch_load(path), lambda: torch.load(path, weights_only=False)
    marker.unlink(missing_ok=True)
    with pytest.raises(InputError) as error:
        read()
    assert not marker.exists()
    assert "\n" not in str(error.value)
    assert unguarded(control, marker), "the control did not run: this attack tests nothing"


def test_the_error_has_the_name(tmp_path, marker):
    path = torch_file(tmp_path / "x.pt", [Call(os.system, touch(marker))])
    with pytest.raises(InputError, match=r"x\.pt: names posix\.system, which is not data"):
        safe_torch_load(path)
    with pytest.raises(InputError, match=r"pfam key 3: names builtins\.eval"):
        safe_pickle_loads(pickle.dumps(Call(eval, "1")), "pfam key 3")


def test_truncation_anywhere_is_an_input_error():
    data = pickle.dumps({"a": [1, 2.5, "x", np.arange(3)], "b": OrderedDict(c=b"x")}, 2)
    assert safe_pickle_loads(data, "value")["b"] == {"c": b"x"}
    for end in range(len(data)):
        with pytest.raises(InputError):
            safe_pickle_loads(data[:end], "value")


def test_flipped_bits_never_crash(tmp_path):
    """Random damage either loads or is an InputError; other exceptions would be tracebacks for users."""
    rng = np.random.default_rng(0)
    value = {"args": argparse.Namespace(x=1), "model": {"w": torch.arange(6.0).reshape(2, 3)}, "n": np.arange(4)}
    sources = [torch_bytes(value).getvalue(), torch_bytes(value, _use_new_zipfile_serialization=False).getvalue()]
    for source in sources:
        refused = 0
        for _ in range(300):
            damaged = bytearray(source)
            for position in rng.integers(0, len(source), 3):
                damaged[position] = rng.integers(0, 256)
            try:
                safe_torch_load(bytes(damaged), what="x")
            except InputError as error:
                refused += 1
                assert "\n" not in str(error)
        assert refused > 50


# torch files


def repack(source: bytes, change, **options) -> bytes:
    """The zip archive `source` with its entries (a list of [name, bytes]) changed by `change`."""
    with zipfile.ZipFile(io.BytesIO(source)) as archive:
        entries = [[info.filename, archive.read(info)] for info in archive.infolist()]
    change(entries)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **options) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return out.getvalue()


TENSORS = {"w": torch.arange(256.0), "b": torch.zeros(4096)}


def test_compressed_entries_are_refused():
    source = torch_bytes(TENSORS).getvalue()
    assert safe_torch_load(repack(source, lambda entries: None))["w"][3] == 3  # control: stored again, loads
    with pytest.raises(InputError, match="compressed"):
        safe_torch_load(repack(source, lambda entries: None, compression=zipfile.ZIP_DEFLATED))


def test_zip_sizes_beyond_the_file_are_refused_before_allocation():
    source = bytearray(torch_bytes(TENSORS).getvalue())
    name = b"archive/data/1"
    at = source.rindex(name)  # in the central directory: sizes lie 22 to 30 bytes before the name's 46-byte header ends
    source[at - 26 : at - 18] = struct.pack("<II", 2**31, 2**31)
    with pytest.raises(InputError, match=r"claim \d+ bytes in a file of"):
        safe_torch_load(bytes(source))


def test_storage_claims_are_checked():
    source = torch_bytes({"w": torch.arange(300.0)}).getvalue()

    def claim_more(entries):
        for entry in entries:
            if entry[0].endswith("data.pkl"):
                assert entry[1].count(struct.pack("<BH", ord("M"), 300)) >= 1
                entry[1] = entry[1].replace(struct.pack("<BH", ord("M"), 300), struct.pack("<BH", ord("M"), 60000))

    with pytest.raises(InputError, match="not the 240000 it claims"):
        safe_torch_load(repack(source, claim_more))
    legacy = torch_bytes({"w": torch.arange(300.0)}, _use_new_zipfile_serialization=False).getvalue()
    with pytest.raises(InputError, match=r"claim \d+ bytes in a file of"):
        safe_torch_load(legacy.replace(struct.pack("<BH", ord("M"), 300), struct.pack("<Bi", ord("J"), 2**31 - 1)))


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((2**40,), (0,), 0),
        ((300,), (1,), 0),
        ((4,), (1,), 1 << 40),
        ((2, 2), (-1, 1), 3),
        ((2,), (1, 1), 0),
        ((-1,), (1,), 0),
    ],
)
def test_tensors_beyond_their_storage_are_refused(size, stride, offset, monkeypatch):
    class Fake:
        def __reduce__(self):
            return (
                torch._utils._rebuild_tensor_v2,
                (torch.arange(4.0).storage(), offset, size, stride, False, OrderedDict()),
            )

    with pytest.raises(InputError):
        safe_torch_load(torch_bytes(Fake()))


def text(value: str) -> bytes:
    """Opcodes that put `value` on the stack."""
    return b"X" + struct.pack("<I", len(value)) + value.encode()


STORAGE, KEY = text("storage"), text("0")


def storage_id(tag=STORAGE, kind=b"ctorch\nFloatStorage\n", key=KEY, count=b"K\x04", rest=b"") -> bytes:
    return b"(" + tag + kind + key + text("cpu") + count + rest + b"t"


PERSISTENT_IDS = {
    "a number": b"K\x01",
    "text": STORAGE,
    "a list": b"]",
    "nothing": b")",
    "too short": b"(" + STORAGE + b"ctorch\nFloatStorage\nt",
    "a module": storage_id(text("module")),
    "a dtype for the word": storage_id(b"ctorch\nfloat32\n"),
    "no storage class": storage_id(kind=b"cargparse\nNamespace\n"),
    "a key of another kind": storage_id(key=b"K\x00"),
    "a key with a path": storage_id(key=text("../data.pkl")),
    "a negative size": storage_id(count=b"J\xff\xff\xff\xff"),
    "a size of 2**40": storage_id(count=b"\x8a\x06\0\0\0\0\0\1"),
    "a view of another": storage_id(rest=b"K\x01"),
}


@pytest.mark.parametrize("name", PERSISTENT_IDS)
@pytest.mark.parametrize("legacy", [False, True])
def test_persistent_ids_of_other_kinds_are_refused(name, legacy):
    program = b"\x80\x02" + PERSISTENT_IDS[name] + b"Q."
    if legacy:
        source = torch_bytes(None, _use_new_zipfile_serialization=False).getvalue()
        assert source.count(b"\x80\x02N.") == 1
        source = source.replace(b"\x80\x02N.", program)
    else:

        def change(entries):
            next(entry for entry in entries if entry[0].endswith("data.pkl"))[1] = program

        source = repack(torch_bytes(torch.zeros(4)).getvalue(), change)
    with pytest.raises(InputError):
        safe_torch_load(source)


def test_a_name_that_differs_in_case_alone_is_another_entry():
    """torch's own reader looks entries up without regard to case: what a check sees is not what it then reads."""

    def add(entries):
        at = next(i for i, entry in enumerate(entries) if entry[0].endswith("data/0"))
        entries.insert(at + 1, ["archive/DATA/0", bytes(16)])

    source = repack(torch_bytes({"w": torch.ones(4)}).getvalue(), add)
    assert torch.equal(safe_torch_load(source)["w"], torch.ones(4))
    assert torch.equal(
        torch.load(io.BytesIO(source), weights_only=True)["w"], torch.zeros(4)
    )  # why it is not used here


def test_a_legacy_file_without_its_storages_is_refused():
    source = torch_bytes({"w": torch.arange(4.0)}, _use_new_zipfile_serialization=False).getvalue()
    keys = source.rindex(b"\x80\x02]")
    without = source[:keys] + b"\x80\x02]."
    with pytest.raises(InputError, match="1 of its storages are missing"):
        safe_torch_load(without + bytes(64))
    assert torch.load(io.BytesIO(without + bytes(64)), weights_only=True)["w"].shape == (4,)  # whatever memory held
    with pytest.raises(InputError, match="of another size than it claims, or cut short"):
        safe_torch_load(source[:-4])


def test_missing_duplicate_and_damaged_entries(tmp_path):
    source = torch_bytes(TENSORS).getvalue()
    with pytest.raises(InputError, match="data/0' is missing"):
        safe_torch_load(
            repack(source, lambda entries: entries.remove(next(e for e in entries if e[0].endswith("data/0"))))
        )
    with pytest.warns(UserWarning), pytest.raises(InputError, match="two entries of one name"):
        safe_torch_load(repack(source, lambda entries: entries.append(entries[0])))
    with pytest.raises(InputError, match="TorchScript"):
        safe_torch_load(repack(source, lambda entries: entries.append(["archive/constants.pkl", b"x"])))
    damaged = bytearray(source)
    damaged[source.index(TENSORS["w"].numpy().tobytes()) + 9] ^= 1
    with pytest.raises(InputError, match="checksum"):
        safe_torch_load(bytes(damaged))
    (tmp_path / "empty.pt").touch()
    with pytest.raises(InputError, match=r"empty\.pt: the file is empty"):
        safe_torch_load(tmp_path / "empty.pt")
    with pytest.raises(InputError, match="truncated"):
        safe_torch_load(source[: len(source) // 2])


def test_legacy_layer_sources_and_tar_are_refused(tmp_path):
    """The legacy format may carry `module` records, for which torch writes patch files; and very old files are tar."""
    layer = torch_bytes({"x": torch.nn.Linear(2, 2)}, _use_new_zipfile_serialization=False)
    with pytest.raises(InputError):
        safe_torch_load(layer)
    import tarfile

    with tarfile.open(tmp_path / "old.pt", "w") as tar:
        tar.addfile(tarfile.TarInfo("storages"))
    with pytest.raises(InputError, match="tar format"):
        safe_torch_load(tmp_path / "old.pt")


def test_a_file_too_large_to_map_is_named(tmp_path, monkeypatch):
    path = torch_file(tmp_path / "large.pt", {"a": torch.ones(2)})

    def no_memory(*_, **__):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr("proteinlm.untrusted.safe_load.memory_map.mmap", no_memory)
    with pytest.raises(InputError, match=r"large\.pt: [\d,]+ bytes cannot be mapped"):
        safe_torch_load(path)
