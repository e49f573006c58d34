"""`python -m pretrain --config FILE --data-path PREFIX --save DIR [flags]`; under torchrun the same line."""

import sys
from collections.abc import Sequence

from pretrain.errors import run


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, train, and say why the run ended."""
    from pretrain.config import parse_config
    from pretrain.trainer import Trainer

    config = parse_config(argv)
    reason = Trainer(config).run()
    print(f"finished: {reason}", flush=True)


def cli() -> None:
    sys.exit(run(main))


if __name__ == "__main__":
    cli()
