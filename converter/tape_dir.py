"""PortableModel <-> a TAPE-format model directory. `proteinlm/model_dir/files.py` reads the files,
`proteinlm/model_dir/names.py` has names.
"""

from pathlib import Path

import torch
from torch import Tensor

from converter.model import PortableModel
from converter.streams import write_safetensors, write_torch_file
from converter.vocabulary import to_tokenizer
from proteinlm.errors import InputError
from proteinlm.files import write_json
from proteinlm.model_dir.config import CONFIG_KEYS, TAPE_EXTRAS, model_config_of
from proteinlm.model_dir.files import CONFIG_NAME, SAFE_NAME, TORCH_NAME, load_tape_dir
from proteinlm.model_dir.names import DECODER, TOKEN_TYPES, to_tape
from proteinlm.tokenizer import TAPE_TOKENS, build_tokenizer


def read(directory: str | Path) -> PortableModel:
    """A directory that this project, the original project's converter or its finetuning wrote."""
    directory = Path(directory)
    files = load_tape_dir(directory)
    where = str(directory / CONFIG_NAME)
    config = model_config_of(files.config, where)
    if config.vocab_size != len(TAPE_TOKENS):
        raise InputError(f"{where}: vocab_size {config.vocab_size}; TAPE's vocabulary has {len(TAPE_TOKENS)} tokens")
    notes = [*files.notes]
    if files.head:
        notes.append(f"{', '.join(sorted(files.head))} left out: the head of a finetuned task")
    if "lm_head_act" not in files.config and config.hidden_act == "gelu":
        notes.append(
            f"{where} says hidden_act gelu (erf), which the original project's converter wrote for every model, also "
            "for those trained with tanh; if this one was, add --hidden-act gelu_new"
        )
    return PortableModel(config, build_tokenizer("tape"), files.state, str(directory), tuple(notes)).checked()


def prepare(model: PortableModel) -> PortableModel:
    """The model as `write` stores it: on TAPE's 30 tokens, without padding rows."""
    return to_tokenizer(model, "tape", divisible_by=1)


def write(model: PortableModel, directory: Path, dtype: torch.dtype | None = None, torch_file: bool = False) -> None:
    """Write encoder and masked-LM head, weights first: a directory with a config.json is complete."""
    shape = {key: getattr(model.config, field) for field, key in CONFIG_KEYS.items()}
    config = TAPE_EXTRAS | {"type_vocab_size": 1} | shape | {"converted_from": model.origin}

    def translate(name: str, tensor: Tensor) -> dict[str, Tensor]:
        parts = to_tape({name: tensor}, model.config.num_attention_heads)
        if name == "word_embeddings.weight":
            parts[TOKEN_TYPES] = tensor.new_zeros(1, model.config.hidden_size)
            if model.has_lm_head:
                parts[DECODER] = tensor
        return parts

    write_safetensors(directory / SAFE_NAME, model.tensors, translate, dtype)
    if torch_file:
        write_torch_file(directory / TORCH_NAME, model.tensors, translate, dtype)
    write_json(directory / CONFIG_NAME, config)
