"""The log of a run, of pretraining or finetuning: JSON lines, and TensorBoard where it is asked for.

`metrics.jsonl` has one line per logged iteration and one per evaluation. A line is written in one piece, and a run
drops the lines after the checkpoint that it resumes from (all lines where it resumes from none) and what a kill cut
short, so that the file is always one history.
"""

import json
import math
from pathlib import Path

from proteinlm.errors import InputError
from proteinlm.files import write_text


class MetricsLog:
    """The log of one run: `<directory>/metrics.jsonl`, and TensorBoard when a directory for it is given.

    resume_at: the iteration resumed from, None where the run starts at its beginning. dropped: the earlier lines that
    this removed.
    """

    def __init__(self, directory: str | Path, tensorboard_dir: str | Path | None = None, resume_at: int | None = None):
        self.path = Path(directory) / "metrics.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        last = -1 if resume_at is None else resume_at
        self.dropped = self._drop_after(last) if self.path.exists() else 0
        self._file = self.path.open("a", encoding="utf-8")
        self._writer = None
        if tensorboard_dir:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(tensorboard_dir), purge_step=last + 1)

    def _drop_after(self, iteration: int) -> int:
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        history = []
        for number, line in enumerate(lines, 1):
            try:
                if json.loads(line)["iteration"] <= iteration:
                    history.append(line + "\n")
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                # A line cut short by a kill belongs after the checkpoint; anything else is not our file.
                if not '{"'.startswith(line[:2]):
                    raise InputError(f"{self.path}: line {number} is not a metrics line; move the file away") from error
        write_text(self.path, "".join(history))
        return len(lines) - len(history)

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
