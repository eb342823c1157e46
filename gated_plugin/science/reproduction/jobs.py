"""What has to run: each job leaves `results.json` in a folder that is named after all that shapes
it, so that a job of other settings is another job, and a finished one is never run again.

Not part of that name: the versions of the code. After a change of it, begin in a new folder.
"""

from __future__ import annotations

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gated_plugin.runs import read_json, write_json

Record = dict[str, Any]


@dataclass(frozen=True)
class Job(ABC):
    """A piece of work that a kill may end at any time."""

    out: Path
    """Of the whole reproduction."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Also the start of its folder's name."""

    @property
    @abstractmethod
    def title(self) -> str:
        """For the line that says what runs."""

    @property
    @abstractmethod
    def seconds(self) -> float:
        """An estimate, on one core."""

    @abstractmethod
    def inputs(self) -> Any:
        """All that shapes the result, as JSON."""

    @abstractmethod
    def work(self, *, quiet: bool) -> list[Record]:
        """Do it.

        Raises:
            GatedError: what stands in the way, and what to do.
            Interrupted: stopped by the user.
        """

    @cached_property
    def needs(self) -> Sequence[Job]:
        """Jobs whose results it takes."""
        return ()

    @cached_property
    def key(self) -> str:
        """Of the inputs, and of those of all it needs."""
        told = [self.inputs(), *(job.key for job in self.needs)]
        text = json.dumps(told, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def folder(self) -> Path:
        return self.out / f"{self.name}-{self.key}"

    @property
    def is_done(self) -> bool:
        return all(job.is_done for job in self.needs) and self._results.exists()

    def run(self, *, quiet: bool) -> None:
        """Do it and keep its results."""
        started = time.monotonic()
        records = self.work(quiet=quiet)
        seconds = round(time.monotonic() - started, 1)
        write_json(self._results, {"seconds": seconds, "records": records})

    def records(self) -> list[Record]:
        """Its results."""
        found: list[Record] = read_json(self._results)["records"]
        return found

    @property
    def seconds_taken(self) -> float:
        """Of the finished job, from its last start."""
        taken: float = read_json(self._results)["seconds"]
        return taken

    @property
    def _results(self) -> Path:
        return self.folder / "results.json"
