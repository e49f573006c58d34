"""TAPE's tokenizer under TAPE's name; the vocabulary itself lives in pretrain.tokenizer."""

from pretrain.tokenizer import TAPE_TOKENS, TAPETokenizer

__all__ = ["TAPE_TOKENS", "TAPETokenizer"]
