"""The log of a run, of pretraining or finetuning: JSON lines, and TensorBoard where it is asked for.

`metrics.jsonl` has one line per logged iteration and one per evaluation. A line is written in one piece, and a resumed
run drops the lines after the checkpoint it resumes from, so that the file always tells one history.
"""

import json
import math
from pathlib import Path

from proteinlm.errors import InputError
from proteinlm.files import write_text


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
