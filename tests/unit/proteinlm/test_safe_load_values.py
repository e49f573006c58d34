"""What `proteinlm.untrusted.safe_load` admits comes back equal to what Python and torch read. Attacks elsewhere."""

import argparse
import io
import pickle
import subprocess
import sys
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch_saved import torch_bytes, torch_file

from proteinlm.errors import InputError
from proteinlm.untrusted.safe_load import StandIn, safe_pickle_loads, safe_torch_load

ROOT = Path(__file__).resolve().parents[3]
FIXTURES = ROOT.parent / "shared" / "fixtures" / "megatron"


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return type(b) is torch.Tensor and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return type(b) is np.ndarray and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


PLAIN = [
    *(
        None,
        True,
        0,
        -1,
        255,
        70000,
        2**70,
        -(2**80),
        1.5,
        float("inf"),
        "",
        "é\ud800",
        b"",
        b"\xff",
        bytearray(b"q"),
        1 + 2j,
    ),
    *([], [1, [2]], (), (1, 2), (1, 2, 3, 4), {}, {"a": {1: None}}, {1, 2}, frozenset([3]), OrderedDict(b=1, a=2)),
    *(np.arange(5), np.arange(6.0).reshape(2, 3), np.arange(6.0).reshape(2, 3).T, np.array(3.5), np.zeros((0, 3))),
    *(np.array(["a", "bcd"]), np.array([b"x"]), np.array([True]), np.float32(3), np.int64(-4), np.dtype("f4")),
    *(argparse.Namespace(a=1, b=[2]), np.random.RandomState(0).get_state()),
]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_round_trip(protocol):
    for value in PLAIN:
        data = pickle.dumps(value, protocol)
        assert same(pickle.loads(data), safe_pickle_loads(data, "value")), value


def test_a_dict_made_by_a_factory_is_a_dict():
    value = defaultdict(dict, a={1: 2})
    assert safe_pickle_loads(pickle.dumps(value), "value") == {"a": {1: 2}}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("mmap", [False, True])
def test_torch_values_round_trip(tmp_path, legacy, mmap):
    base = torch.arange(12.0)
    dtypes = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool)
    value = {
        "views": [base[2:6], base.reshape(3, 4).T, base[::2]],
        "kinds": [torch.arange(3).to(dtype) for dtype in dtypes],
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3.0),
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "state": torch.nn.Linear(3, 2).state_dict(),
        "optimizer": {"param_groups": [{"lr": 1e-3, "params": [0, 1]}], "state": {0: {"step": torch.tensor(4.0)}}},
        "args": argparse.Namespace(hidden_size=4, params_dtype=torch.half),
    }
    path = torch_file(tmp_path / "x.pt", value, legacy)
    loaded = safe_torch_load(path, mmap=mmap)
    assert same(value, loaded)
    assert loaded["state"]._metadata == value["state"]._metadata
    loaded["views"][0][0] = 99.0  # shared storages stay shared; the file stays as it is
    assert loaded["views"][2][1] == 99.0
    assert same(value, safe_torch_load(path))


def test_parameters_come_back_as_tensors():
    loaded = safe_torch_load(torch_bytes(torch.nn.Parameter(torch.ones(3))))
    assert type(loaded) is torch.Tensor and torch.equal(loaded, torch.ones(3))


def test_float8_and_attributes_on_tensors():
    marked = torch.ones(2)
    marked.tensor_model_parallel = True  # as Megatron marks its parameters
    loaded = safe_torch_load(torch_bytes([torch.ones(3).to(torch.float8_e4m3fn), marked]))
    assert loaded[0].dtype == torch.float8_e4m3fn and torch.equal(loaded[1], torch.ones(2))


