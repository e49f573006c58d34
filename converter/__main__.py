"""`python -m converter --load SRC --save DST --target tape [--verify]`."""

import sys

from converter.convert import main
from proteinlm.errors import run


def cli() -> None:
    sys.exit(run(main))


if __name__ == "__main__":
    cli()
