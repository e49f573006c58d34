"""Negative controls: with one of the unpickler's own parts left out, an attack that it refuses goes through."""

import argparse
import copyreg
import io
import os
import pickle
import tracemalloc

import pytest

from proteinlm.errors import InputError
from proteinlm.untrusted import pickles
from proteinlm.untrusted.pickles import Unpickler, named
from proteinlm.untrusted.safe_load import find

DEEP = b")" + b"\x85" * 20  # a tuple in a tuple, 20 deep


def load(kind: type, data: bytes, find=find) -> object:
    with named("value"):
        return kind(find, io.BytesIO(data), len(data)).load()


def without(*handlers: str) -> type:
    """The unpickler with Python's own methods for some opcodes."""
    own = {code: method for code, method in pickle._Unpickler.dispatch.items() if method.__name__ in handlers}
    assert len(own) == len(handlers)
    return type("Without", (Unpickler,), {"dispatch": Unpickler.dispatch | own})


SLOTS = b"\x80\x02cargparse\nNamespace\n)\x81N}X\x01\x00\x00\x00aK\x01s\x86b."
GUARDS = {  # the method left out -> what is refused with it, and comes back without it
    "load_build": SLOTS,
    "load_append": b"\x80\x02cbuiltins\nbytearray\n)RK\x01a.",
    "load_appends": b"\x80\x02cbuiltins\nbytearray\n)R(K\x01K\x02e.",
    "load_setitem": b"\x80\x02}K\x01K\x02sK\x01K\x03s.",
    "load_setitems": b"\x80\x02}(K\x01K\x02K\x01K\x03u.",
    "load_dict": b"(K\x01K\x02K\x01K\x03d.",
    "load_additems": b"\x80\x04\x8f(" + DEEP + b"\x90.",
    "load_frozenset": b"\x80\x04(" + DEEP + b"\x91.",
    "load_dup": b"\x80\x02N2\x86.",
    "load_readonly_buffer": b"\x80\x05cbuiltins\nbytearray\n)R\x98.",
}


@pytest.mark.parametrize("method", GUARDS)
def test_each_guard_is_needed(method):
    with pytest.raises(InputError):
        load(Unpickler, GUARDS[method])
    load(without(method), GUARDS[method])


def test_calls_are_guarded_twice(tmp_path):
    """A name must be on the list, and only what is on the list is called; Python's own of both runs the call."""
    for data in (
        b"cos\nmkdir\n(V%s\ntR.",
        b"(V%s\nios\nmkdir\n.",
        b"(cos\nmkdir\nV%s\no.",
    ):
        data = data.replace(b"%s", str(tmp_path / "ran").encode())
        own_find = pickle._Unpickler(io.BytesIO(b"")).find_class
        for lookup in (find, own_find):
            with pytest.raises(InputError):
                load(Unpickler, data, lookup)
        assert not (tmp_path / "ran").exists()
        calls = type("Calls", (without("load_reduce"),), {"_instantiate": pickle._Unpickler._instantiate})
        with pytest.raises(InputError):
            load(calls, data)
        load(calls, data, own_find)
        (tmp_path / "ran").rmdir()


def test_new_objects_are_guarded():
    data = b"\x80\x02cbuiltins\nbytearray\n)\x81."
    own_find = pickle._Unpickler(io.BytesIO(b"")).find_class
    with pytest.raises(InputError):
        load(Unpickler, data, own_find)
    assert load(without("load_newobj"), data, own_find) == bytearray()


def test_extensions_are_left_out(monkeypatch):
    monkeypatch.setitem(copyreg._extension_cache, 240, os.system)  # as another library's pickles leave them behind
    with pytest.raises(InputError):
        load(Unpickler, b"\x80\x02\x82\xf0.")
    assert load(without("load_ext1"), b"\x80\x02\x82\xf0.") is os.system


def test_nothing_is_allocated_for_a_claim():
    def peak(kind: type) -> int:
        tracemalloc.start()
        with pytest.raises(InputError):
            load(kind, b"\x80\x05\x96" + (1 << 26).to_bytes(8, "little") + b"abc.")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak(Unpickler) < 1 << 20
    assert peak(without("load_bytearray8")) > 1 << 26


def test_the_budget_and_the_check_of_keys_are_needed(monkeypatch):
    copies = (
        b"\x80\x02X\x00\x00\x04\x00"
        + b"a" * (1 << 18)
        + b"q\x00c_codecs\nencode\nq\x01]"
        + b"h\x01h\x00\x85Ra" * 200
        + b"."
    )
    deep = b"\x80\x02}" + DEEP + b"Ns."
    for data in (copies, deep):
        with pytest.raises(InputError):
            load(Unpickler, data)
    free = type("Free", (Unpickler,), {"charge": lambda self, values: None})
    assert len(load(free, copies)) == 200
    monkeypatch.setattr(pickles, "check_keys", lambda keys: keys)
    assert len(load(Unpickler, deep)) == 1


def test_class_attributes_stay():
    assert not hasattr(argparse.Namespace, "a")
