"""Progress of long work: a bar with rate and ETA on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

LINE_EVERY_SECONDS = 15.0
BYTES = "bytes"
UNITS = ("B", "kB", "MB", "GB", "TB")


class Progress:
    """`with Progress("Training", total) as progress: progress.update(done, "L0 45")`.

    `start` of `total` were finished before. With the unit `bytes` sizes and the rate are shown too.
    Writes to standard error, so that a command's answer stays alone on standard output.
    """

    def __init__(
        self, title: str, total: int, start: int = 0, *, unit: str = "", quiet: bool = False
    ) -> None:
        self.title, self.total, self.start, self.done = title, total, start, start
        self.unit, self.quiet = unit, quiet
        self.started = self.last_line = time.monotonic()
        self._bar = None if quiet or not sys.stderr.isatty() else _bar(unit)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(
                self.title, total=self.total, completed=self.start, note=""
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif not self.quiet and kind is None:
            self._print(f"{self.title}: done in {clock(self._elapsed())}{self._moved()}")

    def update(self, done: int, note: str = "") -> None:
        """`done` of `total` are finished; `note` is shown beside."""
        self.done = done
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif not self.quiet and time.monotonic() - self.last_line > LINE_EVERY_SECONDS:
            self.last_line = time.monotonic()
            share = done / self.total if self.total else 1.0
            self._print(f"{self.title}: {share:.0%}{self._moved()}{self._eta()}  {note}")

    def _elapsed(self) -> float:
        return max(time.monotonic() - self.started, 0.001)

    def _moved(self) -> str:
        """How many bytes went by since the start, and how fast."""
        moved = self.done - self.start
        if self.unit != BYTES or moved <= 0:
            return ""
        return f", {byte_size(moved)} at {byte_size(moved / self._elapsed())}/s"

    def _eta(self) -> str:
        moved = self.done - self.start
        if moved <= 0:
            return ""
        return f", {clock(self._elapsed() / moved * (self.total - self.done))} left"

    def _print(self, line: str) -> None:
        print(line.rstrip(), file=sys.stderr, flush=True)


def byte_size(count: float) -> str:
    """`3.2 GB` for 3,221,225,472: decimal, with two digits or more."""
    power = 0
    while count >= 999.5 and power < len(UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.1f} {UNITS[power]}" if power and count < 10 else f"{count:.0f} {UNITS[power]}"


def _bar(unit: str) -> Any:  # rich is imported only where a bar is drawn
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        *((DownloadColumn(), TransferSpeedColumn()) if unit == BYTES else ()),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )


def clock(seconds: float) -> str:
    """`3:20` or `1:03:20`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
