"""Tables of proteins as people have them: CSV, TSV, or FASTA with `KEY=value` in its headers, gzipped or not.

    table = read_table("my_task.csv")
    table.columns, table.rows[0], table.where(0, "location")     # ..., "my_task.csv, line 2, column location"

A FASTA file is a table with the columns id, sequence and one for each KEY of its headers (biotrainer's convention:
`>P1 TARGET=Nucleus SET=train`). What must hold: a cell is the text of the file without white space around it, a row has
a cell for each column, and whatever is wrong is an InputError with the file and the line. A byte order mark, CRLF,
quoted cells with commas or line ends in them, and blank lines are taken as they come; UTF-16, Excel's own files and
semicolons (whose numbers may have decimal commas) are refused by name.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from proteinlm.errors import InputError, did_you_mean
from proteinlm.sequences import SUFFIXES
from proteinlm.untrusted.csv_files import lines_of, read_rows
from proteinlm.untrusted.text_files import read_text

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
EXCEL = (".xlsx", ".xls")  # named so that they can be refused for what they are
KEY = re.compile(r"(\S+?)=(.*?)(?=\s+\S+=|$)")
LONGEST_NAME = 1000  # letters; those of the Gene Ontology have up to 250
SAVE_AS = "save it as CSV (UTF-8, separated by commas) or as .tsv"


def _suffix(path: str | Path) -> str:
    return Path(str(path).removesuffix(".gz")).suffix.lower()


def is_fasta(path: str | Path) -> bool:
    """Whether a file's name says FASTA."""
    return SUFFIXES.get(_suffix(path)) == "fasta"


def is_table(path: str | Path) -> bool:
    """Whether a name is that of a table: .csv, .tsv, .tab or FASTA, .gz aside."""
    return _suffix(path) in (*DELIMITERS, *EXCEL) or is_fasta(path)


@dataclass(frozen=True)
class Table:
    """Cells by row and column; `lines`: the line of the file that each row begins on."""

    path: str
    columns: tuple[str, ...]
    rows: list[list[str]]
    lines: list[int]

    def __len__(self) -> int:
        return len(self.rows)

    def column(self, name: str) -> list[str]:
        """The cells of a column; InputError with the nearest name where there is none."""
        if name not in self.columns:
            hint = did_you_mean(name, self.columns) or f"; it has {', '.join(self.columns)}"
            raise InputError(f"{self.path}: no column {name!r}{hint}")
        place = self.columns.index(name)
        return [row[place] for row in self.rows]

    def where(self, row: int, column: str | None = None) -> str:
        """File, line and column, for messages."""
        return f"{self.path}, line {self.lines[row]}" + (f", column {column}" if column else "")


def check_name(name: str, where: str) -> str:
    """The name of a protein, a class or a column; InputError for one that no log and no picture could show."""
    if len(name) > LONGEST_NAME:
        text = f"a name with {len(name):,} letters ({name[:20]!r} ...), more than {LONGEST_NAME:,}"
        raise InputError(f"{where}: {text}; is it one?")
    return name


def read_table(path: str | Path) -> Table:
    """The whole table; InputError for a file that is none, a ragged row, and a table without rows."""
    path, text = str(path), read_text(path, SAVE_AS)
    table = _fasta_table(path, text) if is_fasta(path) else _delimited_table(path, text)
    if not len(table):
        raise InputError(f"{path}: no proteins in it; a table has a line of column names and then a protein a line")
    return table


def _delimiter(path: str, header: str) -> str:
    """From the name, unless the line of column names says otherwise."""
    comma, tab, semicolon = (header.count(sign) for sign in ",\t;")
    if semicolon and not comma and not tab:
        raise InputError(f"{path}, line 1: columns separated by semicolons; {SAVE_AS}")
    by_name = DELIMITERS.get(_suffix(path), ",")
    if by_name == "," and tab and not comma:
        return "\t"
    return "," if by_name == "\t" and comma and not tab else by_name


def _delimited_table(path: str, text: str) -> Table:
    header = next((line for line in lines_of(text) if line.strip()), "")
    columns, rows, lines = None, [], []
    for line, cells in read_rows(path, text, _delimiter(path, header)):
        cells = [cell.strip() for cell in cells]
        if columns is None:
            columns = _column_names(path, line, cells)
        elif len(cells) != len(columns):
            names = ", ".join(columns)
            raise InputError(f"{path}, line {line}: {len(cells)} cells, but there are {len(columns)} columns ({names})")
        else:
            rows.append(cells)
            lines.append(line)
    return Table(path, columns or (), rows, lines)


def _column_names(path: str, line: int, cells: list[str]) -> tuple[str, ...]:
    for cell in cells:
        if cells.count(cell) > 1:
            raise InputError(f"{path}, line {line}: two columns are named {cell!r}; each needs a name of its own")
        if re.fullmatch("[A-Z]{25,}", cell):
            raise InputError(f"{path}, line {line}: {cell[:20]}... names no column; the first line should name them")
        check_name(cell, f"{path}, line {line}")
    return tuple(cells)


def _fasta_table(path: str, text: str) -> Table:
    records = list(fasta_records(path, text))
    rows = [{"id": name, "sequence": body} | keys for _, name, keys, body in records]
    columns = tuple(dict.fromkeys(["id", "sequence", *(key for row in rows for key in row)]))
    return Table(path, columns, [[row.get(c, "") for c in columns] for row in rows], [line for line, *_ in records])


def fasta_records(path: str, text: str | None = None) -> Iterator[tuple[int, str, dict[str, str], str]]:
    """(line of the header, first word of the header, its KEY=value pairs, the letters as they stand) of each record."""
    line, header, parts = 0, None, []
    for number, content in enumerate(lines_of(read_text(path, SAVE_AS) if text is None else text), 1):
        if content.startswith(">"):
            if header is not None:
                yield line, *header, "".join(parts)
            name, _, rest = content[1:].strip().partition(" ")
            if not name:
                raise InputError(f"{path}, line {number}: no name after '>'; every protein needs one")
            line, header, parts = number, (name, dict(KEY.findall(rest))), []
        elif content.strip() and header is None:
            raise InputError(f"{path}, line {number}: text before the first header line ('>name')")
        else:
            parts.append(content.strip())
    if header is not None:
        yield line, *header, "".join(parts)
