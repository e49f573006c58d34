"""Pickles made by hand, opcode by opcode: calls, states, names and sizes that no writer would write."""

import argparse
import pickle
import struct

import numpy as np
import pytest

from proteinlm.errors import InputError
from proteinlm.untrusted.safe_load import safe_pickle_loads

MINUS_ONE = b"J\xff\xff\xff\xff"
RAW_ATTACKS = {  # hand-made opcodes: text form, INST, OBJ, attributes set on classes, a copyreg extension
    "text": b"cos\nsystem\n(S'true'\ntR.",
    "inst": b"(S'true'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'true'\no.",
    "dotted": b"\x80\x04\x8c\x08builtins\x8c\x0cdict.__class__\x93.",
    "class state": b"\x80\x02cargparse\nNamespace\n(N}X\x01\x00\x00\x00aK\x01stb.",
    "slot state": b"\x80\x02cargparse\nNamespace\n)\x81N}X\x01\x00\x00\x00aK\x01s\x86b.",
    "call a list": b"\x80\x02])R.",
    "call a type": b"\x80\x02cbuiltins\ndict\n)R.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent": b"\x80\x02K\x01Q.",
    "next buffer": b"\x80\x05\x97.",
    "dotted text": b"cbuiltins\ndict.__class__\n.",
    "dotted module": b"\x80\x04\x8c\x0ccollections.\x8c\x0bOrderedDict\x93.",
    "dotted stand-in called twice": b"\x80\x02cmegatron.x\nY.__init__\n)R)R.",
    "name is no text": b"\x80\x04K\x01K\x02\x93.",
    "stand-in's name": b"\x80\x02cmegatron.x\nY\n)\x81)R.",
    "state of an entry": b"\x80\x02cargparse\nNamespace\n}X\x04\x00\x00\x00makeNsb.",
    "state of a list": b"\x80\x02]N}X\x01\x00\x00\x00aK\x01s\x86b.",
    "state of a dict": b"\x80\x02}}X\x01\x00\x00\x00aK\x01sb.",
    "state of text": b"\x80\x02X\x01\x00\x00\x00a}b.",
    "state of a dtype of torch": b"\x80\x02ctorch\nfloat32\n}X\x01\x00\x00\x00aK\x01sb.",
    "state of a size": b"\x80\x02ctorch\nSize\n(tR}X\x01\x00\x00\x00aK\x01sb.",
    "dtype with fields": b"\x80\x02cnumpy\ndtype\nU\x02f8\x85R(K\x03U\x01<NU\x01a\x85}" + MINUS_ONE * 2 + b"K\x00tb.",
    "dtype of objects by flags": b"\x80\x02cnumpy\ndtype\nU\x02f8\x85R(K\x03U\x01<NNN" + MINUS_ONE * 2 + b"K?tb.",
    "dtype of another size": b"\x80\x02cnumpy\ndtype\nU\x02U1\x85R(K\x03U\x01<NNNJ\xff\xff\xff\x7fK\x04K\x08tb.",
    "dtype of no byte order": b"\x80\x02cnumpy\ndtype\nU\x02f8\x85R(K\x03U\x01xNNN" + MINUS_ONE * 2 + b"K\x00tb.",
    "array of objects": b"\x80\x02cnumpy\ndtype\nX\x01\x00\x00\x00O\x85R.",
    "items for a bytearray": b"\x80\x02cbuiltins\nbytearray\n)RK\x01a.",
    "items for a namespace": b"\x80\x02cargparse\nNamespace\n)\x81K\x01K\x02s.",
    "items for an array": b"\x80\x02cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85CbtRK\x00K\x01s.",
    "keyword arguments": b"\x80\x04cargparse\nNamespace\n)}X\x01\x00\x00\x00aK\x01s\x92.",
    "arguments that are a list": b"\x80\x02cargparse\nNamespace\n]R.",
    "a device that is none": b"\x80\x02ctorch\ndevice\nX\x03\x00\x00\x00foo\x85R.",
    "a device called": b"\x80\x02ctorch\ndevice\nX\x03\x00\x00\x00cpu\x85RN\x85R.",
    "a device as a method": (
        b"\x80\x02cargparse\nNamespace\n)\x81}X\x06\x00\x00\x00appendctorch\ndevice\nX\x03\x00\x00\x00cpu\x85RsbNa."
    ),
    "a codec that is none": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00idna\x86R.",
    "dup": b"\x80\x02N2\x86.",
    "persistent text": b"Pabc\n.",
    "reconstructor of a list": b"ccopy_reg\n_reconstructor\n(]cbuiltins\nobject\nNtR.",
    "bytearray of a size": b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    "reconstructor": b"ccopy_reg\n_reconstructor\n(cos\n_Environ\nc__builtin__\nobject\nNtR.",
}


