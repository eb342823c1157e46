"""What a run was made with."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "gated-plugin",
    "sae-lens",
    "transformer-lens",
    "torch",
    "huggingface-hub",
    "safetensors",
)


def versions() -> dict[str, str | None]:
    """Installed versions of the packages that shape a result; None where one is missing."""
    return {name.replace("-", "_"): _version(name) for name in PACKAGES}


def environment() -> dict[str, Any]:
    """Versions, machine and the command as it was typed; stays in the run, is never published."""
    import torch

    return {
        **versions(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
