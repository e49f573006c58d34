"""PortableModel <-> a TAPE-format model directory (`tape/pretrained.py` reads and writes the files themselves)."""

from dataclasses import replace
from pathlib import Path

from converter.model import PortableModel
from converter.names import MODEL_CONFIG_TO_TAPE, PRETRAIN_TO_TAPE_TOKENS
from converter.vocabulary import VOCABULARY_TENSORS, lost_tokens, remap_rows
from pretrain.tokenizer import TAPE_TOKENS
from tape.pretrained import write_tape_dir


def tape_names(model: PortableModel) -> list[str]:
    """The model's vocabulary with TAPE's spelling of the special tokens."""
    return [PRETRAIN_TO_TAPE_TOKENS.get(token, token) for token in model.vocabulary]


def to_tape_vocabulary(model: PortableModel) -> PortableModel:
    """The same model on TAPE's 30 tokens, without padding rows."""
    config = replace(model.config, vocab_size=len(TAPE_TOKENS), make_vocab_size_divisible_by=1)
    tensors = dict(model.tensors)
    for name in VOCABULARY_TENSORS:
        if name in tensors:
            tensors[name] = remap_rows(tensors[name], tape_names(model), TAPE_TOKENS, config.padded_vocab_size)
    return replace(model, config=config, vocabulary=TAPE_TOKENS, tensors=tensors)


def write(model: PortableModel, directory: Path) -> list[str]:
    """Write encoder and masked-LM head. Returns report lines for what TAPE has no place for."""
    tape = to_tape_vocabulary(model)
    config = {theirs: getattr(tape.config, ours) for ours, theirs in MODEL_CONFIG_TO_TAPE.items()}
    write_tape_dir(directory, config | {"converted_from": model.origin}, tape.tensors)
    lost = lost_tokens(tape_names(model), TAPE_TOKENS)
    return [f"left out: the row of {token}, which TAPE's vocabulary does not have" for token in lost]
