"""Training: a run that is killed, stopped or spoilt goes on, and ends as if nothing had been."""

from __future__ import annotations

import errno
import hashlib
import json
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from gated_hub_process import SINGLE_THREADED, Command, Ended
from sae_lens import SAE
from safetensors.torch import load_file, save_file

from gated_plugin import GatedSAE, GatedTrainingSAE, checkpoints, runner, sources
from gated_plugin.activations import ActivationStream
from gated_plugin.errors import GatedError
from gated_plugin.recipes import Recipe
from gated_plugin.runner import train
from gated_plugin.runs import Run
from gated_plugin.training import NonFiniteLossError

WEIGHTS = "sae_weights.safetensors"

# All the state there is: whitening, a λ that warms up and is steered, a schedule, two epochs' worth.
STATEFUL = (
    "training_tokens=2560",
    "sae.normalize_activations=covariance_whitening",
    "sae.l1_warm_up_steps=10",
    "sae.target_l0=8",
    "lr_warm_up_steps=5",
    "lr_decay_steps=10",
    "adam_beta1=0.9",
)


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


def arguments(recipe: Path, out: Path, overrides: tuple[str, ...]) -> list[object]:
    sets = [word for override in overrides for word in ("--set", override)]
    return ["train", recipe, *sets, "--out", out, "--checkpoint-every", 1]


def error(ended: Ended, code: int = 1) -> str:
    """The one sentence that a command ended with."""
    assert ended.code == code
    assert ended.stdout == ""
    assert "Traceback" not in ended.stderr
    (line,) = ended.stderr.splitlines()
    return line


