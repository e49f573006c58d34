"""The log of a run, of pretraining or finetuning: JSON lines, and TensorBoard where it is asked for.

`metrics.jsonl` has one line per logged iteration and one per evaluation, and is always one history: a run that goes on
from a checkpoint drops the lines after it and a last line that a kill cut short; any other run moves an earlier log
aside to `metrics.jsonl.1` or the next free number, where a log with damaged lines is kept too.
"""

import json
import shutil
from itertools import count
from pathlib import Path

from proteinlm.files import finite, require_plain, write_text, writing
from proteinlm.untrusted.json_files import read_json_lines


class MetricsLog:
    """The log of one run: `<directory>/metrics.jsonl`, and TensorBoard when a directory for it is given.

    resume_at: the iteration resumed from, None or 0 where the run starts at its beginning. same_run: whether the log
    in the directory is that of the run resumed. Nothing is written, moved or made before the first line; then a notice
    says where any other log went, and a damaged one as it was.
    """

    def __init__(
        self,
        directory: str | Path,
        tensorboard_dir: str | Path | None = None,
        resume_at: int | None = None,
        same_run: bool = True,
    ):
        self.path, self._tensorboard_dir = Path(directory) / "metrics.jsonl", tensorboard_dir
        require_plain(self.path)
        self._first, self._damaged = 0 if resume_at is None else resume_at + 1, []
        self._history = self._lines_up_to(resume_at) if self._is_there() and resume_at and same_run else None
        self._file = self._writer = None

    def _open(self) -> None:
        if self._damaged:
            whole, text = self._free(), f"line {self._damaged[0]} holds no metrics ({len(self._damaged)} such lines)"
            shutil.copyfile(self.path, whole)
            print(f"notice: {self.path}: {text}; the log as it was is {whole}", flush=True)
        if self._history is not None:
            write_text(self.path, "".join(self._history))
            self._history = None
        elif self._is_there():
            moved = self.path.rename(self._free())
            print(f"notice: {self.path}: the log of an earlier run is now {moved}", flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a", encoding="utf-8")
        if self._tensorboard_dir:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._tensorboard_dir), purge_step=self._first)

    def _is_there(self) -> bool:
        return self.path.exists() and self.path.stat().st_size > 0

    def _free(self) -> Path:
        """The next free name for a log that is kept aside."""
        paths = (self.path.with_suffix(f".jsonl.{number}") for number in count(1))
        return next(path for path in paths if not path.exists())

    def _lines_up_to(self, iteration: int) -> list[str]:
        lines = list(read_json_lines(self.path))
        if lines and lines[-1][2] is None and '{"'.startswith(lines[-1][1][:2]):
            lines.pop()  # cut short: it belongs after the checkpoint
        good = [line for line in lines if isinstance((line[2] or {}).get("iteration"), int)]
        self._damaged = [line[0] for line in lines if line not in good]
        return [f"{text}\n" for _, text, values in good if values["iteration"] <= iteration]

    def write(self, values: dict) -> None:
        """Append one line. `iteration` is required; a NaN or an infinity becomes null, which JSON can carry."""
        clean = finite(values)
        with writing(self.path):
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
        with writing(self.path):
            for opened in (self._file, self._writer):
                if opened is not None:
                    opened.close()


class NoLog:
    """Stands where `MetricsLog` does on the processes that do not write."""

    def write(self, values: dict) -> None:
        pass

    def close(self) -> None:
        pass
