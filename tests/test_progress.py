"""What long work says of itself where there is no terminal, and on one."""

from __future__ import annotations

import io
import sys

import pytest

from gated_plugin import progress
from gated_plugin.progress import Progress, byte_size


@pytest.fixture
def clock(monkeypatch):
    """Time that stands still until it is set."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_bytes_are_told_with_rate_and_time_left(clock, capsys):
    with Progress("Fetching", 400_000_000, 100_000_000, unit="bytes") as bar:
        clock[0] += 20
        bar.update(200_000_000)
        clock[0] += 20
        bar.update(400_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "Fetching: 50%, 100 MB at 5.0 MB/s, 0:40 left",
        "Fetching: 100%, 300 MB at 7.5 MB/s, 0:00 left",
        "Fetching: done in 0:40, 300 MB at 7.5 MB/s",
    ]


def test_counts_are_told_without_a_rate(clock, capsys):
    with Progress("Training", 10) as bar:
        clock[0] += 20
        bar.update(5, "L0 45")
    assert capsys.readouterr().err.splitlines() == [
        "Training: 50%, 0:20 left  L0 45",
        "Training: done in 0:20",
    ]


def test_lines_are_rare(clock, capsys):
    with Progress("Fetching", 1000, unit="bytes") as bar:
        for done in range(0, 1000, 10):
            clock[0] += 1
            bar.update(done)
    assert 5 < len(capsys.readouterr().err.splitlines()) < 9


@pytest.mark.parametrize(("total", "start", "done"), [(0, 0, 0), (100, 50, 50), (100, 50, 20)])
def test_work_that_has_not_moved_has_no_rate(clock, capsys, total, start, done):
    with Progress("Fetching", total, start, unit="bytes") as bar:
        clock[0] += 20
        bar.update(done)
    assert "left" not in capsys.readouterr().err


def test_quiet_says_nothing(clock, capsys):
    with Progress("Fetching", 10, unit="bytes", quiet=True) as bar:
        clock[0] += 20
        bar.update(5)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_with_sizes_and_rate(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", Terminal())
    with Progress("Fetching", 2_000_000, unit="bytes") as bar:
        bar.update(1_000_000)
        bar.update(2_000_000)
    shown = sys.stderr.getvalue()
    assert "Fetching" in shown and "2.0/2.0 MB" in shown and "/s" in shown


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (3_221_225_472, "3.2 GB"), (45e6, "45 MB")],
)
def test_sizes_are_short(count, text):
    assert byte_size(count) == text
