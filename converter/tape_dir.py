"""PortableModel <-> a TAPE-format model directory, whose files and names are those of `proteinlm/model_dir/`."""

from pathlib import Path

from torch import Tensor

from converter.doors import tape_door
from converter.formats import Format, ReadOptions, WriteOptions, model_dir_config
from converter.model import PortableModel
from converter.vocabulary import to_tokenizer
from proteinlm.files import write_json
from proteinlm.model_dir.config import CONFIG_KEYS, TAPE_EXTRAS
from proteinlm.model_dir.files import CONFIG_NAME, read_config
from proteinlm.model_dir.load import READERS
from proteinlm.model_dir.names import DECODER, TAPE_NAMES, TOKEN_TYPES
from proteinlm.model_dir.weights import write_weights


def recognises_tape(path: Path) -> bool:
    config = model_dir_config(path)
    return config is not None and config.get("model_type") is None and not config.get("architectures")


def read_tape(directory: Path, options: ReadOptions) -> PortableModel:
    """A directory that this project, the original project's converter or its finetuning wrote."""
    files = READERS["tape"](directory)
    model = PortableModel(files.config, files.tokenizer, files.state, str(directory), files.notes).checked()
    if "lm_head_act" not in read_config(directory) and model.config.hidden_act == "gelu":
        model = model.noted(
            f"{directory / CONFIG_NAME} says hidden_act gelu (erf), which the original project's converter wrote for "
            "every model, also for those trained with tanh; if this one was, add --hidden-act gelu_new"
        )
    return model


def prepare_tape(model: PortableModel, options: WriteOptions) -> PortableModel:
    """The model as `write_tape` stores it: on TAPE's 30 tokens, without padding rows."""
    return to_tokenizer(model, "tape", divisible_by=1)


def write_tape(model: PortableModel, directory: Path, options: WriteOptions) -> None:
    """Write encoder and masked-LM head, weights first: a directory with a config.json is complete."""
    values = {key: getattr(model.config, field) for field, key in CONFIG_KEYS.items()}
    config = TAPE_EXTRAS | values | {"converted_from": model.origin}

    def translate(name: str, tensor: Tensor) -> dict[str, Tensor]:
        parts = TAPE_NAMES.rename({name: tensor}, model.config.num_attention_heads)
        if name == "word_embeddings.weight":
            parts[TOKEN_TYPES] = tensor.new_zeros(1, model.config.hidden_size)
            if model.has_lm_head:
                parts[DECODER] = tensor
        return parts

    write_weights(directory, model.tensors, translate, options.dtype, options.torch_file)
    write_json(directory / CONFIG_NAME, config)


TAPE = Format("tape", recognises_tape, read_tape, prepare_tape, write_tape, tape_door, has_torch_file=True)
