"""Safetensors files from elsewhere: names and tensors, each read when it is asked for."""

from collections.abc import Callable
from pathlib import Path

from proteinlm.errors import InputError


def open_safetensors(path: str | Path) -> tuple[list[str], Callable]:
    """(the names, a function from a name to its tensor); InputError for a file that is not whole."""
    from safetensors import safe_open

    try:
        file = safe_open(str(path), framework="pt")
        return list(file.keys()), file.get_tensor
    except Exception as error:  # its kinds of error differ from version to version
        if isinstance(error, OSError) and error.filename is not None:
            raise
        raise InputError(f"{path}: not a whole safetensors file ({str(error)[:120]})") from None
