"""A table of text as Markdown or HTML; the first row names the columns."""

import html
from collections.abc import Sequence


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """GitHub's form, without a newline at the end."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in lines)


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """One <table> element, without a newline at the end."""

    def line(tag: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"

    head, body = line("th", rows[0]), "\n".join(line("td", row) for row in rows[1:])
    return f"<table>\n<thead>\n{head}\n</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
