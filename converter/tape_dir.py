"""PortableModel <-> a TAPE-format model directory, whose files and names are those of `proteinlm/model_dir/`."""

from pathlib import Path

from converter.formats import Format, ReadOptions, WriteOptions, model_dir_config
from converter.loaders import load_tape
from converter.model import PortableModel, portable
from converter.vocabulary import to_tokenizer
from proteinlm.model_dir.config import config_values
from proteinlm.model_dir.files import CONFIG_NAME, read_config, write_tape_dir
from proteinlm.model_dir.load import READERS


def recognises_tape(path: Path) -> bool:
    config = model_dir_config(path)
    return config is not None and config.get("model_type") is None and not config.get("architectures")


def read_tape(directory: Path, options: ReadOptions) -> PortableModel:
    """A directory that this project, the original project's converter or its finetuning wrote."""
    files = READERS["tape"](directory)
    model = portable(files, str(directory))
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
    """Write encoder, masked-LM head and contact regression."""
    config = config_values(model.config) | {"converted_from": model.origin}
    settings = {"torch_file": options.torch_file, "dtype": options.dtype, "contact_head": model.contact_head}
    write_tape_dir(directory, config, model.tensors, **settings)


TAPE = Format("tape", recognises_tape, read_tape, prepare_tape, write_tape, load_tape, has_torch_file=True)