def test_megatron_classes_are_inert(monkeypatch):
    """A loss scaler of a very old checkpoint: its class is not imported, its state is kept as data."""
    module = type(sys)("fp16.loss_scaler")
    exec("class DynamicLossScaler:\n    def __setstate__(self, s): raise SystemExit", module.__dict__)
    monkeypatch.setitem(sys.modules, "fp16", type(sys)("fp16"))
    monkeypatch.setitem(sys.modules, "fp16.loss_scaler", module)
    scaler = module.DynamicLossScaler()
    scaler.cur_scale = 1024.0
    for protocol in (0, 2, 4):
        data = pickle.dumps({"optimizer": {"loss_scaler": scaler}}, protocol)
        stand_in = safe_pickle_loads(data, "x")["optimizer"]["loss_scaler"]
        assert type(stand_in) is StandIn and stand_in.state == {"cur_scale": 1024.0}
        assert stand_in.class_name == "fp16.loss_scaler.DynamicLossScaler"
        with pytest.raises(SystemExit):  # control: the class itself would have run
            pickle.loads(data)


def test_files_and_streams(tmp_path):
    path = torch_file(tmp_path / "x.pt", {"w": torch.ones(3)})
    with path.open("rb") as file:
        assert torch.equal(safe_torch_load(file)["w"], torch.ones(3))
    assert torch.equal(safe_torch_load(memoryview(path.read_bytes()))["w"], torch.ones(3))


def test_reading_lmdb_values_imports_no_torch():
    script = (
        "import sys, pickle; from proteinlm.untrusted.safe_load import safe_pickle_loads as f;"
        "assert f(pickle.dumps({'primary': 'MK', 'n': 3}), 'x')['n'] == 3; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="the Megatron fixtures are not here")
def test_megatron_fixtures_load_as_torch_loads_them():
    paths = [*FIXTURES.glob("*/iter_*/*/model_optim_rng.pt"), FIXTURES / "tape_original" / "pytorch_model.bin"]
    assert len(paths) > 30
    for path in paths:
        expected, actual = torch.load(path, weights_only=False), safe_torch_load(path)
        args = (expected.pop("args", None), actual.pop("args", None))
        assert args[0] == args[1] and same(expected, actual), path


def load_dcp(data: bytes) -> object:
    """`data` as SafeReader reads a checkpoint's .metadata."""
    from proteinlm.untrusted.pickles import Unpickler, named
    from proteinlm.untrusted.safe_dcp import find_dcp

    with named("test"):
        return Unpickler(find_dcp, io.BytesIO(data), len(data)).load()


class ByName:
    """Pickles as the first releases of Python 3.11 pickle a member of an enumeration: getattr(class, name)."""

    def __init__(self, owner, name):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


def test_a_member_of_dcps_enumeration_by_value_and_by_name():
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING as ENCODING

    name = f"c{ENCODING.__module__}\n{ENCODING.__name__}\n".encode()
    for member in ENCODING:
        assert load_dcp(b"\x80\x04" + name + pickle.dumps((member.value,), 4)[2:-1] + b"R.") is member
        for protocol in (0, 2, 4):
            assert load_dcp(pickle.dumps(ByName(ENCODING, member.name), protocol)) is member
    with pytest.raises(InputError):  # what makes a new class where an enumeration has no members
        load_dcp(b"\x80\x04" + name + pickle.dumps(("New", ["a", "b"]), 4)[2:-1] + b"R.")


GETATTR = [(OrderedDict, "fromkeys"), (dict, "keys"), (np.ndarray, "tofile")]
READERS = [load_dcp, lambda data: safe_pickle_loads(data, "test")]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("owner, name", GETATTR)
def test_getattr_gives_nothing_else(owner, name, read):
    with pytest.raises(InputError, match=r"names builtins\.getattr, which is not data"):
        read(pickle.dumps(ByName(owner, name)))


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", ["__class__", "_member_map_", "mro", 3])
def test_getattr_gives_no_other_attribute_of_that_enumeration(name, read):
    from torch.distributed.checkpoint.metadata import _MEM_FORMAT_ENCODING as ENCODING

    with pytest.raises(InputError, match="which is not data"):
        read(pickle.dumps(ByName(ENCODING, name)))
