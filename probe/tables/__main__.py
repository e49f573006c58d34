"""`python -m probe.tables OUT`: the page of what scripts/reproduce_prottrans.sh has left in OUT so far.

OUT gets prottrans.md, prottrans.html and prottrans.json. Nothing is computed; what is not there is said to be missing.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from probe.tables.page import to_html, to_markdown
from probe.tables.rows import collect
from proteinlm import errors
from proteinlm.files import write_json, write_text


def main(argv: Sequence[str] | None = None) -> int:
    description = "Set the results of reproduce_prottrans.sh on one page."
    parser = errors.ArgumentParser("python -m probe.tables", description=description)
    parser.add_argument("output", metavar="OUT", help="where the steps left their results")
    output = Path(parser.parse_args(argv).output)
    results = collect(output)
    write_text(output / "prottrans.md", to_markdown(results))
    write_text(output / "prottrans.html", to_html(results))
    write_json(output / "prottrans.json", results.report())
    print(f"wrote {output}/prottrans.html, prottrans.md, prottrans.json: {len(results.rows)} rows")
    return 0


cli = partial(errors.run, main)


if __name__ == "__main__":
    sys.exit(cli())
