"""Directories of Hugging Face's `transformers`: the encoder of one, opened without running or unpickling any of it.

    trunk, config, notes = open_directory("prot_t5_xl_uniref50")            proteinlm.huggingface.trunk.Trunk
    trunk = build(config, table, lm_head=False)                             the same network, with random weights

What must hold: weights come from proteinlm.model_dir.weights (safetensors, or the safe reader), never from a file that
transformers opens; no code of a directory is run; of T5 and Ankh only the encoder is read; a weight that the encoder
needs and the file lacks is an InputError, and what is left out is in the notes.
"""

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from proteinlm.errors import InputError
from proteinlm.huggingface.families import FAMILIES, OTHER, find_family
from proteinlm.huggingface.tokens import TokenTable, read_tokens
from proteinlm.huggingface.trunk import Trunk
from proteinlm.model_dir.files import (
    CONFIG_NAME,
    check_finite,
    check_layers,
    check_tensors,
    count_not_finite,
    read_config,
)
from proteinlm.model_dir.weights import WeightFiles

LOADING = {"output_loading_info": True, "ignore_mismatched_sizes": True}  # reported, and an InputError here
NUMBER = re.compile(r"\.\d+\.")  # of a layer, in a tensor's name
LARGEST = 1 << 28  # bytes of a file that is no weights
LEFT_BEHIND = "decoder."  # of an encoder-decoder's file; never read
TRUNK, LM_HEAD = "trunk.encoder.", "mlm."  # how names of the encoder and its masked-LM head begin in a run's file


def import_transformers():
    try:
        import transformers
    except ImportError as error:
        text = f"this model needs the package transformers ({error}); install this project's extra [huggingface]"
        raise InputError(text) from None
    return transformers


def model_type_in(config: Mapping) -> str:
    """transformers' model type of a config.json; old ones have only a class ("BertForMaskedLM") in `architectures`."""
    if isinstance(config.get("model_type"), str):
        return config["model_type"]
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else names
    return re.split("For|Model|LMHead|WithLM", name)[0].lower() if isinstance(name, str) else ""


def make_config(values: Mapping, where: str) -> object:
    """transformers' configuration of an encoder; InputError for a type that has none here."""
    transformers = import_transformers()
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    kind = model_type_in(values)
    known = {family.model_type for family in FAMILIES}
    if kind not in known | set(MODEL_FOR_MASKED_LM_MAPPING_NAMES) or kind not in transformers.CONFIG_MAPPING:
        right = "should be bert, albert, electra, esm, xlnet, t5, or another with a masked language model"
        raise InputError(f"{where}: model_type {ascii(kind)[:40]} is no encoder that transformers has; {right}")
    try:
        config = transformers.CONFIG_MAPPING[kind].from_dict({**values, "model_type": kind})
    except Exception as error:  # strict dataclasses and checks of many kinds
        raise InputError(f"{where}: {str(error).strip().splitlines()[-1][:160]}") from None
    if kind == "t5":
        config.is_encoder_decoder = False
    if config.is_encoder_decoder:
        raise InputError(f"{where}: {kind} is an encoder and a decoder; of these only T5's encoder can be opened")
    if kind == "xlnet" and getattr(config, "bi_data", False):
        raise InputError(f"{where}: bi_data is true, which halves a batch; should be false")
    if kind == "xlnet":  # each protein alone, without states of the ones before
        config.mem_len, config.use_mems_eval, config.use_mems_train = None, False, False
    return config


def open_directory(directory: Path, lm_head: bool = True) -> tuple[Trunk, dict, tuple[str, ...]]:
    """(the encoder in fp32, its config.json for `build`, what was left out).

    directory: as transformers writes it, or a finetuned run of model type huggingface. lm_head: also the masked-LM
    head, if the file has one.
    """
    if "base_model" in (values := read_config(directory)):
        return _open_run(directory, values, lm_head)
    values, table = describe(directory)
    config = make_config(values, str(directory / CONFIG_NAME))
    files = WeightFiles(directory)
    names = [name for name in files.files if config.model_type != "t5" or not name.startswith(LEFT_BEHIND)]
    check_layers({"num_hidden_layers": config.num_hidden_layers}, files.files, files.path)
    state = {name: files.get(name) for name in names}
    check_finite(count_not_finite(state), files.path)
    trunk, notes = _load(config, table, state, lm_head, files.path)
    if len(names) < len(files.files):
        notes = (f"{files.path}: the decoder left out ({len(files.files) - len(names)} tensors)", *notes)
    return trunk, values, notes


