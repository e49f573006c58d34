"""Progress on a terminal (tqdm) or as lines in a log."""

import sys


class Progress:
    """A tqdm bar on a terminal; elsewhere each message is one line on stdout. quiet: neither."""

    def __init__(self, total: int | None, done: int, quiet: bool = False):
        self._bar, self._quiet = None, quiet
        if sys.stderr.isatty() and not quiet:
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit="rows", dynamic_ncols=True)
        self._at = done

    def __enter__(self):
        return self

    def advance(self, done: int) -> None:
        if self._bar is not None:
            self._bar.update(done - self._at)
        self._at = done

    def show(self, *messages: str) -> None:
        for message in messages:
            if self._bar is not None:
                self._bar.write(message)
            elif not self._quiet:
                print(message, flush=True)

    def __exit__(self, *exc_info):
        if self._bar is not None:
            self._bar.close()
