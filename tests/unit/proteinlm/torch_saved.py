"""Values as torch.save writes them, in memory and on disk."""

import io
from pathlib import Path

import torch


def torch_bytes(value, **kwargs) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(value, file, **kwargs)
    file.seek(0)
    return file


def torch_file(path: Path, value, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path
