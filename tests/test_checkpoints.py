"""Bad batches, full disks and damaged files: the last good checkpoint stays, and is enough."""

from __future__ import annotations

import errno
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import checkpoint_memory
import load_memory
import pytest
import torch
from gated_hub_process import start_fork_server
from run_results import WEIGHTS, fingerprint, steps
from safetensors import SafetensorError
from safetensors.torch import load_file

from gated_plugin import GatedTrainingSAE, checkpoints, runner, sources
from gated_plugin.activations import TextStream
from gated_plugin.errors import GatedError
from gated_plugin.non_finite import NonFiniteLossError
from gated_plugin.recipes import Recipe
from gated_plugin.runner import train
from gated_plugin.runs import Run

pytestmark = pytest.mark.usefixtures("unpacked_once", "one_thread")


class Faulty:
    """Runs into trouble at a given batch or checkpoint."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch

    def batch(self, number: int, value: float) -> None:
        served, genuine = iter(range(1000)), TextStream.__next__

        def spoilt(stream: TextStream) -> torch.Tensor:
            batch = genuine(stream)
            return torch.full_like(batch, value) if next(served) == number else batch

        self.patch.setattr(TextStream, "__next__", spoilt)

    def checkpoint(self, number: int, trouble: Exception) -> None:
        written, genuine = iter(range(1000)), GatedTrainingSAE.save_model

        def full(sae: GatedTrainingSAE, path: Path) -> tuple[Path, Path]:
            saved = genuine(sae, path)
            if next(written) >= number:
                raise trouble
            return saved

        self.patch.setattr(GatedTrainingSAE, "save_model", full)


@pytest.fixture
def faulty() -> Iterator[Faulty]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Faulty(monkeypatch)


@pytest.fixture(scope="module")
def untroubled(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The result of a run in this process."""
    out = tmp_path_factory.mktemp("untroubled") / "run"
    train(Recipe.load(tiny), out, quiet=True)
    return fingerprint(out)


@pytest.mark.parametrize(("value", "every"), [("nan", None), ("nan", 3), ("inf", 4)])
def test_a_batch_that_is_not_finite_is_refused_before_it_changes_anything(
    value: str,
    every: int | None,
    faulty: Faulty,
    tiny: Path,
    tmp_path: Path,
    untroubled: dict[str, object],
) -> None:
    recipe, out = Recipe.load(tiny), tmp_path / "run"
    # Two batches estimate the scaling, one is the look ahead: number 12 is that of step 9.
    faulty.batch(12, float(value))
    with pytest.raises(NonFiniteLossError, match="Training step 9 was refused"):
        train(recipe, out, checkpoint_every=every, quiet=True)
    faulty.patch.undo()
    assert steps(out) == [9]
    train(recipe, out, resume=True, quiet=True)
    assert fingerprint(out) == untroubled


def test_the_checkpoint_before_a_refused_batch_has_the_weights_of_that_moment(
    faulty: Faulty, tiny: Path, tmp_path: Path
) -> None:
    recipe = Recipe.load(tiny)
    faulty.batch(12, float("nan"))
    with pytest.raises(NonFiniteLossError):
        train(recipe, tmp_path / "refused", quiet=True)
    faulty.patch.undo()
    faulty.checkpoint(9, OSError())
    with pytest.raises(GatedError):
        train(recipe, tmp_path / "stopped", checkpoint_every=1, quiet=True)
    refused, stopped = (
        load_file(Run(tmp_path / name).checkpoints / "step_00000009" / WEIGHTS)
        for name in ("refused", "stopped")
    )
    assert all(torch.equal(refused[name], stopped[name]) for name in stopped)


def test_a_model_that_gives_nan_leaves_no_run_behind(
    faulty: Faulty, tiny: Path, tmp_path: Path
) -> None:
    genuine = sources.language_model

    def broken(cfg: object) -> object:
        model = genuine(cfg)
        model.W_E.data.fill_(float("nan"))
        return model

    faulty.patch.setattr(sources, "language_model", broken)
    with pytest.raises(GatedError, match="in prompts 0 to 3 hold NaN or infinity"):
        train(Recipe.load(tiny), tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "trouble",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left")],
)
def test_a_full_disk_leaves_the_last_good_checkpoint(
    trouble: Exception, faulty: Faulty, tiny: Path, tmp_path: Path, untroubled: dict[str, object]
) -> None:
    recipe, out = Recipe.load(tiny), tmp_path / "run"
    faulty.checkpoint(3, trouble)
    with pytest.raises(GatedError) as caught:
        train(recipe, out, checkpoint_every=4, quiet=True)
    said = str(caught.value)
    assert "checkpoint of step 16 could not be written" in said
    assert str(trouble) in said
    assert f"`gated-hub train {out}/recipe.yaml --out {out} --resume`" in said
    assert [folder.name for folder in Run(out).checkpoints.iterdir()] == ["step_00000012"]
    faulty.patch.undo()
    train(recipe, out, resume=True, quiet=True)
    assert fingerprint(out) == untroubled


@pytest.fixture(scope="module")
def stopped(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has a checkpoint of step 2 and nothing more."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(GatedError):
        Faulty(monkeypatch).checkpoint(1, OSError())
        train(Recipe.load(tiny), out, checkpoint_every=2, quiet=True)
    return out


@pytest.mark.skipif(not load_memory.CLEAR_REFS.exists(), reason="Linux says how much was needed")
def test_writing_needs_the_memory_of_some_blocks() -> None:
    start_fork_server()
    context = multiprocessing.get_context("forkserver")
    here, there = context.Pipe(duplex=False)
    arguments = (there, 512, 16384)
    child = context.Process(target=checkpoint_memory.measure_in_a_child, args=arguments)
    child.start()
    there.close()
    measured = here.recv()
    child.join()
    blocks = 8 * checkpoint_memory.BLOCK_BYTES
    assert blocks < measured.matrix / 3
    assert measured.checkpoint < blocks
    assert measured.trained_sae < blocks


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    "file",
    [
        WEIGHTS,
        "trainer_state.pt",
        "activation_scaler.json",
        checkpoints.PROGRESS,
        checkpoints.RANDOM_STATES,
    ],
)
@pytest.mark.parametrize("damage", [truncate, Path.unlink])
def test_a_damaged_checkpoint_is_one_sentence_that_names_it(
    file: str, damage: Callable[[Path], None], stopped: Path, tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    damage(Run(out).checkpoints / "step_00000002" / file)
    with pytest.raises(GatedError, match="step_00000002 cannot be read") as caught:
        train(Recipe.load(tiny), out, resume=True, quiet=True)
    assert "\n" not in str(caught.value)
    assert steps(out) == [2]


def test_torchs_random_state_is_that_of_the_checkpoint(
    faulty: Faulty, tiny: Path, tmp_path: Path
) -> None:
    seen: list[torch.Tensor] = []
    genuine = runner._step

    def noisy(*arguments: object) -> object:
        seen.append(torch.rand(2))
        return genuine(*arguments)

    faulty.patch.setattr(runner, "_step", noisy)
    train(Recipe.load(tiny), tmp_path / "straight", quiet=True)
    straight, seen[:] = list(seen), []
    faulty.checkpoint(1, OSError())
    with pytest.raises(GatedError):
        train(Recipe.load(tiny), tmp_path / "run", checkpoint_every=7, quiet=True)
    faulty.patch.setattr(GatedTrainingSAE, "save_model", GatedTrainingSAE.__mro__[2].save_model)
    del seen[7:]
    train(Recipe.load(tiny), tmp_path / "run", resume=True, quiet=True)
    assert torch.equal(torch.stack(seen), torch.stack(straight))
