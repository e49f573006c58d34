"""Stage two: checkpoints <-> models. `python -m converter --help`."""
