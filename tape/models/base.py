"""songlab's ProteinConfig and ProteinModel: what every model class of this package, and of its users, derives from.

    class MyConfig(ProteinConfig): ...             arguments with defaults, then super().__init__(**kwargs)
    class MyModel(ProteinModel):
        config_class, base_model_prefix = MyConfig, "my_trunk"
    model = MyForValuePrediction.from_pretrained("runs/mine")        # config.json + model.safetensors

A model is a trunk (the attribute named by base_model_prefix) and a head. What must hold: loading checks every name and
shape of the file. A file without a head fills the trunk and says so; a file whose head is another's is refused.
"""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from proteinlm.errors import InputError
from proteinlm.files import write_json, write_text
from proteinlm.model_dir.files import CONFIG_NAME, check_finite, check_tensors, count_not_finite, read_config, same
from proteinlm.model_dir.find import find_model
from proteinlm.model_dir.weights import WeightFiles, write_weights
from tape.data.users_code import calling, refuse

logger = logging.getLogger(__name__)

PRETRAINING_HEADS = ("mlm.", "feedforward.")  # a task's model has no use for these


class ProteinConfig:
    """The keys of config.json as attributes. Unknown keys are kept and written back."""

    def __init__(self, **values):
        switches = dict.fromkeys(("output_attentions", "output_hidden_states", "torchscript"), False)
        self.__dict__.update({"finetuning_task": None, "num_labels": 2} | switches | values)

    @classmethod
    def from_pretrained(cls, directory: str | Path, **overrides) -> "ProteinConfig":
        """From a model directory, its name (proteinlm.model_dir.find) or a JSON file."""
        path = find_model(directory)
        with naming(path / CONFIG_NAME if path.is_dir() else path, cls):
            return cls.from_dict(read_config(path) | overrides)

    @classmethod
    def from_json_file(cls, path: str | Path) -> "ProteinConfig":
        with naming(path, cls):
            return cls.from_dict(read_config(path))

    @classmethod
    def from_dict(cls, values: Mapping) -> "ProteinConfig":
        config = cls()  # a subclass sets its own arguments, so they must have defaults
        config.__dict__.update(values)
        return config

    def to_dict(self) -> dict:
        return dict(self.__dict__)

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def to_json_file(self, path: str | Path) -> None:
        write_text(path, self.to_json_string())

    def save_pretrained(self, directory: str | Path) -> None:
        self.to_json_file(Path(directory) / CONFIG_NAME)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.__dict__ == other.__dict__

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.to_json_string()})"


@contextlib.contextmanager
def naming(file: str | Path | None, config_class: type) -> Iterator[None]:
    """A complaint about a configuration's values, which begins with its class, names the file they are from instead."""
    prefix = f"{config_class.__name__}: "
    try:
        yield
    except InputError as error:
        if file is None or not str(error).startswith(prefix):
            raise
        raise InputError(f"{file}: {str(error).removeprefix(prefix)}") from error


class WeightFile(NamedTuple):
    """A model directory as a class reads it."""

    config: dict  # config.json, with what the caller asked for instead
    path: Path  # the file of weights, for messages
    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()  # what was left out or changed, one sentence each


