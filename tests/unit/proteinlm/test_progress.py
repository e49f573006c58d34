"""Progress: a bar on a terminal, lines elsewhere, nothing when quiet."""

import io
import sys

import pytest

from proteinlm.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """Set clock[0] to say what time it is."""
    seconds = [0.0]
    monkeypatch.setattr("proteinlm.progress.time.monotonic", lambda: seconds[0])
    return seconds


def test_off_a_terminal_it_is_lines(clock, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Progress("proteins", 100, done=20, seconds=10) as progress:
        for now, count in ((5, 10), (10, 10), (19, 5), (20, 15)):
            clock[0] = now
            progress.add(count, residues=count * 100)
            progress.show(f"at {now}")
    assert sys.stderr.getvalue().splitlines() == [
        "40 of 100 proteins, 2.0 proteins/s, 200 residues/s, 30 s left",
        "60 of 100 proteins, 2.0 proteins/s, 200 residues/s, 20 s left",
    ]
    assert (progress.done, progress.residues) == (60, 4000)
    assert capsys.readouterr().out == "at 5\nat 10\nat 19\nat 20\n"


def test_a_line_waits_for_more_units_and_for_more_seconds(clock, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    progress = Progress("proteins", seconds=1.0, every=10)
    for now, count in ((0.4, 9), (0.5, 1), (2.0, 10), (2.1, 10), (8.0, 10)):  # few; soon; a line; soon; a line
        clock[0] = now
        progress.add(count)
    assert sys.stderr.getvalue() == "20 proteins, 10.0 proteins/s\n40 proteins, 5.0 proteins/s\n"


def test_a_terminal_has_a_bar_that_messages_do_not_break(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("proteinlm.progress.DELAY", 0.0)
    with Progress("rows", 40, done=10) as progress:
        progress.add(30)
        progress.show("half way")
    assert "40/40" in sys.stderr.getvalue() and "rows" in sys.stderr.getvalue()
    assert "half way\n" in capsys.readouterr().out


def test_short_or_quiet_work_shows_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", Terminal())
    for quiet in (False, True):
        with Progress("rows", 40, quiet=quiet) as progress:
            progress.add(40)
    assert sys.stderr.getvalue() == "" and progress.done == 40
    progress.show("nobody reads this")
    assert capsys.readouterr().out == ""
