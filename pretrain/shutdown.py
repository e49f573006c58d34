"""SIGTERM (a scheduler's notice of preemption) becomes a flag that the loop reads between two steps."""

import signal


class StopSignal:
    """While the context is open, SIGTERM sets `received` instead of killing the process in the middle of a step."""

    def __init__(self):
        self.received = False
        self._previous = None

    def __enter__(self):
        self._previous = signal.signal(signal.SIGTERM, self._handle)
        return self

    def _handle(self, signum, frame):
        self.received = True

    def __exit__(self, *exc_info):
        signal.signal(signal.SIGTERM, self._previous)
