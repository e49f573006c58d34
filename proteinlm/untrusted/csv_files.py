"""Rows of comma- or tab-separated text from elsewhere.

What must hold: what is no CSV, and a cell of more than LONGEST letters, is an InputError with the file and the line.
"""

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from proteinlm.errors import InputError

LONGEST = 1 << 24  # letters of a cell, for which csv takes 12 times as many bytes; its own 131,072 are too few
LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
csv.field_size_limit(LONGEST)


def lines_of(text: str) -> Iterator[str]:
    """Lines with their ends: LF, CRLF or CR. (str.splitlines knows seven more, which are letters of a cell; io.StringIO
    takes four bytes for each letter.)"""
    return (match[0] for match in LINE.finditer(text))


def read_rows(path: str | Path, text: str, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """(the line that it begins on, its cells) of every row of the text of `path` but blank ones."""
    reader = csv.reader(lines_of(text), delimiter=delimiter, strict=True)
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
