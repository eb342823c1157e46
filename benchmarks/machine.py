"""The machine and the conditions that a figure was measured under. Imports no torch at its top."""

from __future__ import annotations

import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import sleep

WAIT_POLICY = "OMP_WAIT_POLICY"
PACKAGES = (
    "gated-plugin",
    "sae-lens",
    "torch",
    "numba",
    "triton",
    "dictionary-learning",
    "eai-sparsify",
)
IDLE_CHECK_SECONDS = 0.5
BUSY = 0.05


def restart_with_passive_threads() -> None:
    """Start this command anew with OMP_WAIT_POLICY=passive unless it is set so.

    Threads that spin while they wait take the cores from whatever comes next: a sort of 1.6 ms took
    153 ms on two cores. OpenMP reads the variable when torch loads it.
    """
    if os.environ.get(WAIT_POLICY, "").lower() == "passive":
        return
    os.environ[WAIT_POLICY] = "passive"
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def idle_check() -> dict[str, object]:
    """What other processes use of all cores together, while this one sleeps."""
    before = _cpu_ticks()
    sleep(IDLE_CHECK_SECONDS)
    after = _cpu_ticks()
    busy = None
    if before and after:
        total = sum(after) - sum(before)
        # /proc/stat: user nice system idle iowait …
        busy = round(1 - (after[3] + after[4] - before[3] - before[4]) / max(1, total), 3)
    return {
        "busy_share": busy,
        "idle": None if busy is None else busy <= BUSY,
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


def facts(device: str) -> dict[str, object]:
    """Versions, processor and threads."""
    import torch

    return {
        **{package.replace("-", "_"): _version(package) for package in PACKAGES},
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "amx": bool(torch.cpu._is_amx_tile_supported()),
        "gpu": None if device == "cpu" else torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        WAIT_POLICY: os.environ.get(WAIT_POLICY),
    }


def _cpu_ticks() -> list[int]:
    stat = Path("/proc/stat")
    if not stat.exists():
        return []
    return [int(ticks) for ticks in stat.read_text().splitlines()[0].split()[1:9]]


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return found[1] if found else platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
