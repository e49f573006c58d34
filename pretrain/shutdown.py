"""SIGTERM (a scheduler's notice of preemption) becomes a flag that every step asks for."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """While the context is open, SIGTERM sets the event instead of killing the process in the middle of a step."""
    received = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)