def describe(directory: Path) -> tuple[dict, TokenTable]:
    """(config.json with its model_type, the table of tokens) of a directory of transformers; weights are not read."""
    values = read_config(directory)
    config = make_config(values, str(directory / CONFIG_NAME))
    table = _tokens(directory, config)
    return values | {"model_type": config.model_type}, table


def _open_run(directory: Path, values: Mapping, lm_head: bool) -> tuple[Trunk, dict, tuple[str, ...]]:
    """`open_directory` of what model type huggingface has saved (tape.models.modeling_huggingface)."""
    if values["base_model"] != "huggingface":
        kind = ascii(str(values["base_model"]))[:40]
        raise InputError(f"{directory}: no directory of transformers; its model type is {kind}")
    where, files = str(directory / CONFIG_NAME), WeightFiles(directory)
    lm_head = lm_head and any(name.startswith(LM_HEAD) for name in files.files)
    tensors = files.get_all()
    check_finite(count_not_finite(tensors), files.path)
    state = encoder_of_run(values, tensors, where, files.path)
    if lm_head:
        heads = {name: value for name, value in tensors.items() if name.startswith(LM_HEAD)}
        state |= {f"lm_head.{name.removeprefix(LM_HEAD)}": value for name, value in heads.items()}
    config, table = run_config(values, where)
    trunk = build(config, table, lm_head, where)
    check_tensors(state, trunk.state_dict(), files.path)
    trunk.load_state_dict(state)
    return trunk, config, ()


def encoder_of_run(values: Mapping, tensors: Mapping[str, Tensor], where: str, path: Path) -> dict[str, Tensor]:
    """The encoder's tensors of a run, under the names of `build`'s without a head.

    InputError where they are not what its config.json says, before any memory is taken for what that claims.
    """
    config, table = run_config(values, where)
    check_layers({"num_hidden_layers": make_config(config, where).num_hidden_layers}, tensors, path)
    try:
        with torch.device("meta"):
            expected = build(config, table, False, where).state_dict()
    except InputError:
        raise
    except Exception as error:  # sizes from which no model can be made
        raise InputError(f"{where}: no encoder can be made of it ({_last_line(error)})") from None
    whole = {f"trunk.{name.removeprefix('trunk.')}": value for name, value in tensors.items()}  # a bare encoder's too
    state = {name.removeprefix(TRUNK): value for name, value in whole.items() if name.startswith(TRUNK)}
    check_tensors(state, expected, path)
    return state


def _last_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1][:160]


def run_config(values: Mapping, where: str) -> tuple[dict, TokenTable]:
    """(transformers' config, table of tokens) in a run's config.json."""
    config = values.get("transformers_config")
    if not isinstance(config, dict):
        raise InputError(f"{where}: no transformers_config; give a directory of transformers, or a run made of one")
    return config, TokenTable.from_dict(values.get("tokens"), where)


def build(values: Mapping, table: TokenTable, lm_head: bool, where: str = "config.json") -> Trunk:
    """The network of `open_directory`'s config with random weights (torch's global seed)."""
    config = make_config(values, where)
    with quietly():
        return _wrap(_model_class(config, table, lm_head)(config), table, where)


def _tokens(directory: Path, config: object) -> TokenTable:
    """The table of a directory's tokenizer. do_lower_case: some do not say in their files that letters are capital."""
    transformers = import_transformers()
    options = {"do_lower_case": False, "trust_remote_code": False, "local_files_only": True}
    for file in directory.iterdir():  # before a library makes room for it, at whose failure it ends the process
        if file.suffix in (".json", ".txt", ".model") and file.stat().st_size > LARGEST:
            raise InputError(f"{file}: more than {LARGEST:,} bytes; should be a tokenizer's or a configuration's")
    try:
        with quietly():
            tokenizer = transformers.AutoTokenizer.from_pretrained(directory, config=config, **options)
            return read_tokens(tokenizer, find_family(config.model_type, tokenizer.get_vocab()), str(directory))
    except InputError:
        raise
    except Exception as error:  # of many kinds, from transformers and from tokenizers
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        reason = "none of its files is there" if "not NoneType" in reason else reason
        raise InputError(f"{directory}: its tokenizer cannot be opened ({reason})") from None


def _head_modules(table: TokenTable) -> tuple[str, ...]:
    return next((family for family in FAMILIES if family.name == table.family), OTHER).lm_head


def _model_class(config: object, table: TokenTable, lm_head: bool) -> type:
    transformers = import_transformers()
    if config.model_type == "t5":
        return transformers.T5EncoderModel
    with_head = transformers.MODEL_FOR_MASKED_LM_MAPPING.get(type(config), None)
    return with_head if with_head and lm_head and _head_modules(table) else transformers.MODEL_MAPPING[type(config)]


