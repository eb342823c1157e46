"""What a run came to."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from gated_plugin.runs import Run

WEIGHTS = "sae_weights.safetensors"


def fingerprint(path: Path) -> dict[str, object]:
    """The result of a run; what differs between two equal runs, the time, is left out."""
    run = Run(path)
    files = (WEIGHTS, "sparsity.safetensors", "cfg.json")
    log = [json.loads(line) for line in run.training_log.read_text().splitlines()]
    return {
        **{name: hashlib.sha256((run.sae / name).read_bytes()).hexdigest() for name in files},
        "log": [{key: value for key, value in line.items() if key != "time"} for line in log],
    }


def steps(path: Path) -> list[int]:
    """Of the finished checkpoints."""
    return sorted(int(folder.name[5:]) for folder in Run(path).checkpoints.glob("step_*"))