@pytest.fixture(scope="module", autouse=True)
def one_thread(unpacked_once: None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
    command = start(*arguments(tiny, out, ()), "--checkpoint-every", 100)
    command.wait_until((out / "training.jsonl").exists)
    command.signal(number)
    said = error(command.wait(), 130)
    assert said.startswith("Error: Stopped at step ")
    (step,) = steps(out)
    assert f"step {step} of 20" in said
    _, again, _ = said.split("`")
    program, *words = shlex.split(again)
    assert program == "gated-hub"
    assert gated_hub(*words).code == 0
    assert fingerprint(out) == uninterrupted[()]


def test_a_folder_in_use_is_refused_and_left_alone(
    gated_hub: Callable[..., Ended], tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    assert "is not empty and no run; give another --out." in error(
        gated_hub("train", tiny, "--out", out)
    )
    assert [file.name for file in out.iterdir()] == ["thesis.tex"]


def test_a_second_run_into_the_same_folder_is_refused_and_a_trained_one_kept(
    tiny: Path, tmp_path: Path
) -> None:
    recipe, out = Recipe.load(tiny), tmp_path / "run"
    train(recipe, out, quiet=True)
    before = fingerprint(out)
    with pytest.raises(GatedError, match="already holds a run; continue it with --resume"):
        train(recipe, out, quiet=True)
    train(recipe, out, resume=True, quiet=True)
    assert fingerprint(out) == before


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("lr=0.002", "lr = 0.001, not 0.002"),
        ("sae.d_sae=32", "sae.d_sae = 64, not 32"),
        ("evaluation.tokens=64", "evaluation.tokens = 2048, not 64"),
        ("seed=1", "seed = None, not 1"),
    ],
)
def test_resuming_with_another_recipe_is_refused(
    tiny: Path, tmp_path: Path, override: str, part: str
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    Run(out).recipe.write_text(tiny.read_text())
    with pytest.raises(GatedError) as caught:
        train(Recipe.load(tiny, [override]), out, resume=True, quiet=True)
    assert part in str(caught.value)
    assert f"resume it with `gated-hub train {out}/recipe.yaml --out {out} --res" in str(
        caught.value
    )


class Faulty:
    """Runs into trouble at a given batch or checkpoint."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch

    def batch(self, number: int, value: float) -> None:
        served, genuine = iter(range(1000)), ActivationStream.__next__

        def spoilt(stream: ActivationStream) -> torch.Tensor:
            batch = genuine(stream)
            return torch.full_like(batch, value) if next(served) == number else batch

        self.patch.setattr(ActivationStream, "__next__", spoilt)

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
    [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos 128 vs 22")],
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


def test_the_folder_of_a_run_that_could_not_begin_is_free_for_the_mended_one(
    tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for override in (
        "sae.d_in=128",
        "hook_name=blocks.7.hook_resid_post",
        "train_batch_size_tokens=513",
        "lr_scheduler_name=linear",
        "dataset_path=embedded/films",
        "device=cuda:77",
        f"from_pretrained_path={tmp_path / 'nowhere'}",
    ):
        with pytest.raises(GatedError):
            train(Recipe.load(tiny, [override]), out, quiet=True)
        assert not out.exists()
    assert train(Recipe.load(tiny), out, quiet=True).is_trained


@pytest.mark.parametrize(
    "normalization", ["none", "expected_average_only_in", "covariance_whitening", "layer_norm"]
)
def test_the_saved_sae_loads_and_its_decoder_is_of_unit_norm(
    normalization: str, tiny: Path, tmp_path: Path
) -> None:
    overrides = [f"sae.normalize_activations={normalization}", "n_batches_for_norm_estimate=8"]
    run = train(Recipe.load(tiny, overrides), tmp_path / "run", quiet=True)
    sae = SAE.load_from_disk(run.sae)
    assert isinstance(sae, GatedSAE)
    assert (sae.W_dec.double().norm(dim=1) - 1).abs().max() < 1e-6
    kept = normalization if normalization == "layer_norm" else "none"
    assert sae.cfg.normalize_activations == kept
    assert load_file(run.sae / "sparsity.safetensors")["sparsity"].shape == (64,)
    for name in runner.METADATA:
        assert name in sae.cfg.metadata, name


def test_the_scaling_is_folded_exactly(tiny: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(tiny, ["sae.normalize_activations=covariance_whitening"])
    trainer, stream = runner._trainer(recipe)
    runner._prepare(trainer, stream, recipe)
    x = next(stream)
    with torch.no_grad():
        before = trainer.sae.encode(trainer.activation_scaler(x)) > 0
    runner._finish(Run(tmp_path), trainer, recipe)
    with torch.no_grad():
        after = SAE.load_from_disk(tmp_path / "sae").encode(x) > 0
    assert (before == after).float().mean() > 0.999


@pytest.mark.parametrize(
    ("overrides", "dtype"),
    [
        (["autocast=true"], torch.float32),
        (["sae.dtype=bfloat16"], torch.bfloat16),
        (["sae.dtype=bfloat16", "autocast=true"], torch.bfloat16),
        (["sae.dtype=float64"], torch.float64),
        (["autocast_lm=true"], torch.float32),
    ],
)
def test_low_precision_trains_and_gate_vectors_are_never_below_float32(
    overrides: list[str], dtype: torch.dtype, tiny: Path, tmp_path: Path
) -> None:
    run = train(Recipe.load(tiny, overrides), tmp_path / "run", quiet=True)
    weights = load_file(run.sae / WEIGHTS)
    assert weights["W_enc"].dtype == weights["W_dec"].dtype == dtype
    for name in ("b_gate", "b_mag", "r_mag"):
        assert weights[name].dtype == torch.promote_types(dtype, torch.float32)
        assert weights[name].isfinite().all()
    losses = [json.loads(line)["mse_loss"] for line in run.training_log.read_text().splitlines()]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], [1e-3] * 20),
        (["lr_warm_up_steps=4"], [2.5e-4, 5e-4, 7.5e-4, *[1e-3] * 17]),
        (["lr_scheduler_name=cosineannealing", "lr_end=5e-4"], None),
    ],
)
def test_the_learning_rate_follows_the_recipe(
    overrides: list[str], expected: list[float] | None, tiny: Path, tmp_path: Path
) -> None:
    run = train(Recipe.load(tiny, overrides), tmp_path / "run", quiet=True)
    rates = [json.loads(line)["lr"] for line in run.training_log.read_text().splitlines()]
    if expected is None:
        assert rates == sorted(rates, reverse=True)
        assert rates[-1] == pytest.approx(5e-4)
    else:  # the log has the rate of the step that comes
        assert rates[:19] == pytest.approx(expected[1:])


class TestWarmStart:
    @pytest.fixture(scope="class")
    def pretrained(self, tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
        out = tmp_path_factory.mktemp("pretrained") / "run"
        return train(Recipe.load(tiny, ["sae.normalize_activations=none"]), out, quiet=True).sae

    def recipe(self, tiny: Path, start: Path, *overrides: str) -> Recipe:
        sets = ["sae.normalize_activations=none", f"from_pretrained_path={start}", *overrides]
        return Recipe.load(tiny, sets)

    def test_training_begins_with_the_weights_there(
        self, pretrained: Path, tiny: Path, tmp_path: Path
    ) -> None:
        run = train(self.recipe(tiny, pretrained, "lr=1e-30"), tmp_path / "run", quiet=True)
        begun, ended = (load_file(sae / WEIGHTS) for sae in (pretrained, run.sae))
        for name, tensor in begun.items():
            assert (ended[name] - tensor).abs().max() < 1e-6, name

    @pytest.mark.parametrize(
        ("override", "part"),
        [
            ("sae.d_sae=32", "has d_sae = 64, but the recipe says 32; give --set sae.d_sae=64."),
            ("sae.normalize_activations=layer_norm", "give --set sae.normalize_activations=none."),
        ],
    )
    def test_an_sae_of_another_shape_or_scale_is_refused(
        self, override: str, part: str, pretrained: Path, tiny: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(GatedError) as caught:
            train(self.recipe(tiny, pretrained, override), tmp_path / "run", quiet=True)
        assert part in str(caught.value)

    def test_a_damaged_sae_is_one_sentence(
        self, pretrained: Path, tiny: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "cfg.json").write_bytes((pretrained / "cfg.json").read_bytes())
        save_file({"W_enc": torch.zeros(2)}, tmp_path / WEIGHTS)
        with pytest.raises(GatedError, match=r"cannot be read .* give another from_pre"):
            train(self.recipe(tiny, tmp_path), tmp_path / "run", quiet=True)
