"""Runs mutated inputs in a process of its own, which may crash, hang or eat memory.

A case is a kind and a seed: `cfg 17` is the same input for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import shutil
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import NamedTuple

from gated_hub_process import start_fork_server

from gated_plugin.errors import GatedError

SECONDS = 5.0
"""Of a processor, for a case."""
SILENCE = 60.0
"""Seconds by the clock until a process is given up, also while it starts."""
MEBIBYTE = 1 << 20
GROWTH = 128 * MEBIBYTE
"""Of a process, over all its cases."""
ADDRESSES = 2048 * MEBIBYTE
"""More than a process has when it starts: a blow-up ends in MemoryError, not in a dead machine."""
LONGEST_SENTENCE = 600


class Kind(NamedTuple):
    """A kind of file."""

    function: str
    """Where to find what mutates such a file, reads it, and checks what was read."""
    share: int
    """Of all cases, in hundredths."""


KINDS = {
    "cfg": Kind("dictionary_cases.cfg", 25),
    "weights": Kind("dictionary_cases.weights", 25),
    "siblings": Kind("dictionary_cases.siblings", 5),
    "index": Kind("hub_cases.config", 15),
    "card": Kind("hub_cases.readme", 10),
    "certificate": Kind("hub_cases.certified", 5),
    "recipe": Kind("recipe_cases.recipe", 15),
}


class Ended(NamedTuple):
    """A case that was run."""

    kind: str
    seed: int
    result: str
    """`loaded`, `refused`, or what went wrong."""

    @property
    def is_failure(self) -> bool:
        return self.result not in ("loaded", "refused")


@dataclass
class Summary:
    """What became of the cases so far."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, ended: Ended) -> None:
        self.counts[ended.kind, "failures" if ended.is_failure else ended.result] += 1

    def lines(self) -> Iterator[str]:
        """A line per kind."""
        columns = ("loaded", "refused", "failures")
        yield f"{'mutated':<12}" + "".join(f"{column:>10}" for column in columns)
        for kind in dict.fromkeys(kind for kind, _ in self.counts):
            yield f"{kind:<12}" + "".join(f"{self.counts[kind, column]:>10}" for column in columns)


def run(kind: str, seeds: Sequence[int]) -> Iterator[Ended]:
    """The cases, one after another; after one that ends its process, in a new one."""
    remaining = list(seeds)
    while remaining:
        with _Worker(kind, remaining) as worker:
            for result in worker.results(len(remaining)):
                yield Ended(kind, remaining.pop(0), result)


class _Worker:
    """A process with cases to run."""

    def __init__(self, kind: str, seeds: Sequence[int]) -> None:
        start_fork_server()
        context = multiprocessing.get_context("forkserver")
        self.here, there = context.Pipe(duplex=False)
        self.process = context.Process(target=work, args=(there, kind, list(seeds)))
        self.process.start()
        there.close()

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()
        self.here.close()

    def results(self, number: int) -> Iterator[str]:
        """What the process says of each case; the last is of the one that ended it."""
        assert self._said() == "ready"
        for _ in range(number):
            result = self._said()
            yield result
            if result not in ("loaded", "refused"):
                return

    def _said(self) -> str:
        if not self.here.poll(SILENCE):
            return f"it took more than {SILENCE:.0f} seconds"
        try:
            said: str = self.here.recv()
        except EOFError:
            self.process.join()
            return f"its process ended with {self.process.exitcode}"
        return said


def work(there: Connection, kind: str, seeds: list[int]) -> None:
    """Run cases and send what became of each."""
    warnings.simplefilter("ignore")
    module, _, name = KINDS[kind].function.partition(".")
    case = getattr(import_module(module), name)
    with TemporaryDirectory() as place:
        os.chdir(place)
        judged(case, Random("warm-up"))
        limit = _addresses() + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        before = _peak()
        there.send("ready")
        for seed in seeds:
            for path in Path().iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            result = judged(case, Random(f"{kind} {seed}"))
            grown = _peak() - before
            there.send(result if grown < GROWTH else f"memory grew by {grown // MEBIBYTE} MiB")


def judged(case: Callable[[Random], None], random: Random) -> str:
    """`loaded`, `refused`, or what is wrong with how the case ended."""
    begun = time.process_time()
    try:
        case(random)
        result = "loaded"
    except GatedError as error:
        sentence = str(error)
        result = "refused" if is_sentence(sentence) else f"refused by {ascii(sentence)[:1000]}"
    except BaseException:
        result = traceback.format_exc()[-3000:]
    seconds = time.process_time() - begun
    return result if seconds < SECONDS else f"it took {seconds:.1f} seconds"


def is_sentence(text: str) -> bool:
    """Whether `text` is one line that a terminal shows, and ends with what to do."""
    return (
        text.isprintable()
        and len(text) <= LONGEST_SENTENCE
        and text.endswith(".")
        and re.search(r"[;:] ", text) is not None
        and "Traceback" not in text
    )


def _peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _addresses() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except FileNotFoundError:
        return 1 << 42
