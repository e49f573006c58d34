"""`proteinlm models`: every model that goes by a name, with its directory (proteinlm.model_dir.find)."""

import sys
from collections.abc import Sequence
from functools import partial

from proteinlm import errors
from proteinlm.model_dir.find import models


def main(argv: Sequence[str] | None = None) -> int:
    description = "List the models that every command takes by name: this project's, and your own ($TAPE_MODELS)."
    errors.ArgumentParser("proteinlm models", description=description).parse_args(argv)
    directories = models()
    for name, directory in directories.items():
        print(f"{name:<{max(map(len, directories))}}  {directory}")
    return 0


cli = partial(errors.run, main)


if __name__ == "__main__":
    sys.exit(cli())
