"""The pushes and pulls that faults strike, each done once without any, to know what to expect."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from faults import Exchange
from miniature import D_SAE
from safetensors.torch import save_file
from world import Tree, World, world

from gated_plugin.runs import Run

COMMIT = re.compile(r"(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f])")


class Step(NamedTuple):
    """One of the requests that a command makes."""

    method: str
    pattern: str
    """Of its path, for any commit."""
    skip: int
    """So many requests before it look the same."""
    sent: int
    """Bytes of its body."""
    received: int
    """Bytes of the answer's body."""

    @property
    def place(self) -> dict[str, Any]:
        """For `FaultyProxy.fail`."""
        return {"method": self.method, "pattern": self.pattern, "skip": self.skip}

    def __str__(self) -> str:
        return f"{self.method} {self.pattern} #{self.skip + 1}"


@dataclass(frozen=True)
class Scene:
    """A command and all that it finds when it begins."""

    name: str
    command: str
    """`push` or `pull`."""
    start: Path
    """Folder of the world before it."""
    steps: Sequence[Step]
    before: Tree
    after: Tree
    """What there is when it succeeds."""
    other: Tree
    """What there is instead, after somebody else pushed another SAE."""
    both: Tree
    """What there is when it succeeds after that."""


class Scenes:
    """Makes the scenes in `folder`.

    Args:
        run: the one that is pushed; its siblings differ from it a little.
    """

    def __init__(self, run: Path, folder: Path) -> None:
        self._folder = folder
        self._runs = {"mine": run}
        for name in ("older", "sibling", "other"):
            self._runs[name] = folder / "runs" / name
            shutil.copytree(run, self._runs[name])
        older = Run(self._runs["older"])
        save_file({"sparsity": torch.zeros(D_SAE)}, older.sae / "sparsity.safetensors")
        for name, l0 in (("sibling", 5.0), ("other", 7.0)):
            evaluation = Run(self._runs[name]).evaluation
            evaluation.write_text(json.dumps({**json.loads(evaluation.read_text()), "l0": l0}))

    def make(self) -> list[Scene]:
        return [
            self._scene("push to a new repository", "push"),
            self._scene("push to an older state", "push", "sibling", "older"),
            self._scene("pull", "pull", "sibling", "mine"),
            self._scene("pull over an older state", "pull", "sibling", "older", "pull", "mine"),
        ]

    def _scene(self, name: str, command: str, *past: str) -> Scene:
        """One that begins after pushes of the runs in `past`."""
        start = self._folder / name / "start"
        with world(start) as scene:
            for step in past:
                if step != "pull":
                    self._place(step, start / "run")
                _succeed(scene, "pull" if step == "pull" else "push")
        self._place("mine", start / "run")
        self._place("other", start / "run of other")
        with world(_copy(start, "alone")) as alone:
            before = alone.result(command)
            _succeed(alone, command)
            steps, after = _steps(alone.proxy.requests), alone.result(command)
        with world(_copy(start, "with other")) as shared:
            assert shared.start_other().wait().code == 0
            other = shared.result(command)
            _succeed(shared, command)
            both = shared.result(command)
        return Scene(name, command, start, steps, before, after, other, both)

    def _place(self, name: str, target: Path) -> None:
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(self._runs[name], target)


def _copy(start: Path, name: str) -> Path:
    return Path(shutil.copytree(start, start.with_name(name), symlinks=True))


def _succeed(scene: World, command: str) -> None:
    ended = scene.do(command)
    assert ended.code == 0, ended.stderr


def _steps(exchanges: Sequence[Exchange]) -> list[Step]:
    seen: Counter[tuple[str, str]] = Counter()
    steps = []
    for exchange in exchanges:
        pattern = "^" + COMMIT.sub("[0-9a-f]{40}", re.escape(exchange.path)) + "$"
        alike = exchange.method, pattern
        steps.append(Step(*alike, seen[alike], exchange.sent, exchange.received))
        seen[alike] += 1
    return steps
