"""Weights to disk one tensor at a time, read back by safetensors itself."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from proteinlm.errors import InputError
from proteinlm.files import write_json
from proteinlm.model_dir.weights import DTYPE_NAMES, WeightFiles, write_weights


def apart(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """A tensor's even and odd rows under two names: views that are not contiguous."""
    return {f"{name}.even": tensor[::2], f"{name}.odd": tensor[1::2]} if tensor.dim() == 2 else {name: tensor}


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float16, torch.bfloat16])
def test_safetensors_reads_what_is_written(tmp_path, dtype):
    tensors = {"a": torch.randn(5, 3), "b": torch.randn(7).half(), "c": torch.zeros(0, 4), "d": torch.randn(1, 1)}
    write_weights(tmp_path, tensors, apart, dtype, torch_file=True)
    files = (tmp_path / "model.safetensors", tmp_path / "pytorch_model.bin")
    expected = {k: v.to(dtype or t.dtype) for n, t in tensors.items() for k, v in apart(n, t).items()}
    for stored in (load_file(files[0]), torch.load(files[1], weights_only=True)):
        assert set(stored) == set(expected)
        for name, tensor in expected.items():
            assert stored[name].dtype == tensor.dtype and torch.equal(stored[name], tensor), name


def test_the_file_is_what_safetensors_itself_writes(tmp_path):
    """To the last byte, so that a model saved again has the checksum that its results name."""
    tensors = {f"{name}.ü": torch.ones(3, 2).to(dtype) for name, dtype in zip("hbgfaecd", DTYPE_NAMES, strict=True)}
    tensors |= {"z": torch.randn(5), "a": torch.randn(2), "empty": torch.zeros(0, 3), "scalar": torch.tensor(2.0)}
    write_weights(tmp_path, tensors)
    save_file(tensors, tmp_path / "reference", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "reference").read_bytes()


def test_a_state_dict_on_the_way_of_training(tmp_path):
    """Parameters that need gradients, one matrix under two names, counters; the directory need not be there yet."""
    shared = torch.nn.Parameter(torch.ones(2, 3))
    tensors = {"words": shared, "decoder": shared, "count": torch.tensor(5), "flags": torch.tensor([True, False])}
    write_weights(tmp_path / "new", tensors)
    loaded = load_file(tmp_path / "new/model.safetensors")
    assert set(loaded) == set(tensors)
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor), name


def test_one_file_or_several(tmp_path):
    """An index names the file of each tensor; a tensor that is not where it says, or twice, is refused."""
    save_file({"a": torch.ones(2)}, tmp_path / "1.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "2.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    write_json(index, {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})
    weights = WeightFiles(tmp_path)
    assert weights.path == index and {name: t.tolist() for name, t in weights.get_all().items()} == {
        "a": [1, 1],
        "b": [0, 0],
    }
    write_json(index, {"weight_map": {"a": "2.safetensors"}})
    with pytest.raises(InputError, match=r"a should be in 2\.safetensors"):
        WeightFiles(tmp_path)
    save_file({"a": torch.ones(2)}, tmp_path / "2.safetensors")
    write_json(index, {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}})
    with pytest.raises(InputError, match=r"a is in 1\.safetensors too"):
        WeightFiles(tmp_path)


def test_safetensors_come_before_bin(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    torch.save({"a": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    assert WeightFiles(tmp_path).get("a").tolist() == [1, 1]
    (tmp_path / "model.safetensors").unlink()
    assert WeightFiles(tmp_path).get("a").tolist() == [0, 0]
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"neither model.safetensors nor pytorch_model.bin"):
        WeightFiles(tmp_path)
