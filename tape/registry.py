"""TAPE's registry (songlab's names), and the Task that a command line's task and model type name.

    from tape.registry import registry

    @registry.register_task("my_task", num_labels=8)              a dataset class becomes a task
    class MyDataset(Dataset): ...
    registry.register_task_model("my_task", "transformer", ProteinBertForSequenceToSequenceClassification)

    task = resolve_task("my_task", "transformer")                 what tape-train, tape-eval and tape-predict run
    load_plugin("my_task.py")                                     the flag --plugin (tape.runs.plugins)

What must hold: registering a name twice, or a model of an unknown task, is a KeyError, as in songlab's package; an
unknown name in a command is an InputError; a plugin that fails leaves the registry as it was.
"""

import contextlib
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import torch

from proteinlm.errors import InputError, did_you_mean
from tape import metrics
from tape.data.users_code import UsersCodeError, describe
from tape.models.zoo import MODELS
from tape.own_data.data import OwnData
from tape.runs.names import require_model_type
from tape.tasks import MORE_TASKS, TASKS, Task
from tape.tasks.own_data import KINDS, own_task
from tape.tasks.plugin import plugin_task, registered_metrics

BUILT_IN = TASKS | MORE_TASKS
# Task -> which of a model type's classes it needs (keys of tape.models.zoo.MODELS[model_type]).
TASK_KINDS = {name: getattr(task.model, "kind", name) for name, task in BUILT_IN.items()}


class TAPETaskSpec:
    """A task's name, dataset class, number of labels (-1: not a classification) and models by model type."""

    def __init__(self, name: str, dataset: type, num_labels: int = -1, models: dict[str, type] | None = None):
        self.name, self.dataset, self.num_labels = name, dataset, num_labels
        self.models: dict[str, type] = {} if models is None else models

    def register_model(self, model_name: str, model_cls: type | None = None):
        """Add a model class; without it, a decorator. KeyError if the name is taken."""
        if model_cls is None:
            return lambda cls: self.register_model(model_name, cls)
        if model_name in self.models:
            raise KeyError(f"model {model_name!r} of task {self.name!r} is already registered")
        self.models[model_name] = model_cls
        return model_cls

    def get_model(self, model_name: str) -> type:
        return self.models[model_name]


class Registry:
    """songlab's central list of tasks and metrics. Every method is a class method: there is one registry."""

    task_name_mapping: ClassVar[dict[str, TAPETaskSpec]] = {}
    metric_name_mapping: ClassVar[dict[str, Callable]] = {}

    @classmethod
    def register_task(
        cls, task_name: str, num_labels: int = -1, dataset: type | None = None, models: dict[str, type] | None = None
    ):
        """Make a task of a dataset class; without `dataset`, a decorator. Returns the dataset class."""
        if dataset is None:
            return lambda dataset: cls.register_task(task_name, num_labels, dataset, models)
        return cls.register_task_spec(task_name, TAPETaskSpec(task_name, dataset, num_labels, models)).dataset

    @classmethod
    def register_task_spec(cls, task_name: str, task_spec: TAPETaskSpec | None = None):
        """Add a finished TAPETaskSpec; without it, a decorator. KeyError if the name is taken."""
        if task_spec is None:
            return lambda spec: cls.register_task_spec(task_name, spec)
        if task_name in cls.task_name_mapping:
            raise KeyError(f"task {task_name!r} is already registered")
        cls.task_name_mapping[task_name] = task_spec
        return task_spec

    @classmethod
    def register_task_model(cls, task_name: str, model_name: str, model_cls: type | None = None):
        """Add a model class to a registered task; without it, a decorator. KeyError for an unknown task."""
        if task_name not in cls.task_name_mapping:
            raise KeyError(f"task {task_name!r} is not registered; register the task before its models")
        return cls.task_name_mapping[task_name].register_model(model_name, model_cls)

    @classmethod
    def register_metric(cls, name: str) -> Callable[[Callable], Callable]:
        """A decorator for a function of (target, prediction): two lists with an entry a protein."""

        def wrap(function: Callable) -> Callable:
            assert callable(function), "a metric must be callable"
            cls.metric_name_mapping[name] = function
            return function

        return wrap

    @classmethod
    def get_task_spec(cls, name: str) -> TAPETaskSpec:
        return cls.task_name_mapping[name]

    @classmethod
    def get_metric(cls, name: str) -> Callable:
        return cls.metric_name_mapping[name]

    @classmethod
    def get_task_model(
        cls,
        model_name: str,
        task_name: str,
        config_file: str | Path | None = None,
        load_dir: str | Path | None = None,
    ) -> torch.nn.Module:
        """The model of a task: a directory's weights, or random ones (of `config_file`, or of the default shape).

        On the GPU where there is one (songlab's needs one).
        """
        spec = cls.get_task_spec(task_name)
        model_cls = spec.get_model(model_name)
        if load_dir is not None:
            model = model_cls.from_pretrained(load_dir, num_labels=spec.num_labels)
        else:
            config_class = model_cls.config_class
            config = config_class() if config_file is None else config_class.from_json_file(config_file)
            config.num_labels = spec.num_labels
            model = model_cls(config)
        return model.cuda() if torch.cuda.is_available() else model


