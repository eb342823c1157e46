"""`gated-hub doctor`: what is installed, what is registered, and what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points

from gated_plugin.environment import versions
from gated_plugin.plugin import ARCHITECTURE, missing_seams

SWITCHES = ("GATED_PLUGIN_AUTOLOAD", "TORCH_DEVICE_BACKEND_AUTOLOAD")

PROBE = "from sae_lens.registry import *; import sae_lens.registry as r; "
PROBE += f"print(r.SAE_CLASS_REGISTRY[{ARCHITECTURE!r}][0].__module__)"


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found; healthy when `problems` is empty."""

    versions: dict[str, str | None]
    plugins: dict[str, str]
    registered: str
    problems: tuple[str, ...]


def diagnose() -> Diagnosis:
    """Look at the installation, and at what a fresh `import sae_lens` registers."""
    installed = versions()
    plugins = {p.name: p.value for p in entry_points(group="sae_lens.plugins")}
    registered = _registered_in_a_fresh_process()
    return Diagnosis(
        versions=installed,
        plugins=plugins,
        registered=registered,
        problems=tuple(_problems(installed, plugins, registered)),
    )


def _problems(
    installed: dict[str, str | None], plugins: dict[str, str], registered: str
) -> list[str]:
    problems = [
        f"{name} is not installed; run `pip install {name.replace('_', '-')}`."
        for name, version in installed.items()
        if version is None
    ]
    if "gated" not in plugins or not _torch_calls_us():
        problems.append(
            "The entry points are missing, as in a source folder that was never installed; run "
            "`pip install --editable .` in it."
        )
    if missing := missing_seams():
        problems.append(
            f"SAELens {installed['sae_lens']} lacks {', '.join(missing)}; install one that is "
            "admitted: `pip install 'sae-lens>=6.50,<7'`."
        )
    for switch in SWITCHES:
        if os.environ.get(switch) == "0":
            problems.append(f"{switch}=0 switches plugins off; unset it.")
    if not problems and not registered.startswith("gated_plugin"):
        problems.append(
            f"A fresh `import sae_lens` registers {registered} as {ARCHITECTURE!r}; run "
            f'`python -W always -c "import sae_lens"` to see why.'
        )
    return problems


def _torch_calls_us() -> bool:
    return any(e.name == "gated_plugin" for e in entry_points(group="torch.backends"))


def _registered_in_a_fresh_process() -> str:
    """The module of the class that SAELens answers `"gated"` with."""
    probe = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True)
    return (probe.stdout.split() or ["nothing: `import sae_lens` fails"])[-1]
