"""PortableModel <-> a TAPE-format model directory (`tape/pretrained.py` reads and writes the files themselves)."""

from dataclasses import replace
from pathlib import Path

from converter.model import PortableModel
from converter.names import PRETRAIN_TO_TAPE_TOKENS
from converter.vocabulary import VOCABULARY_TENSORS, lost_tokens, remap_rows
from pretrain.tokenizer import TAPE_TOKENS
from tape.pretrained import config_dict, write_tape_dir


def to_tape_vocabulary(model: PortableModel) -> PortableModel:
    """The same model on TAPE's 30 tokens, without padding rows."""
    source = [PRETRAIN_TO_TAPE_TOKENS.get(token, token) for token in model.vocabulary]
    config = replace(model.config, vocab_size=len(TAPE_TOKENS), make_vocab_size_divisible_by=1)
    tensors = dict(model.tensors)
    for name in VOCABULARY_TENSORS:
        if name in tensors:
            tensors[name] = remap_rows(tensors[name], source, TAPE_TOKENS, config.padded_vocab_size)
    return replace(model, config=config, vocabulary=TAPE_TOKENS, tensors=tensors)


def write(model: PortableModel, directory: Path) -> list[str]:
    """Write encoder and masked-LM head. Returns report lines for what TAPE has no place for."""
    source = [PRETRAIN_TO_TAPE_TOKENS.get(token, token) for token in model.vocabulary]
    tape = to_tape_vocabulary(model)
    encoder = {name: tensor for name, tensor in tape.tensors.items() if not name.startswith("lm_head.")}
    head = {name: tensor for name, tensor in tape.tensors.items() if name.startswith("lm_head.")}
    write_tape_dir(directory, config_dict(tape.config), encoder, head or None)
    lost = lost_tokens(source, TAPE_TOKENS)
    return [f"left out: the row of {token}, which TAPE's vocabulary does not have" for token in lost]