registry = Registry()


def _register_built_in() -> None:
    """TAPE's tasks with their models, and TAPE's metrics."""
    for name, task in BUILT_IN.items():
        kind = TASK_KINDS[name]
        models = {model_type: classes[kind] for model_type, classes in MODELS.items() if kind in classes}
        registry.register_task(name, getattr(task.dataset, "num_labels", -1), task.dataset, models)
    for name, function in metrics.TAPE_METRICS.items():
        registry.register_metric(name)(function)


def task_names() -> tuple[str, ...]:
    """Every registered task, ours first, then the plugins'."""
    return tuple(registry.task_name_mapping)


def model_types() -> tuple[str, ...]:
    """Every model type that some task has, ours first."""
    names = (name for spec in registry.task_name_mapping.values() for name in spec.models)
    return tuple(dict.fromkeys(("transformer", *names)))


def resolve_task(name: str, model_type: str) -> Task:
    """The Task of a command line: what it loads, trains and scores, with `.model` the class of `model_type`.

    A task of ours keeps its loss and its metrics whatever the model; a plugin's task takes loss and logits from the
    model (tape.tasks.plugin). Metrics registered by plugins are added to `.metrics`. InputError for unknown names.
    """
    if name not in registry.task_name_mapping:
        hint = did_you_mean(name, task_names()) or f"; there are {', '.join(task_names())}"
        raise InputError(f"task {name!r}: unknown{hint}")
    spec = registry.get_task_spec(name)
    model = _model_of(spec, model_type)
    added = {key: f for key, f in registry.metric_name_mapping.items() if metrics.TAPE_METRICS.get(key) is not f}
    task = BUILT_IN.get(name)
    task = plugin_task(spec, model) if task is None or spec.dataset is not task.dataset else replace(task, model=model)
    return replace(task, metrics=dict(task.metrics) | registered_metrics(added, task.metrics))


def own_data_task(data: OwnData, model_type: str) -> Task:
    """The task of a user's table, with the class that `model_type` has for TAPE's task of the same kind."""
    like = next(name for name, kind in TASK_KINDS.items() if kind == KINDS[data.kind])
    return own_task(data, _model_of(registry.get_task_spec(like), model_type))


def resolve_trained_task(name: str, model_type: str) -> Task:
    """`resolve_task` for the commands that train and score: `embed` is no task for them."""
    if name == "embed":
        raise InputError("task embed: nothing to train or to score; tape-embed writes embeddings")
    return resolve_task(name, model_type)


def _model_of(spec: TAPETaskSpec, model_type: str) -> type:
    if model_type in spec.models:
        model = spec.get_model(model_type)
        if not hasattr(model, "from_pretrained"):
            raise InputError(f"model {model_type!r} of {spec.name}: {model} should be a subclass of tape.ProteinModel")
        return model
    require_model_type(model_type, model_types())
    raise InputError(f"task {spec.name} has no model {model_type!r}; it has {', '.join(spec.models) or 'none'}")


# ---- plugins: Python files that register tasks, models and metrics

_plugins: dict[Path, ModuleType] = {}


def load_plugin(path: str | Path) -> None:
    """Import a .py file, once. What it registers stays; if it fails, nothing of it does and an InputError says why."""
    path = Path(path)
    place = path.resolve()
    if place in _plugins:
        return
    if path.suffix != ".py" or not place.is_file():
        raise InputError(f"--plugin {path}: should be a Python file (.py)")
    # A name of its own that workers find in sys.modules; two files called my_task.py do not collide.
    name = f"tape_plugin_{hashlib.sha256(str(place).encode()).hexdigest()[:8]}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, place)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _all_or_nothing():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsersCodeError(f"--plugin {path}: {describe(error, place)}") from error
    _plugins[place] = module


@contextlib.contextmanager
def _all_or_nothing() -> Iterator[None]:
    """What is registered inside stays only if nothing fails."""
    tasks, functions = registry.task_name_mapping, registry.metric_name_mapping
    before = [(mapping, dict(mapping)) for mapping in (tasks, functions, *(spec.models for spec in tasks.values()))]
    try:
        yield
    except BaseException:
        for mapping, content in before:
            mapping.clear()
            mapping.update(content)
        raise


_register_built_in()
