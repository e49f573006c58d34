"""How far a long piece of work is: a bar on a terminal, a line now and then elsewhere. Standard library and tqdm.

with Progress("proteins", total=100) as progress:
    progress.add(8, residues=2400)
    progress.show("a message, which does not break the bar")
"""

import sys
import time

DELAY = 2.0


class Progress:
    """Counts `done` of `total` (None: unknown) units. quiet: counts and shows nothing.

    Off a terminal a line goes to stderr when `every` more units and `seconds` more seconds have gone by. A bar that
    would be gone within DELAY seconds is not drawn.
    """

    def __init__(
        self, unit: str, total: int | None = None, done: int = 0, seconds: float = 30.0, every: int = 1, quiet=False
    ):
        self.unit, self.total, self.done, self.residues = unit, total, done, 0
        self.started = time.monotonic()
        self._first, self._last_line = done, self.started
        self._seconds, self._every, self._next = seconds, every, done + every
        self._bar, self._quiet = None, quiet
        if sys.stderr.isatty() and not quiet:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit=f" {unit}", delay=DELAY, dynamic_ncols=True)

    def __enter__(self):
        return self

    def add(self, count: int, residues: int = 0) -> None:
        self.done, self.residues = self.done + count, self.residues + residues
        if self._bar is not None:
            self._bar.update(count)
        elif not self._quiet and self.done >= self._next:
            now = time.monotonic()
            if now - self._last_line >= self._seconds:
                print(self._line(now - self.started), file=sys.stderr, flush=True)
                self._last_line, self._next = now, self.done - self.done % self._every + self._every

    def _line(self, seconds: float) -> str:
        rate = (self.done - self._first) / seconds
        total = "" if self.total is None else f" of {self.total:,}"
        parts = [f"{self.done:,}{total} {self.unit}", f"{rate:,.1f} {self.unit}/s"]
        if self.residues:
            parts.append(f"{self.residues / seconds:,.0f} residues/s")
        if self.total is not None:
            parts.append(f"{(self.total - self.done) / rate:,.0f} s left")
        return ", ".join(parts)

    def show(self, *messages: str) -> None:
        """Each message as a line on stdout."""
        for message in messages:
            if self._bar is not None:
                self._bar.write(message)
            elif not self._quiet:
                print(message, flush=True)

    def __exit__(self, *exc_info):
        if self._bar is not None:
            self._bar.close()
