"""`python -m pretrain.preprocess`: files of proteins -> token shards. The work is in pretrain/data/preprocess.py."""

import sys

from pretrain.data.preprocess import cli

if __name__ == "__main__":
    sys.exit(cli())
