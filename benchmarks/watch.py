"""The memory of a running command and of the processes that it starts. Imports no torch."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SAMPLING_SECONDS = 0.02
ROLES = {"plain_saelens": "plain SAELens", "hub.apart": "checks"}
"""Processes that a command starts, by what is in their command line."""
COMMAND = "command"


@dataclass
class Part:
    """What a command took."""

    name: str
    seconds: float = 0.0
    peak_mb: dict[str, int] = field(default_factory=dict)
    """Largest resident memory of each process (VmHWM), by role; where /proc tells."""
    printed: str = ""
    killed: bool = False


def run(
    name: str,
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    captured: bool = False,
    kill_when: Callable[[], bool] = lambda: False,
) -> Part:
    """Run a command to its end, or until it is killed, and watch its memory.

    Args:
        environment: beside this process' own.
        captured: keep what it prints on standard output, which else goes where ours does.
        kill_when: asked again and again; once it is true, SIGKILL ends the command and all that it
            started.

    Raises:
        SystemExit: it failed.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE if captured else None,
        text=True,
        start_new_session=True,
    )
    part = Part(name)
    done = threading.Event()
    watch = threading.Thread(target=_watch, args=(process.pid, part, done), daemon=True)
    watch.start()
    try:
        while process.poll() is None and not captured:
            if kill_when():
                part.killed = True
                break
            time.sleep(SAMPLING_SECONDS)
        if captured:
            part.printed = process.communicate()[0]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        done.set()
        watch.join()
    part.seconds = round(time.monotonic() - started, 1)
    if process.returncode and not part.killed:
        sys.exit(f"{name} failed (exit code {process.returncode}):\n{part.printed}")
    return part


def _watch(pid: int, part: Part, done: threading.Event) -> None:
    while not done.wait(SAMPLING_SECONDS):
        for each in _family(pid):
            role, peak = _look_at(each)
            if role:
                part.peak_mb[role] = max(part.peak_mb.get(role, 0), peak)


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(each for child in children for each in _family(int(child)))]


def _look_at(pid: int) -> tuple[str, int]:
    """Its role and the largest memory that it had, in MB; of one that has ended: none."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text()
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "", 0
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    role = next((name for part, name in ROLES.items() if part in command), COMMAND)
    return role, int(peak[1]) // 1024 if peak else 0
