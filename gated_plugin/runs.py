"""What a run folder holds: the one place that knows its file names.

runs/x/
  recipe.yaml               the recipe as it was run, with every --set in it
  environment.json          versions, machine and command
  training.jsonl            a line per logged step
  checkpoints/step_*/       the last good checkpoint, while training
  sae/                      the trained SAE as SAELens saves it, activation scaling folded in
  evaluation.json           the figures on held-out text or activations
  features.safetensors      per feature [d_sae]: firing rate, mean magnitude, θ, encoder–decoder cosine
  activations.safetensors   a few held-out activations [rows, d_in], to compare features on
  plots/                    png
  publication/              what was pushed: one folder per SAE, card, index
  summary.json              all figures in one table
  .lock                     held by the process that works on the run
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EDQUOT, EFBIG, ENOSPC
from pathlib import Path
from typing import Any

from gated_plugin.errors import GatedError

NO_ROOM = (ENOSPC, EDQUOT, EFBIG)
UNFINISHED = ".unfinished"
"""Ends the name of what is still being written; a kill may leave it behind."""


@dataclass(frozen=True)
class Run:
    """A run folder."""

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """A run that exists.

        Raises:
            GatedError: there is no run at `path`.
        """
        run = cls(Path(path))
        if not run.recipe.exists():
            raise GatedError(
                f"{path} is no run folder: it has no recipe.yaml; make one with "
                "`gated-hub train quickstart --out runs/quickstart`."
            )
        return run

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process trains, evaluates or pushes this run within the `with` block.

        What a killed process left half written is deleted.

        Raises:
            GatedError: one does now.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise GatedError(
                f"Another process works on {self.path}; wait for its end, and run the same command "
                "again."
            ) from None
        try:
            for folder in (self.path, self.checkpoints):
                for left in folder.glob(f".*{UNFINISHED}"):
                    _delete(left)
            yield
        finally:
            lock.release()

    @contextmanager
    def writing(self, what: str, again: str | None = None) -> Iterator[None]:
        """Within the block `what` is written.

        Args:
            again: the command that writes it again; by default what continues the training.

        Raises:
            GatedError: the disk is full or fails; it says how to go on.
        """
        from safetensors import SafetensorError

        try:
            yield
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            remedy = "mend that" if getattr(error, "errno", ENOSPC) not in NO_ROOM else "make room"
            goes_on = f"`{again or self.command}`"
            goes_on = goes_on if self.recipe.exists() else "give the same command again"
            raise GatedError(
                f"{what} could not be written ({reason}); what was saved before is kept: {remedy}, "
                f"then {goes_on}."
            ) from error

    @property
    def command(self) -> str:
        """What continues its training."""
        return f"gated-hub train {self.recipe} --out {self.path} --resume"

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def recipe(self) -> Path:
        return self.path / "recipe.yaml"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def training_log(self) -> Path:
        return self.path / "training.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def sae(self) -> Path:
        return self.path / "sae"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def features(self) -> Path:
        return self.path / "features.safetensors"

    @property
    def activations(self) -> Path:
        return self.path / "activations.safetensors"

    @property
    def plots(self) -> Path:
        return self.path / "plots"

    @property
    def publication(self) -> Path:
        return self.path / "publication"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def is_trained(self) -> bool:
        return (self.sae / "sae_weights.safetensors").exists()

    def require_trained(self) -> None:
        """Raise `GatedError` unless training has finished."""
        if not self.is_trained:
            raise GatedError(
                f"{self.path} holds no trained SAE yet; finish its training with `{self.command}`."
            )

    def require_evaluated(self) -> None:
        """Raise `GatedError` unless the figures on held-out text are there."""
        self.require_trained()
        if not self.evaluation.exists():
            raise GatedError(
                f"{self.path} has not been evaluated; run `gated-hub eval {self.path}` first."
            )


def read_json(path: Path) -> Any:
    """The JSON value in a file of ours.

    Raises:
        GatedError: the file is missing or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GatedError(f"{path} is missing; run the step that writes it again.") from None
    except ValueError as error:
        raise GatedError(
            f"{path} is damaged ({error}); delete it and run the step that writes it again."
        ) from None


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value so that a kill leaves the old file or the new one."""
    with beside(path) as unfinished:
        unfinished.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """A sibling path to write a file to; renamed to `path`, on disk, when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        yield unfinished
        _sync(unfinished)
        unfinished.replace(path)
        _sync(path.parent)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """An empty sibling folder to fill; when the block ends well it is put on disk and takes the
    place of `path`, whatever is there. A kill leaves the old folder, the new one, or none."""
    unfinished = path.with_name(f".{path.name}{UNFINISHED}")
    replaced = path.with_name(f".{path.name}.replaced{UNFINISHED}")
    _delete(unfinished)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        for written in (*unfinished.rglob("*"), unfinished):
            _sync(written)
        if path.exists():
            _delete(replaced)
            path.rename(replaced)
        unfinished.rename(path)
        _sync(path.parent)
    finally:
        _delete(unfinished)
        _delete(replaced)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Of a folder: the names in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
