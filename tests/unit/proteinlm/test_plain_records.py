"""Records read by Python's unpickler in C: what it gives is what the guarded one gives, and the proof is needed."""

import io
import pickle
import pickletools
import random
import re
import tracemalloc

import numpy as np
import pytest
from fuzz.formats import plain
from fuzz.trees import damage
from tape_lmdb import labels

from proteinlm.errors import InputError
from proteinlm.untrusted import plain_records
from proteinlm.untrusted.pickles import Unpickler
from proteinlm.untrusted.plain_records import LARGEST, read_record
from proteinlm.untrusted.safe_load import find, safe_pickle_loads

FOLDERS = ("secondary_structure", "proteinnet", "remote_homology", "fluorescence", "stability", "pfam")


def record_of(folder: str, length: int) -> dict:
    about = {"primary": "MKVA" * (length // 4), "protein_length": length, "id": b"1abc_A"}
    return about | labels(folder, length, np.random.default_rng(length))


VALUES = {
    "numbers": {"a": 1, "b": -70000, "c": 300, "d": 1.5, "e": None, "f": True, "g": False, "h": float("nan")},
    "lists": {"primary": "MK", "ss3": [0, 1, 2, 1.5, None], "none": []},
    "long": {"ss3": list(range(2500)), "disorder": [0.5] * 1000},
    "arrays": {
        "primary": "é\ud800",
        "F": np.arange(6.0).reshape(2, 3, order="F"),
        "big": np.arange(6, dtype=">i2"),
        "solid": np.zeros((2, 1, 2), "f2"),
        "point": np.array(3, "u8"),
        "nothing": np.zeros((0, 3), "i1"),
    },
}
FORMS = {folder: record_of(folder, 12) for folder in FOLDERS} | VALUES


def same(a: object, b: object) -> bool:
    """To the last bit, and to the layout of arrays."""
    if isinstance(a, np.ndarray):
        layout = [(x.dtype.str, x.dtype.byteorder, x.shape, x.strides, str(x.flags), x.tobytes()) for x in (a, b)]
        return type(a) is type(b) and layout[0] == layout[1]
    if isinstance(a, (list, dict)):
        inner = [[*x, *x.values()] if isinstance(x, dict) else x for x in (a, b)]
        return type(a) is type(b) and len(a) == len(b) and all(map(same, *inner))
    return type(a) is type(b) and repr(a) == repr(b)


def guarded(data: bytes) -> object:
    return Unpickler(find, io.BytesIO(data), len(data)).load()


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("form", FORMS)
def test_records_of_the_usual_form_are_proven(form, protocol):
    """At numpy's old name too, under which the files that TAPE published name it."""
    data = pickle.dumps(FORMS[form], protocol)
    old = data.replace(b"numpy._core.", b"numpy.core.").replace(b"\x8c\x16numpy.core", b"\x8c\x15numpy.core")
    frame = old[:3] + (len(old) - 11).to_bytes(8, "little") + old[11:]  # protocol 4 has its length in front
    for written in (data, frame if protocol == 4 else old):
        assert same(read_record(written), pickle.loads(data)) and same(guarded(written), pickle.loads(data))
    assert read_record(data[:-1]) is read_record(data + b".") is None


def test_lengths_of_one_and_of_four_bytes():
    for length in (4, 252, 256, 3000):
        for folder in FOLDERS:
            data = pickle.dumps(record_of(folder, length), 4)
            assert same(read_record(data), pickle.loads(data)), (folder, length)


def test_other_forms_are_left_to_the_guarded_reader():
    others = [{}, [], 3, {"a": 1}, {1: 2, 3: 4}, {"a": {}, "b": 1}, {"a": (1, 2), "b": 1}, {"a": 1 << 40, "b": 1}]
    others += [{"a": [[1]], "b": 1}, {"a": np.array(["x"]), "b": 1}, {"a b": 1, "c": 1}, {"a": b"x" * LARGEST, "b": 1}]
    for value in others:
        data = pickle.dumps(value)
        assert read_record(data) is None and same(safe_pickle_loads(data, "x"), value)


# ---- damage


def spans_of(data: bytes) -> list[bytes]:
    """Its opcodes, each with its argument; without the one that says how long the rest is."""
    places = [place for *_, place in pickletools.genops(data)]
    spans = [data[a:b] for a, b in zip(places, [*places[1:], len(data)], strict=True)]
    return [span for span in spans if span[:1] != b"\x95"]


ODD = [
    *(
        b"\x94",
        b"q\x00",
        b"r\xff\xff\xff\x7f",
        b"(",
        b"t",
        b"\x85",
        b"R",
        b"b",
        b"s",
        b"u",
        b"}",
        b"]",
        b")",
        b"0",
        b"2",
    ),
    *(b"N", b"K\x01", b"M\x00\x01", b"J\xff\xff\xff\xff", b"\x8c\x01<", b"\x8c\x01=", b"\x8c\x01x", b"\x8c\x02f4"),
    *(b"C\x01b", b"\x93", b"\x81", b".", b"cos\nsystem\n", b"\x95" + bytes(7) + b"\xff"),
    *(bytes([ord("h"), index]) for index in range(30)),
]


def damaged(rng: random.Random, spans: list[bytes], others: list[bytes]) -> bytes:
    """One to three opcodes changed, moved, left out, or put in; or their arguments changed."""
    spans = list(spans)
    for _ in range(rng.choice((1, 1, 2, 3))):
        i, j = rng.randrange(len(spans)), rng.randrange(len(spans))
        how = rng.randrange(6)
        if how == 0:
            spans[i : i + 1] = []
        elif how == 1:
            spans.insert(i, rng.choice(rng.choice((ODD, spans, others))))
        elif how == 2:  # by another that takes as much of what is before it, mostly
            alike = [span for span in ODD + others if span[:1] == spans[i][:1]] if rng.random() < 0.7 else ODD
            spans[i] = rng.choice(alike or ODD)
        elif how == 3:
            spans[i], spans[j] = spans[j], spans[i]
        elif len(spans[i]) > 1:
            changed = bytearray(spans[i])
            changed[rng.choice([1, -1, rng.randrange(len(changed))])] = rng.choice((0, 1, 60, 255, rng.randrange(256)))
            spans[i] = bytes(changed)
    return b"".join(spans)


def compare(seed: int, cases: int) -> tuple[int, int]:
    """How many damaged records the C reader takes, and how many of these differ from the undamaged; all as guarded."""
    rng, accepted, changed = random.Random(seed), 0, 0
    values = [value for name, value in FORMS.items() if name != "long"]
    sources = [pickle.dumps(value, protocol) for value in values for protocol in (3, 4)]
    spans = [spans_of(data) for data in sources]
    for _ in range(cases):
        number = rng.randrange(len(sources))
        data = damaged(rng, spans[number], rng.choice(spans))
        record = read_record(data)
        if record is not None:
            assert same(record, guarded(data)), data
            accepted += 1
            changed += not same(record, pickle.loads(sources[number]))
    return accepted, changed


def test_damaged_records_are_read_as_the_guarded_reader_does():
    accepted, changed = compare(0, 4000)
    assert accepted > 400 and changed > 150


def test_damaged_values_are_read_as_the_guarded_reader_does():
    rng, accepted = random.Random(0), 0
    for _ in range(400):
        record, what = damage(rng, record_of(rng.choice(FOLDERS), 12))
        try:
            data = pickle.dumps(plain(record), rng.choice((2, 3, 4, 5)))
        except (TypeError, ValueError, RecursionError):
            continue
        record = read_record(data)
        if record is not None:
            assert same(record, guarded(data)), what
            accepted += 1
    assert accepted > 40


# ---- controls: with a part of the proof left out, the C reader takes what the guarded one refuses

START = b"\x80\x04}\x94("
REFUSED = {
    "a key nested deeply": START + b")" + b"\x85" * 20 + b"K\x01u.",
    "a key twice": START + b"\x8c\x01a\x94K\x01\x8c\x01a\x94K\x02u.",
    "an integer of thousands of digits": START + b"\x8c\x01a\x94\x8b\x00\x08\x00\x00" + b"\x01" * 2048 + b"u.",
    "opcodes in a key": START + b"\x8c\x01aq020q\x01K\x01u.",  # DUP and POP, behind a key of one letter
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_proof_is_needed(name, monkeypatch):
    assert read_record(REFUSED[name]) is None
    with pytest.raises(InputError):
        safe_pickle_loads(REFUSED[name], "x")
    if name == "opcodes in a key":  # only the length that the key says tells them from letters
        blind = plain_records.ENTRY.pattern.replace(rb"(\w+)", rb"(\w)\w*")
        monkeypatch.setattr(plain_records, "ENTRY", re.compile(blind, re.DOTALL))
    else:
        monkeypatch.setattr(plain_records, "count_entries", lambda data: 1)
    assert len(read_record(REFUSED[name])) == 1


def test_a_large_index_into_the_memo_makes_no_room(monkeypatch):
    def peak() -> int:
        tracemalloc.start()
        record = safe_pickle_loads(START + b"\x8c\x01ar\x00\x00\x20\x00K\x01u.", "x")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak if record == {"a": 1} else 0

    assert 0 < peak() < 1 << 20
    monkeypatch.setattr(plain_records, "count_entries", lambda data: 1)
    assert peak() > 1 << 24


def test_matching_takes_no_more_than_its_bound():
    record = {"a": list(range(256)) * (LARGEST // 520), "b": 1}
    tracemalloc.start()
    assert read_record(pickle.dumps(record, 3)) == record
    assert tracemalloc.get_traced_memory()[1] < 200 * LARGEST
    tracemalloc.stop()


def test_a_name_put_together_from_values_is_not_found(monkeypatch, capsys):
    """Module and name of what is called may be any texts before it, here an id's."""
    data = pickle.dumps({"builtins": "print"} | record_of("stability", 12), 3)
    data = re.sub(rb"cnumpy\._?core\.multiarray\n_reconstruct\n", b"h\x01h\x02\x93", data)
    assert plain_records.count_entries(data) == 5 and read_record(data) is None
    with pytest.raises(InputError, match=r"names builtins\.print, which is not data"):
        safe_pickle_loads(data, "x")
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(plain_records, "Reader", pickle.Unpickler)
    assert read_record(data) is None and "(0,)" in capsys.readouterr().out
