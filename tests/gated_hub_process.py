"""`gated-hub` in a process of its own, which can be killed, without importing torch each time.

The standard library's fork server imports everything once; a command is forked from it.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple

PRELOADED = ["gated_plugin.runner", "gated_plugin.science.evaluation", "gated_plugin.science.plots"]
SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
UNHEARD = {"TQDM_DISABLE": "1"}  # as `gated-hub` itself sets it, before anything is imported


class Ended(NamedTuple):
    code: int | None
    stdout: str
    stderr: str


class Command:
    """A running `gated-hub`; what it prints goes to files in `folder`.

    Args:
        before: what its process does first.
    """

    def __init__(
        self, arguments: list[str], folder: Path, before: Callable[[], None] | None = None
    ) -> None:
        self.printed = [folder / "stdout", folder / "stderr"]
        context = multiprocessing.get_context("forkserver")
        self.process = context.Process(target=_main, args=(arguments, self.printed, before))
        self.process.start()

    def wait(self) -> Ended:
        self.process.join(60)
        assert self.process.exitcode is not None, "the command hangs"
        return Ended(self.process.exitcode, *(path.read_text() for path in self.printed))

    def wait_until(self, happened: Callable[[], object]) -> None:
        """Poll closely; fails where the command ends before."""
        while not happened():
            assert self.process.is_alive(), self.wait()
            time.sleep(0.0005)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)


def start_fork_server() -> None:
    """Once, with one thread: a process that has started OpenMP's threads cannot be forked."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    before = dict(os.environ)
    os.environ.update(SINGLE_THREADED | UNHEARD)
    forkserver.ensure_running()
    os.environ.clear()
    os.environ.update(before)


def _main(
    arguments: list[str], printed: list[Path], before: Callable[[], None] | None = None
) -> None:
    for number, path in enumerate(printed, 1):
        with path.open("w") as file:
            os.dup2(file.fileno(), number)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - lives as long as the process
    sys.stderr = open(2, "w", closefd=False, buffering=1)  # noqa: SIM115 - as above
    sys.argv = ["gated-hub", *arguments]
    if before is not None:
        before()
    from gated_plugin.cli import main

    main()
