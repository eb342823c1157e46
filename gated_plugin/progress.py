"""Progress of long work: a bar with ETA on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

LINE_EVERY_SECONDS = 15.0


class Progress:
    """`with Progress("Training", total) as progress: progress.update(done, "L0 45")`.

    `start` of `total` were finished before. Writes to standard error, so that a command's answer stays alone on standard output.
    """

    def __init__(self, title: str, total: int, start: int = 0, *, quiet: bool = False) -> None:
        self.title, self.total, self.start = title, total, start
        self.quiet = quiet
        self.started = self.last_line = time.monotonic()
        self._bar = None if quiet or not sys.stderr.isatty() else _bar()

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
            self._print(f"{self.title}: done in {_clock(time.monotonic() - self.started)}")

    def update(self, done: int, note: str = "") -> None:
        """`done` of `total` are finished; `note` is shown beside."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=note)
        elif not self.quiet and time.monotonic() - self.last_line > LINE_EVERY_SECONDS:
            self.last_line = time.monotonic()
            self._print(f"{self.title}: {done / self.total:.0%}, {self._eta(done)} left  {note}")

    def _eta(self, done: int) -> str:
        elapsed = time.monotonic() - self.started
        return _clock(elapsed / (done - self.start) * (self.total - done))

    def _print(self, line: str) -> None:
        print(line.rstrip(), file=sys.stderr, flush=True)


def _bar() -> Any:  # rich is imported only where a bar is drawn
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
