"""Results of `tape-eval` beside the published numbers.

    tape-table runs/                          every <task>-<split>.json below it
    tape-table runs/a runs/b/stability-test.json --markdown --output table.md

Runs that differ only in their seed share a line: their mean, their spread (sample standard deviation) and how many. One
run alone shows its 95% interval over proteins. A published number stands beside ours only to be compared with care: the
note of a line says what differs (split, head, metric, proteins left out).
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from proteinlm import errors
from proteinlm.errors import InputError
from proteinlm.files import write_text
from tape.reporting.results_table import build_table, to_html, to_markdown, to_text


def main(argv: Sequence[str] | None = None) -> int:
    parser = errors.ArgumentParser("tape-table", description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="+", help="run directories or result files of tape-eval")
    form = parser.add_mutually_exclusive_group()
    for name, write in (("markdown", to_markdown), ("html", to_html)):
        form.add_argument(f"--{name}", dest="form", action="store_const", const=write, help=f"a table in {name}")
    parser.set_defaults(form=to_text)
    parser.add_argument("--output", help="write here instead of to the terminal")
    args = parser.parse_args(argv)
    if args.output and Path(args.output).suffix == ".json":
        raise InputError(f"{args.output}: a table is text; give a name that does not end in .json, as results do")
    rows = build_table(args.results)
    text = args.form(rows)
    if args.output:
        write_text(args.output, text)
        print(f"wrote {len(rows)} lines to {args.output}")
    else:
        sys.stdout.write(text)
    return 0


cli = partial(errors.run, main)  # the console command


if __name__ == "__main__":
    sys.exit(cli())
