"""A run killed at any moment goes on from its last checkpoint and ends bit for bit the same.

GATED_FAULTS=all kills fifty times, which takes some minutes; without it there is a sample.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random

import pytest
import torch
from gated_hub_process import Command, Ended
from run_results import WEIGHTS, fingerprint, steps
from safetensors.torch import load_file
from strike import Strike

from gated_plugin.runs import Run, read_json

SEED = 7
KILLS = 50 if os.environ.get("GATED_FAULTS") == "all" else 4
EVERY = 3
"""Steps between checkpoints; a run has 40."""
LONGEST_START = 5.0
TRAINING, FINISH = 0.5, 0.02
"""Seconds from which the moment of a kill is drawn."""
OPERATIONS = 80
"""Changes of files, two checkpoints' or so, from which that of a kill is drawn."""

KINDS = ("operation", "training", "finish", "any", "operation", "training")
# What has a state: whitening, a λ that warms up and is steered, a schedule, moments; resampling.
STATES = (
    (
        "training_tokens=2560",
        "sae.normalize_activations=covariance_whitening",
        "sae.l1_warm_up_steps=10",
        "sae.target_l0=8",
        "lr_decay_steps=10",
        "adam_beta1=0.9",
    ),
    (
        "training_tokens=2560",
        "sae.l1_coefficient=100",
        "sae.resampling=paper",
        "sae.resample_steps=[12, 24]",
        "sae.resample_window=4",
        "sae.rewarm_steps=9",
        "lr=0.05",
        "engine.deterministic=true",
    ),
)
Start = Callable[..., Command]


def arguments(recipe: Path, out: Path, overrides: tuple[str, ...]) -> list[object]:
    sets = [word for override in overrides for word in ("--set", override)]
    return ["train", recipe, *sets, "--out", out, "--checkpoint-every", EVERY, "--quiet"]


@pytest.fixture(scope="module")
def uninterrupted(
    gated_hub: Callable[..., Ended], tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[tuple[str, ...]], dict[str, object]]:
    """The result of a run that nothing happened to."""

    @cache
    def result(overrides: tuple[str, ...]) -> dict[str, object]:
        out = tmp_path_factory.mktemp("uninterrupted") / "run"
        assert gated_hub(*arguments(tiny, out, overrides)).code == 0
        return fingerprint(out)

    return result


def test_kills_at_random_moments_lose_at_most_the_steps_since_the_checkpoint(
    start: Start,
    tiny: Path,
    tmp_path: Path,
    uninterrupted: Callable[[tuple[str, ...]], dict[str, object]],
) -> None:
    random, kinds = Random(SEED), []
    runs = 0
    while len(kinds) < KILLS:
        out, overrides = tmp_path / f"run{runs}", STATES[runs % len(STATES)]
        command = [*arguments(tiny, out, overrides), "--resume"]
        reached = 0
        while len(kinds) < KILLS:
            kind = KINDS[len(kinds) % len(KINDS)]
            if not is_killed(start, command, Run(out), kind, random):
                break  # it was through before
            kinds.append(kind)
            reached = require_sound(Run(out), reached)
        again = start(*command).wait()
        assert again.code == 0, again.stderr
        assert fingerprint(out) == uninterrupted(overrides), f"run {runs} after {kinds}"
        require_no_traces(out)
        runs += 1


def is_killed(start: Start, command: list[object], run: Run, kind: str, random: Random) -> bool:
    """Run the command and kill it; False where it ended before."""
    before = Strike(str(run.path), random.randint(1, OPERATIONS)) if kind == "operation" else None
    written = _written(run.training_log)
    running = start(*command, before=before)
    process = running.process
    if kind == "operation":
        running.wait()
    elif kind == "any":
        process.join(random.uniform(0, LONGEST_START))
    else:
        has_come = {
            "training": lambda: _written(run.training_log) != written,
            "finish": lambda: run.sae.exists() or list(run.path.glob(".sae.*")),
        }[kind]
        while process.is_alive() and not has_come():
            process.join(0.0005)
        process.join(random.uniform(0, TRAINING if kind == "training" else FINISH))
    running.kill()
    assert process.exitcode in (0, -9), running.wait().stderr
    return process.exitcode != 0


def require_sound(run: Run, reached: int) -> int:
    """The newest checkpoint's step: whole, and no more than `EVERY` behind what was done."""
    if run.is_trained:
        load_file(run.sae / WEIGHTS)
        read_json(run.sae / "cfg.json")
        return reached
    newest = max(steps(run.path), default=0)
    assert newest >= max(reached, (_last_logged(run) - 1) // EVERY * EVERY)
    if newest:
        checkpoint = run.checkpoints / f"step_{newest:08d}"
        assert torch.load(checkpoint / "trainer_state.pt")["n_training_steps"] == newest
        assert all(value.isfinite().all() for value in load_file(checkpoint / WEIGHTS).values())
        assert read_json(checkpoint / "progress.json")["stream"]
    return newest


def require_no_traces(out: Path) -> None:
    assert not Run(out).checkpoints.exists()
    assert not list(out.rglob("*.unfinished"))


def _last_logged(run: Run) -> int:
    if not run.training_log.exists():
        return 0
    lines = run.training_log.read_text().splitlines()
    return max((json.loads(line)["step"] for line in lines), default=0)


def _written(path: Path) -> int:
    """Changes when the file is written anew."""
    return path.stat().st_ino if path.exists() else 0