def _wrap(model: nn.Module, table: TokenTable, where: str | Path) -> Trunk:
    """A model of transformers without what no encoder needs: T5EncoderModel's second name of the embedding, poolers.

    InputError where the tokenizer has ids that the word embedding has no row for.
    """
    parts = [getattr(model, name, None) for name in _head_modules(table)]
    head = nn.Sequential(*parts) if parts and None not in parts else None
    base = model.encoder if model.config.model_type == "t5" else model.base_model
    if isinstance(getattr(base, "pooler", None), nn.Module):
        base.pooler = None
    rows = base.get_input_embeddings().num_embeddings
    largest = max(*table.ids, *table.columns, *table.prefix, *table.suffix, table.pad_id)
    if largest >= rows:
        raise InputError(f"{where}: vocab_size {rows}, but the tokenizer has the id {largest}")
    return Trunk(base.eval(), table, head)


def _load(
    config: object, table: TokenTable, state: dict[str, Tensor], lm_head: bool, path: Path
) -> tuple[Trunk, tuple[str, ...]]:
    """The trunk with a file's weights; a head that is not whole in the file is left out."""
    trunk, missing, notes = _load_once(_model_class(config, table, lm_head), config, table, state, path)
    if trunk.lm_head is not None and missing:
        trunk, missing, notes = _load_once(_model_class(config, table, False), config, table, state, path)
    if missing:
        raise InputError(f"{path}: {missing[0]} is missing ({len(missing)} of the names that the encoder needs are)")
    return trunk, notes


def _load_once(
    model_class: type, config: object, table: TokenTable, state: dict[str, Tensor], path: Path
) -> tuple[Trunk, list[str], tuple[str, ...]]:
    """(the trunk, names that the file lacks, notes). transformers is given no path, so it opens no file."""
    try:
        with quietly(), torch.device("meta"):
            expected = model_class(config).state_dict()
        _check_claims(state, expected, f"{model_class.base_model_prefix}.", path)
        with quietly():
            model, report = model_class.from_pretrained(
                None, config=config, state_dict=dict(state), dtype=torch.float32, **LOADING
            )
    except InputError:
        raise
    except Exception as error:  # sizes from which no model can be made
        reason = _last_line(error)
        raise InputError(f"{path}: no encoder can be made of {CONFIG_NAME} and these weights ({reason})") from None
    if report["mismatched_keys"]:
        name, actual, right = min(report["mismatched_keys"])
        raise _wrong_shape(path, name, actual, right)
    missing = sorted(name for name in report["missing_keys"] if "pooler." not in name)
    unused = sorted(report["unexpected_keys"])
    notes = (f"{path}: {len(unused)} tensors left out, no part of the encoder ({unused[0]} ...)",) if unused else ()
    return _wrap(model, table, path), missing, notes


def _check_claims(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], prefix: str, path: Path) -> None:
    """InputError for other sizes or kinds of number than the file's, before memory is taken for them, and for a layer
    too many in it.

    Names that transformers spells otherwise today are passed over: their sizes are compared when it has loaded them.
    """
    kinds = {NUMBER.sub(".N.", name) for name in expected}
    for name, tensor in state.items():
        spellings = (name, name.removeprefix(prefix), prefix + name)
        own = next((expected[spelling] for spelling in spellings if spelling in expected), None)
        if own is None and any(NUMBER.sub(".N.", spelling) in kinds for spelling in spellings):
            raise InputError(f"{path}: {name} is of a layer that {CONFIG_NAME} does not give")
        if own is not None and own.shape != tensor.shape:
            raise _wrong_shape(path, name, tensor.shape, own.shape)
        if own is not None and own.is_floating_point() != tensor.is_floating_point():
            raise InputError(f"{path}: {name} holds {tensor.dtype}, but {CONFIG_NAME} gives {own.dtype}")


def _wrong_shape(path: Path, name: str, actual: Sequence[int], right: Sequence[int]) -> InputError:
    return InputError(f"{path}: {name} has shape {list(actual)}, but {CONFIG_NAME} gives {list(right)}")


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """transformers without its progress bars and reports, which are put back afterwards."""
    from transformers.utils import logging as messages

    level, bars = messages.get_verbosity(), messages.is_progress_bar_enabled()
    messages.set_verbosity(logging.CRITICAL)
    messages.disable_progress_bar()
    try:
        yield
    finally:
        messages.set_verbosity(level)
        if bars:
            messages.enable_progress_bar()
