"""What a run reports: JSON lines, TensorBoard, tokens per second with and without padding, and MFU.

`metrics.jsonl` has one line per logged iteration and one per evaluation. A line is written in one piece, and a resumed
run drops the lines after the checkpoint it resumes from, so that the file always tells one history.
"""

import json
import math
from pathlib import Path

import torch

from pretrain.errors import InputError
from pretrain.files import write_text
from pretrain.model import ModelConfig

# Dense peak of the tensor cores in FLOP/s for bf16/fp16, from NVIDIA's data sheets (without sparsity). The longest name
# that the device's own name contains decides. An unknown device has no MFU rather than a wrong one.
PEAK_FLOPS = {
    "V100": 125e12,
    "A100": 312e12,
    "A800": 312e12,
    "A40": 149.7e12,
    "L40S": 362e12,
    "L4": 121e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "H800": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
}


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s of the device in half precision; None where unknown (CPUs, other GPUs, fp32 arithmetic)."""
    if device.type != "cuda" or dtype not in (torch.float16, torch.bfloat16):
        return None
    name = torch.cuda.get_device_name(device)
    known = [key for key in PEAK_FLOPS if key in name]
    return PEAK_FLOPS[max(known, key=len)] if known else None


def training_flops(config: ModelConfig, real_tokens: int, sum_squared_lengths: int, masked: int) -> float:
    """FLOPs of forward and backward over real tokens: matrix products only, attention per protein, no recomputation.

    A product of [m, k] and [k, n] costs 2 m k n; the backward pass costs twice the forward one. Per layer and token:
    query_key_value 6 h^2, dense 2 h^2, MLP 4 h f; per protein of n tokens: Q K^T and P V, 4 n^2 h; the LM head on
    masked positions only: 2 h^2 + 2 h V.
    """
    h, ffn = config.hidden_size, config.ffn_hidden_size
    layers = config.num_layers * (real_tokens * (8 * h * h + 4 * h * ffn) + 4 * h * sum_squared_lengths)
    head = masked * (2 * h * h + 2 * h * config.padded_vocab_size)
    return 3.0 * (layers + head)


class MetricsLog:
    """Append-only log of a run: `<directory>/metrics.jsonl`, and TensorBoard when a directory for it is given."""

    def __init__(self, directory: str | Path, tensorboard_dir: str | Path | None = None, resume_at: int | None = None):
        self.path = Path(directory) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if resume_at is not None and self.path.exists():
            self._drop_after(resume_at)
        self._file = self.path.open("a", encoding="utf-8")
        self._writer = None
        if tensorboard_dir:
            from torch.utils.tensorboard import SummaryWriter

            purge = None if resume_at is None else resume_at + 1
            self._writer = SummaryWriter(str(tensorboard_dir), purge_step=purge)

    def _drop_after(self, iteration: int) -> None:
        kept = []
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                if json.loads(line)["iteration"] <= iteration:
                    kept.append(line + "\n")
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                # A line cut short by a kill belongs after the checkpoint; anything else is not our file.
                if not line.startswith('{"'):
                    raise InputError(f"{self.path}: line {number} is not a metrics line; move the file away") from error
        write_text(self.path, "".join(kept))

    def write(self, values: dict) -> None:
        """Append one line. `iteration` is required; a NaN or an infinity becomes null, which JSON can carry."""
        clean = {key: _finite(value) for key, value in values.items()}
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()
        if self._writer:
            prefix = f"{values['dataset']}/" if "dataset" in values else ""
            for key, value in clean.items():
                if isinstance(value, int | float) and key != "iteration":
                    self._writer.add_scalar(prefix + key, value, values["iteration"])

    def close(self) -> None:
        self._file.close()
        if self._writer:
            self._writer.close()


class NoLog:
    """Stands where `MetricsLog` does on the processes that do not write."""

    def write(self, values: dict) -> None:
        pass

    def close(self) -> None:
        pass


def _finite(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value
