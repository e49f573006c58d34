"""Rows of comma- or tab-separated text from elsewhere.

What must hold: what is no CSV is an InputError with the file and the line; a cell may be of any length.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from proteinlm.errors import InputError

csv.field_size_limit((1 << 31) - 1)  # the text is in memory already; 131,072 are too few for some proteins


def read_rows(path: str | Path, text: str, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """(the line that it begins on, its cells) of every row of the text of `path` but blank ones."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise InputError(f"{path}, line {line}: not CSV ({error}); is a quote left open?") from None
        if cells is None:
            return
        if any(map(str.strip, cells)):
            yield line, cells
