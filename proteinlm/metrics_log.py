"""The log of a run, of pretraining or finetuning: JSON lines, and TensorBoard where it is asked for.

`metrics.jsonl` has one line per logged iteration and one per evaluation, and is always one history: a run that goes on
from a checkpoint drops the lines after it and a last line that a kill cut short; any other run moves an earlier log
aside to `metrics.jsonl.1` or the next free number.
"""

import json
import math
from itertools import count
from pathlib import Path

from proteinlm.errors import InputError
from proteinlm.files import write_text


class MetricsLog:
    """The log of one run: `<directory>/metrics.jsonl`, and TensorBoard when a directory for it is given.

    resume_at: the iteration resumed from, None or 0 where the run starts at its beginning. same_run: whether the log
    in the directory is that of the run resumed. Nothing is written, moved or made before the first line; then a notice
    says where any other log went. InputError at once for a log that is none.
    """

    def __init__(
        self,
        directory: str | Path,
        tensorboard_dir: str | Path | None = None,
        resume_at: int | None = None,
        same_run: bool = True,
    ):
        self.path, self._tensorboard_dir = Path(directory) / "metrics.jsonl", tensorboard_dir
        self._first = 0 if resume_at is None else resume_at + 1
        self._history = self._lines_up_to(resume_at) if self._is_there() and resume_at and same_run else None
        self._file = self._writer = None

    def _open(self) -> None:
        if self._history is not None:
            write_text(self.path, "".join(self._history))
            self._history = None
        elif self._is_there():
            print(f"notice: {self.path}: the log of an earlier run is now {self._move_aside()}", flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8")
        if self._tensorboard_dir:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._tensorboard_dir), purge_step=self._first)

    def _is_there(self) -> bool:
        return self.path.exists() and self.path.stat().st_size > 0

    def _move_aside(self) -> Path:
        paths = (self.path.with_suffix(f".jsonl.{number}") for number in count(1))
        return self.path.rename(next(path for path in paths if not path.exists()))

    def _lines_up_to(self, iteration: int) -> list[str]:
        # A power cut may leave NUL bytes or spaces where the last lines were to be.
        lines = self.path.read_text(encoding="utf-8", errors="replace").rstrip("\0 \t\r\n").split("\n")
        history = []
        for number, line in enumerate(lines, 1):
            try:
                values = json.loads(line)
            except ValueError:
                if number == len(lines) and '{"'.startswith(line[:2]):  # cut short: it belongs after the checkpoint
                    break
                values = None
            if not isinstance(values, dict) or not isinstance(values.get("iteration"), int):
                raise InputError(f"{self.path}: line {number} is not a metrics line; move the file away")
            if values["iteration"] <= iteration:
                history.append(line + "\n")
        return history

    def write(self, values: dict) -> None:
        """Append one line. `iteration` is required; a NaN or an infinity becomes null, which JSON can carry."""
        clean = {key: _finite(value) for key, value in values.items()}
        if self._file is None:
            self._open()
        self._file.write(json.dumps(clean) + "\n")
        self._file.flush()
        if self._writer:
            prefix = f"{values['dataset']}/" if "dataset" in values else ""
            for key, value in clean.items():
                if isinstance(value, int | float) and key != "iteration":
                    self._writer.add_scalar(prefix + key, value, values["iteration"])

    def close(self) -> None:
        for opened in (self._file, self._writer):
            if opened is not None:
                opened.close()


class NoLog:
    """Stands where `MetricsLog` does on the processes that do not write."""

    def write(self, values: dict) -> None:
        pass

    def close(self) -> None:
        pass


def _finite(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value
