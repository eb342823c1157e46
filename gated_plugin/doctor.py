"""`gated-hub doctor`: what is installed, what is registered, and what is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import entry_points

from gated_plugin.environment import versions
from gated_plugin.plugin import ARCHITECTURE, SAELENS, missing_seams

SWITCHES = ("GATED_PLUGIN_AUTOLOAD", "TORCH_DEVICE_BACKEND_AUTOLOAD")

PROBE = (
    "import sae_lens.registry as registry; "
    f"print(registry.SAE_CLASS_REGISTRY[{ARCHITECTURE!r}][0].__module__)"
)


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
    registered, warnings = _in_a_fresh_process()
    problems = [*_installation_problems(installed, plugins), *warnings]
    if not problems and not registered.startswith("gated_plugin"):
        problems.append(
            f"A fresh `import sae_lens` registers {registered} as {ARCHITECTURE!r}; run "
            "`python -c 'import sae_lens, gated_plugin; gated_plugin.register()'` to see why."
        )
    return Diagnosis(installed, plugins, registered, tuple(problems))


def _installation_problems(installed: dict[str, str | None], plugins: dict[str, str]) -> list[str]:
    problems = [
        f"{name} is not installed; run `pip install {name.replace('_', '-')}`."
        for name, version in installed.items()
        if version is None
    ]
    if ARCHITECTURE not in plugins or not _torch_calls_us():
        problems.append(
            "The entry points are missing, as in a source folder that was never installed; run "
            "`pip install --editable .` in it."
        )
    if installed["sae_lens"] is not None and (missing := missing_seams()):
        problems.append(
            f"SAELens {installed['sae_lens']} lacks {', '.join(missing)}; install one that is "
            f"admitted: `pip install '{SAELENS}'`."
        )
    problems += [
        f"{switch}=0 switches the registration off; unset it, or `import gated_plugin` yourself."
        for switch in SWITCHES
        if os.environ.get(switch) == "0"
    ]
    return problems


def _torch_calls_us() -> bool:
    return any(e.name == "gated_plugin" for e in entry_points(group="torch.backends"))


def _in_a_fresh_process() -> tuple[str, list[str]]:
    """Module of the class that SAELens answers `"gated"` with, and what plugins warned of."""
    probe = subprocess.run(
        [sys.executable, "-W", "default", "-c", PROBE], capture_output=True, text=True
    )
    errors = probe.stderr.splitlines()
    warnings = [
        line.split("RuntimeWarning: ")[-1]
        for line in errors
        if "RuntimeWarning: SAELens plugin" in line
    ]
    if probe.returncode != 0:
        return f"nothing ({errors[-1] if errors else 'no answer'})", warnings
    return probe.stdout.split()[-1], warnings
