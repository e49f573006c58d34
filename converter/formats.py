"""What a conversion needs to know of a kind of checkpoint. Another format is one module that makes a `Format` of
its functions, and one line in the table of `converter/sources.py`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from converter.loaders import LoadedModel
from converter.model import PortableModel
from proteinlm.model_dir.files import CONFIG_NAME
from proteinlm.untrusted.json_files import read_json


@dataclass(frozen=True)
class ReadOptions:
    """What the user adds to the path of a source. A format that makes no use of an option refuses it."""

    iteration: int | None = None  # of a run that holds several; None: the latest
    num_attention_heads: int | None = None  # where the files do not say it and no tensor shows it


@dataclass(frozen=True)
class WriteOptions:
    """How a result is written."""

    dtype: torch.dtype | None = None  # to round to; None: each tensor's own
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    torch_file: bool = False  # write pytorch_model.bin too
    last_use: bool = False  # the caller is done with the model: its memory may be given back while it is written


@dataclass(frozen=True)
class Format:
    """One kind of checkpoint. Whoever reads or writes it goes through these functions.

    recognises: whether a path (that exists) holds it, judged by what is in it. read: a checked model, or an InputError.
    prepare: the model as `write` stores it (vocabulary, LM head), or an InputError that names what the format cannot
    hold; tensors are not rounded yet. write: into an empty directory. load: the result (a directory, and the model read
    back from it) opened by the format's own software; None where that is not installed.
    """

    name: str
    recognises: Callable[[Path], bool]
    read: Callable[[Path, ReadOptions], PortableModel]
    prepare: Callable[[PortableModel, WriteOptions], PortableModel]
    write: Callable[[PortableModel, Path, WriteOptions], None]
    load: Callable[[Path, PortableModel], LoadedModel | None] | None = None  # None: only this project's model runs it
    model_type: str | None = None  # in config.json, where the format has one
    reads_files: bool = False  # --load may be a file
    has_iterations: bool = False  # --iteration
    asks_heads: bool = False  # --num-attention-heads
    is_parallel: bool = False  # --tensor-model-parallel-size, --pipeline-model-parallel-size
    has_torch_file: bool = False  # --bin


def has_model_type(name: str) -> Callable[[Path], bool]:
    """`recognises` for a format that config.json's model_type names."""
    return lambda path: (model_dir_config(path) or {}).get("model_type") == name


def model_dir_config(path: Path) -> dict | None:
    """config.json of a model directory; None where there is none."""
    return read_json(path / CONFIG_NAME) if (path / CONFIG_NAME).is_file() else None