class ProteinModel(nn.Module):
    """Loading, saving and first weights. Subclasses set config_class and base_model_prefix."""

    config_class: ClassVar[type] = ProteinConfig
    base_model_prefix: ClassVar[str] = ""
    sizes_first: ClassVar[bool] = False  # a file's sizes are compared before memory is taken for those of its config
    missing_head: ClassVar[str] = "no weights of a task head; finetune this model first"  # to who asks for a head
    load_report: tuple[str, ...] = ()  # what from_pretrained left out or could not find

    def __init__(self, config: ProteinConfig):
        super().__init__()
        if not isinstance(config, ProteinConfig):
            raise ValueError(f"{type(self).__name__} takes a ProteinConfig, not {type(config).__name__}")
        self.config = config

    @property
    def base_model(self) -> nn.Module:
        """The trunk, or the model itself where it is one."""
        return getattr(self, self.base_model_prefix, self) if self.base_model_prefix else self

    def init_weights(self) -> None:
        """Apply the subclass's `_init_weights` to every module, as songlab's models do at the end of __init__."""
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        """First weights of one module; torch's own unless a subclass says otherwise."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_dir: str | Path | None = None,
        config: ProteinConfig | None = None,
        require_head: bool = False,
        **overrides,
    ) -> "ProteinModel":
        """A model in evaluation mode with a directory's weights, or random ones (torch's global seed) if None.

        pretrained_dir: a path or a name such as "bert-base" (proteinlm.model_dir.find). overrides: keys of config.json,
        e.g. num_labels. require_head: refuse a directory without this class's head, for evaluation. `load_report` of
        the model says what was left out.
        """
        values = (dict(vars(config)) if config else {}) | overrides
        if pretrained_dir is None:
            if require_head:
                raise InputError("from_pretrained: a trained head was asked for, but no directory was given")
            return cls._made(values)
        directory = find_model(pretrained_dir)
        file = cls._read(directory, values, overrides)
        with naming(directory / CONFIG_NAME if directory.is_dir() else directory, cls.config_class):
            if cls.sizes_first:
                with torch.device("meta"):
                    cls._made(file.config)._match(file.tensors, file.path, require_head)
            model = cls._made(file.config)
        state, notes = model._match(file.tensors, file.path, require_head)
        model.load_state_dict(state)
        model.load_report = (*file.notes, *notes)
        for note in model.load_report:
            logger.warning("%s", note)
        return model

    @classmethod
    def _made(cls, values: Mapping) -> "ProteinModel":
        with calling(cls, "__init__"):
            model = cls(cls.config_class.from_dict(values))
        if not hasattr(model, "_modules"):
            refuse(cls, "__init__ should call super().__init__(config)")
        with calling(cls, "__init__"):  # its parts are modules too
            return model.eval()

    @classmethod
    def _read(cls, directory: Path, values: dict, overrides: dict) -> WeightFile:
        """A directory under this class's names; a hook for classes whose files have several spellings.

        values: what replaces keys of config.json; overrides: those of them that from_pretrained was called with.
        """
        config, weights = read_config(directory) | values, WeightFiles(directory)
        tensors = weights.get_all()
        check_finite(count_not_finite(tensors), weights.path)
        return WeightFile(config, weights.path, tensors)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json and model.safetensors (the config last: a directory with one is whole)."""
        write_weights(Path(directory), self.state_dict())
        write_json(Path(directory) / CONFIG_NAME, self.config.to_dict())

    def _tied(self) -> dict[str, str]:
        """Name -> the earlier name of the same parameter, where two modules share one."""
        first: dict[int, str] = {}
        names = {name: first.setdefault(id(p), name) for name, p in self.named_parameters(remove_duplicate=False)}
        return {name: earlier for name, earlier in names.items() if name != earlier}

    def _match(self, tensors: Mapping, path: Path, require_head: bool) -> tuple[dict[str, Tensor], list[str]]:
        """(the whole state dict, notes) from a file's tensors.

        Of two names of one parameter a file has both alike, or the first alone.
        """
        own, prefix, tied = self.state_dict(), f"{self.base_model_prefix}.", self._tied()
        has_trunk_inside = any(name.startswith(prefix) for name in own)
        notes: list[str] = []
        if any(name.startswith(prefix) for name in tensors) and not has_trunk_inside:  # a task's file into a bare trunk
            left_out = [name for name in tensors if not name.startswith(prefix)]
            notes += [f"{path}: heads left out ({len(left_out)} tensors, {left_out[0]} ...)"] if left_out else []
            tensors = {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}
        elif has_trunk_inside and not any(name.startswith(prefix) for name in tensors):  # a bare trunk's file
            tensors = {prefix + name: value for name, value in tensors.items()}
        left_out = [name for name in tensors if name not in own and name.startswith(PRETRAINING_HEADS)]
        if left_out:
            notes.append(f"{path}: the head of pretraining left out ({len(left_out)} tensors, {left_out[0]} ...)")
            tensors = {name: value for name, value in tensors.items() if name not in left_out}
        tensors = dict(tensors)
        head = [name for name in own if has_trunk_inside and not name.startswith(prefix)]
        other = next((name for name in tensors if name not in own), None)
        if head and not any(name in tensors for name in head):
            if other and not other.startswith(prefix):
                raise InputError(f"{path}: {head[0]} of {type(self).__name__} is missing; the file has {other}")
            if require_head and not other:
                raise InputError(f"{path}: {self.missing_head}")
            notes.append(f"{path}: no task head in the file, the head starts from random weights")
            tensors |= {name: own[name] for name in head if name not in tied}
        for name, earlier in tied.items():
            if earlier in tensors and not same(tensors.setdefault(name, tensors[earlier]), tensors[earlier]):
                raise InputError(f"{path}: {name} differs from {earlier}; they should be one matrix")
        check_tensors(tensors, own, path, who_needs=f"{type(self).__name__} needs")
        return tensors, notes