@pytest.mark.parametrize("name", RAW_ATTACKS)
def test_hand_made_opcodes_are_refused(name):
    before = dict(vars(argparse.Namespace))
    with pytest.raises(InputError):
        safe_pickle_loads(RAW_ATTACKS[name], "value")
    assert dict(vars(argparse.Namespace)) == before


# sizes


def bomb(size: int) -> bytes:
    return b"\x80\x04\x8e" + struct.pack("<Q", size) + b"abc."


BOMBS = {
    "bytes of 2**60": bomb(2**60),
    "bytearray of 2**60": b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b"abc.",
    "text of 2**60": b"\x80\x04\x8d" + struct.pack("<Q", 2**60) + b"abc.",
    "negative length": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "memo of 2**32": b"\x80\x02Nr\xff\xff\xff\xffj\xfe\xff\xff\xff.",
    "array without data": pickle.dumps(np.zeros(4), 2).replace(b"K\x04\x85", b"J\xff\xff\xff\x7f\x85"),
    "cut short": pickle.dumps(list(range(1000)))[:-5],
    "empty": b"",
    "text file": b"hello world",
    "key nested 10**5 deep": b"\x80\x02})" + b"\x85" * 10**5 + b"Ns.",
    "frozenset nested 10**5 deep": b"\x80\x04()" + b"\x85" * 10**5 + b"\x91.",
    "dtype nested 10**5 deep": b"\x80\x02cnumpy\ndtype\n)" + b"\x85" * 10**5 + b"R.",
    "shape of 10**5 dimensions": (
        b"\x80\x02cnumpy._core.numeric\n_frombuffer\n(B\0\0\0\0cnumpy\ndtype\nU\x02f4\x85R("
        + b"J\xff\xff\xff\x7f" * 10**5
        + b"tU\x01CtR."
    ),
    "key shared 10**15 times": b"\x80\x02})" + (b"q\x000(" + b"h\x00" * 10 + b"t") * 15 + b"Ns.",
    "duplicate keys, one by one": b"\x80\x02}K\x01K\x02sK\x01K\x03s.",
    "duplicate keys of a literal": b"(K\x01K\x02K\x01K\x03d.",
    "a key without a value": b"\x80\x02}(K\x01u.",
    "frame of 2**62": b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"C\x05abc",
    "sets of one array": (
        pickle.dumps(np.arange(10**5), 2)[:-1] + b"q\xffcbuiltins\nset\nq\xfe]" + b"h\xfeh\xff\x85Ra" * 1000 + b"."
    ),
    "duplicate keys": b"\x80\x02}(K\x01K\x02K\x01K\x03u.",
    "multiplied bytes": (
        b"\x80\x02X\x00\x00\x10\x00"
        + b"a" * (1 << 20)
        + b"q\x00c_codecs\nencode\nq\x01]"
        + b"h\x01h\x00\x85Ra" * 10_000
        + b"."
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_and_broken_pickles_are_refused(name):
    with pytest.raises(InputError) as error:
        safe_pickle_loads(BOMBS[name], "value")
    assert len(str(error.value)) < 400 and "\n" not in str(error.value)
