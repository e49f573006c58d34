"""SIGTERM (a scheduler's notice of preemption) and SIGINT (Ctrl-C) become flags that every step asks for."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

ONE_PRESS_SECONDS = 1.0  # a Ctrl-C may come twice, from the terminal and from torchrun


@contextlib.contextmanager
def stop_signals() -> Iterator[tuple[threading.Event, threading.Event]]:
    """(preempted, interrupted): while the context is open, SIGTERM and SIGINT set their event instead of ending the
    process in the middle of a step. A second Ctrl-C does end it."""
    preempted, interrupted, pressed = threading.Event(), threading.Event(), []

    def interrupt(*_: object) -> None:
        if pressed and time.monotonic() - pressed[0] > ONE_PRESS_SECONDS:
            raise KeyboardInterrupt
        pressed.append(time.monotonic())
        interrupted.set()

    handlers = {signal.SIGTERM: lambda *_: preempted.set(), signal.SIGINT: interrupt}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield preempted, interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
