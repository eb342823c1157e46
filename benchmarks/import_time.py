"""What the plugin adds to `import torch`: python -m benchmarks.import_time

`added_ms`: in fresh processes that imported torch with its backends switched off, the time in which
torch would have loaded and called our entry point. `added_without_torch_ms`: the same in bare
interpreters, more of them; it counts what torch has otherwise paid for, such as listing
site-packages. `import_torch_ms`: whole imports with the plugin, with `GATED_PLUGIN_AUTOLOAD=0` and
with backends switched off, in turns; no more than a check, as noisy as the machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from statistics import median

LIMIT_MS = 2.0
PROCESSES = 31
ROUNDS = 5

IMPORT_TORCH = """
from time import perf_counter
start = perf_counter()
import torch
print((perf_counter() - start) * 1e3)
"""

ENTRY_POINT = """
from importlib.metadata import entry_points
from time import perf_counter
(entry_point,) = entry_points(group="torch.backends", name="gated_plugin")
start = perf_counter()
entry_point.load()()
print((perf_counter() - start) * 1e3)
"""

BACKENDS_OFF = {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
SWITCHES: dict[str, dict[str, str]] = {
    "with_plugin": {},
    "autoload_off": {"GATED_PLUGIN_AUTOLOAD": "0"},
    "backends_off": BACKENDS_OFF,
}


def milliseconds(code: str, environment: Mapping[str, str]) -> float:
    """What `code`, which prints one figure, prints in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
        text=True,
    )
    return float(done.stdout)


def measure() -> dict[str, object]:
    """Medians in milliseconds, and whether the plugin keeps to its limit."""
    milliseconds(IMPORT_TORCH, {})
    bare = [milliseconds(ENTRY_POINT, {}) for _ in range(PROCESSES)]
    added: list[float] = []
    imports: dict[str, list[float]] = {name: [] for name in SWITCHES}
    for _ in range(ROUNDS):
        added.append(milliseconds("import torch\n" + ENTRY_POINT, BACKENDS_OFF))
        for name, switches in SWITCHES.items():
            imports[name].append(milliseconds(IMPORT_TORCH, switches))
    return {
        "added_ms": round(median(added), 3),
        "added_without_torch_ms": round(median(bare), 3),
        "limit_ms": LIMIT_MS,
        "within_limit": median(added) < LIMIT_MS,
        "import_torch_ms": {name: round(median(times), 1) for name, times in imports.items()},
        "processes": PROCESSES,
        "rounds": ROUNDS,
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
