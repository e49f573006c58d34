"""A model on the vocabulary of its target; the rows themselves are moved by `proteinlm/model_dir/vocabulary.py`."""

from dataclasses import replace

from torch import Tensor

from converter.model import PortableModel
from proteinlm.errors import InputError
from proteinlm.model_dir.files import ModelFiles
from proteinlm.model_dir.vocabulary import to_tokenizer as rename_rows

MEGATRON_PADDING = 128  # what Megatron pads a vocabulary to a multiple of, where nothing says otherwise
WIDEST_PADDING = 64 * MEGATRON_PADDING  # rows of a 31-token vocabulary on 64 ranks; more must be another vocabulary


def to_tokenizer(model: PortableModel, name: str, divisible_by: int) -> PortableModel:
    """The model on the vocabulary `name` (iupac, tape, esm or esmc)."""
    if not model.tokenizer.one_to_one:
        raise InputError(
            f"{model.origin}: its vocabulary ({model.tokenizer.name}) does not map residues one to one, which this "
            "target needs; pretrain with --tokenizer-type iupac, or convert with --target dcp"
        )
    files = ModelFiles(model.config, model.tokenizer, model.tensors, model.notes)
    files = rename_rows(files, name, divisible_by, model.origin)
    return replace(model, config=files.config, tokenizer=files.tokenizer, tensors=files.state, notes=files.notes)


def to_pretraining(model: PortableModel, divisible_by: int | None = None, name: str = "iupac") -> PortableModel:
    """The model on a vocabulary of pretraining, with dropout where Megatron has it, as pretraining and HF do.

    divisible_by: of the rows (None: as the config says, or Megatron's where that is without padding).
    """
    stored = model.config.make_vocab_size_divisible_by
    padded = MEGATRON_PADDING if stored == 1 else stored
    return to_tokenizer(model, name, divisible_by or padded).with_config(output_dropout=True)


def fold_token_types(types: Tensor, positions: Tensor, where: str) -> tuple[Tensor, str]:
    """Token type 0 is added at every position, so it is added to the position embedding; other types have no use.

    Returns (position embedding, note).
    """
    if types.dim() != 2 or positions.dim() != 2 or len(types) == 0 or types.shape[1] != positions.shape[1]:
        raise InputError(f"{where}: token types have shape {tuple(types.shape)}, positions {tuple(positions.shape)}")
    rest = f"; types 1 to {len(types) - 1} left out" if types[1:].any() else ""
    if not types[0].any():
        return positions, f"token types left out: type 0, which proteins have, is zeros{rest}"
    folded = (positions.float() + types[0].float()).to(positions.dtype)
    return folded, f"token type 0 is not zeros: it was added to every position embedding, which is the same{rest}"
