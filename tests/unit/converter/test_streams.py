"""Weights to disk one tensor at a time, read back by safetensors itself."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from converter.streams import WeightFiles, write_weights
from proteinlm.errors import InputError


def apart(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """A tensor's even and odd rows under two names: views that are not contiguous."""
    return {f"{name}.even": tensor[::2], f"{name}.odd": tensor[1::2]} if tensor.dim() == 2 else {name: tensor}


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_reads_what_is_written(tmp_path, dtype):
    tensors = {"a": torch.randn(5, 3), "b": torch.randn(7).half(), "c": torch.zeros(0, 4), "d": torch.randn(1, 1)}
    write_weights(tmp_path, tensors, apart, dtype, torch_file=True)
    files = (tmp_path / "model.safetensors", tmp_path / "pytorch_model.bin")
    expected = {k: v.to(dtype or t.dtype) for n, t in tensors.items() for k, v in apart(n, t).items()}
    for found in (load_file(files[0]), torch.load(files[1], weights_only=True)):
        assert set(found) == set(expected)
        for name, tensor in expected.items():
            assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_safetensors_come_before_bin(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    assert WeightFiles(tmp_path).get("a").tolist() == [1, 1]
    (tmp_path / "model.safetensors").unlink()
    assert WeightFiles(tmp_path).get("a").tolist() == [0, 0]
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"neither model.safetensors nor pytorch_model.bin"):
        WeightFiles(tmp_path)
