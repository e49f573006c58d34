"""Whole runs on a GPU: twenty steps in every precision beside the CPU's, repeated and resumed bit for bit, embeddings.

Without a GPU they are skipped; --gpu-tests-on-cpu runs them there, which shows that they can pass.
"""

import os

import numpy as np
import pytest
import torch
from tiny_runs import losses, trainer, weights

from proteinlm.encoder import Encoder
from proteinlm.network.config import ModelConfig
from proteinlm.network.model import ProteinBert, initialize
from proteinlm.tokenizer import build_tokenizer

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
PLAIN = ("--train-iters", "20", "--hidden-dropout", "0", "--attention-dropout", "0", "--eval-interval", "1000")
PRECISIONS = {
    "fp32": ((), 1e-3),
    "tf32": (("--tf32",), 5e-3),
    "bf16": (("--bf16",), 0.02),
    "bf16 stream": (("--bf16", "--no-fp32-residual-connection"), 0.02),
    "fp16": (("--fp16", "--initial-loss-scale", "1024"), 0.02),
}


@pytest.fixture(autouse=True)
def settings():
    """What runs set for the whole process."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    precision = torch.get_float32_matmul_precision()
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision(precision)


@pytest.fixture(scope="module")
def on_cpu(prefix, tmp_path_factory) -> np.ndarray:
    """The losses of twenty steps in fp32."""
    folder = tmp_path_factory.mktemp("cpu") / "run"
    trainer(prefix, folder, *PLAIN).run()
    return np.array(losses(folder))


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", PRECISIONS)
def test_twenty_steps_have_the_losses_of_the_cpu(name, compiled, prefix, tmp_path, on_cpu, device):
    if compiled and device == "cpu":
        pytest.skip("layers are compiled on a GPU")
    flags, tolerance = PRECISIONS[name]
    compiling = "--compile" if compiled else "--no-compile"
    trainer(prefix, tmp_path / "run", *PLAIN, *flags, compiling, "--device", device).run()
    run = np.array(losses(tmp_path / "run"))
    assert run.shape == on_cpu.shape == (20,)
    assert np.abs(run - on_cpu).max() < tolerance


def test_the_tolerances_tell_another_learning_rate(prefix, tmp_path, on_cpu, device):
    trainer(prefix, tmp_path / "run", *PLAIN, "--lr", "1e-3", "--device", device).run()
    assert np.abs(np.array(losses(tmp_path / "run")) - on_cpu).max() > 2 * max(t for _, t in PRECISIONS.values())


@pytest.mark.parametrize("flags", [("--bf16",), ("--bf16", "--no-compile"), ()])
def test_a_deterministic_run_repeats_and_resumes_bit_for_bit(flags, prefix, tmp_path, device):
    """Dropout included. The resumed run is a run of its own, as after a crash."""
    words = ("--train-iters", "12", *flags, "--deterministic", "--device", device, "--eval-interval", "1000")
    runs = []
    for name in ("first", "second"):
        runs.append(trainer(prefix, tmp_path / name, *words))
        runs[-1].run()
    assert losses(tmp_path / "first") == losses(tmp_path / "second")
    assert weights(runs[0]).equal(weights(runs[1]))
    trainer(prefix, tmp_path / "cut", *words, "--exit-interval", "5").run()
    resumed = trainer(prefix, tmp_path / "cut", *words, "--load", str(tmp_path / "cut"))
    resumed.run()
    assert losses(tmp_path / "cut") == losses(tmp_path / "first")
    assert weights(resumed).equal(weights(runs[0]))
    other = trainer(prefix, tmp_path / "other", *words, "--seed", "5")
    other.run()
    assert not weights(other).equal(weights(runs[0]))


def test_embeddings_equal_the_cpus(device):
    model = ProteinBert(ModelConfig(64, 3, 4, 256, init_method_std=0.2))
    initialize(model, 3)
    rng = np.random.default_rng(0)
    proteins = ["".join(rng.choice(list("ACDEFGHIKLMNPQRSTVWY"), length)) for length in (1, 7, 64, 200, 30, 129)]

    def embed(place: str, dtype: torch.dtype) -> np.ndarray:
        encoder = Encoder(model, build_tokenizer(), torch.device(place), dtype, "a test")
        return encoder.embed(proteins, "mean", quiet=True)

    exact = embed("cpu", torch.float32)
    assert np.abs(embed(device, torch.float32) - exact).max() < 1e-3
    half = embed(device, torch.bfloat16)
    assert np.linalg.norm(half - exact) / np.linalg.norm(exact) < 0.05
    assert np.abs(exact - np.roll(exact, 1, axis=0)).max() > 0.1  # another protein's
