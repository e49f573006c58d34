"""`python -m converter --load SRC --save DST --target tape [--verify]`."""

import sys

from proteinlm.errors import run


def cli() -> None:
    from converter.convert import main

    sys.exit(run(main))


if __name__ == "__main__":
    cli()
