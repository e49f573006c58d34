"""LMDBs in TAPE's form for tests: pickled records under the keys b"0", b"1" ..., their number under b"num_examples"."""

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path


def put_lmdb(path: Path, values: Mapping[bytes, object], subdir: bool = True) -> Path:
    """Write these entries, new or over old ones; what is not bytes is pickled. subdir=False: a single file."""
    import lmdb  # here, so that tests without records need it not

    path.parent.mkdir(parents=True, exist_ok=True)
    environment = lmdb.open(str(path), map_size=1 << 24, subdir=subdir, lock=subdir)
    with environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value if isinstance(value, bytes) else pickle.dumps(value))
    return path


def write_lmdb(path: Path, records: Iterable[object], count: bool = True, subdir: bool = True) -> Path:
    """A split of these records; count=False leaves b"num_examples" out."""
    values = {str(number).encode(): record for number, record in enumerate(records)}
    return put_lmdb(path, values | ({b"num_examples": len(values)} if count else {}), subdir)
