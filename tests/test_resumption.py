"""A run that is killed or stopped goes on, and ends bit for bit as if nothing had been."""

from __future__ import annotations

import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from gated_hub_process import SINGLE_THREADED, Command, Ended
from run_results import fingerprint, steps

from gated_plugin.runs import Run

# All the state there is: whitening, a λ that warms up and is steered, a schedule, two moments.
STATEFUL = (
    "training_tokens=2560",
    "sae.normalize_activations=covariance_whitening",
    "sae.l1_warm_up_steps=10",
    "sae.target_l0=8",
    "lr_warm_up_steps=5",
    "lr_decay_steps=10",
    "adam_beta1=0.9",
)


def arguments(recipe: Path, out: Path, overrides: tuple[str, ...]) -> list[object]:
    sets = [word for override in overrides for word in ("--set", override)]
    return ["train", recipe, *sets, "--out", out, "--checkpoint-every", 1]


@pytest.fixture(scope="module")
def uninterrupted(
    gated_hub: Callable[..., Ended], tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, ...], dict[str, object]]:
    """The results of runs that nothing happened to, by their overrides."""
    results = {}
    for overrides in ((), STATEFUL):
        out = tmp_path_factory.mktemp("uninterrupted") / "run"
        assert gated_hub(*arguments(tiny, out, overrides)).code == 0
        assert not Run(out).checkpoints.exists()
        results[overrides] = fingerprint(out)
    return results


def test_a_run_killed_again_and_again_ends_bit_identical(
    start: Callable[..., Command],
    tiny: Path,
    tmp_path: Path,
    uninterrupted: dict[tuple[str, ...], dict[str, object]],
) -> None:
    out, chance = tmp_path / "run", random.Random()
    for kill, step in enumerate((1, 9, 17, 25, 33)):
        command = start(*arguments(tiny, out, STATEFUL), "--resume")
        command.wait_until(lambda step=step: max(steps(out), default=0) >= step)
        if kill % 2:  # while a checkpoint is being written
            command.wait_until(lambda: list(out.glob("checkpoints/.*.unfinished")))
        else:
            time.sleep(chance.uniform(0, 0.05))
        command.kill()
        assert steps(out), "the last good checkpoint is gone"
        assert not Run(out).is_trained
    assert start(*arguments(tiny, out, STATEFUL), "--resume").wait().code == 0
    assert fingerprint(out) == uninterrupted[STATEFUL]
    assert not list(out.rglob("*.unfinished"))


def test_the_installed_command_killed_once_ends_bit_identical(
    gated_hub: Callable[..., Ended],
    tiny: Path,
    tmp_path: Path,
    uninterrupted: dict[tuple[str, ...], dict[str, object]],
) -> None:
    out = tmp_path / "run"
    program = Path(sys.executable).with_name("gated-hub")
    with (tmp_path / "printed").open("w") as printed:
        process = subprocess.Popen(
            [str(word) for word in (program, *arguments(tiny, out, ()), "--quiet")],
            env={"PATH": "", "HOME": str(tmp_path), **SINGLE_THREADED},
            stdout=printed,
            stderr=printed,
        )
    deadline = time.monotonic() + 60
    while not steps(out) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.0005)
    process.kill()
    process.wait()
    assert steps(out) and not Run(out).is_trained
    assert (tmp_path / "printed").read_text() == ""
    assert gated_hub(*arguments(tiny, out, ()), "--resume").code == 0
    assert fingerprint(out) == uninterrupted[()]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_how_to_go_on_and_does(
    number: int,
    start: Callable[..., Command],
    gated_hub: Callable[..., Ended],
    tiny: Path,
    tmp_path: Path,
    uninterrupted: dict[tuple[str, ...], dict[str, object]],
) -> None:
    out = tmp_path / "run"
    command = start(*arguments(tiny, out, ()), "--checkpoint-every", 100, "--quiet")
    command.wait_until((out / "training.jsonl").exists)
    command.signal(number)
    code, answer, said = command.wait()
    (step,) = steps(out)
    assert (code, answer) == (130, "")
    assert said.startswith(f"Error: Stopped at step {step} of 20; continue with `gated-hub train ")
    assert said.count("\n") == 1
    _, again, _ = said.split("`")
    program, *words = shlex.split(again)
    assert program == "gated-hub"
    assert gated_hub(*words).code == 0
    assert fingerprint(out) == uninterrupted[()]
