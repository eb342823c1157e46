"""Dead features are resampled in every runner, and a run that was stopped goes on bit for bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from gated_hub_process import Command, Ended
from run_results import fingerprint, steps
from sae_lens import (
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
    MultiSAETrainingRunner,
    MultiSAETrainingRunnerConfig,
)
from sae_lens.saes.sae import TrainingSAE
from sae_lens.synthetic import SyntheticModelConfig, SyntheticSAERunner, SyntheticSAERunnerConfig

from gated_plugin import GatedTrainingSAEConfig, quickstart
from gated_plugin.errors import GatedError
from gated_plugin.recipes import Recipe
from gated_plugin.runs import Run

RESAMPLING = {"resampling": "paper", "resample_steps": [6, 12], "resample_window": 5}
OVERRIDES = (
    "training_tokens=2560",
    "sae.l1_coefficient=100",
    "sae.resampling=paper",
    "sae.resample_steps=[12, 24]",
    "sae.resample_window=4",
    "sae.rewarm_steps=9",
    "lr=0.05",
    "engine.deterministic=true",
    "lr_warm_up_steps=2",
    "lr_decay_steps=10",
)
QUIET = LoggingConfig(log_to_wandb=False)
LANGUAGE_MODEL = {
    "model_name": quickstart.MODEL_NAME,
    "training_tokens": 64 * 14,
    "train_batch_size_tokens": 64,
    "store_batch_size_prompts": 2,
    "n_batches_in_buffer": 2,
    "context_size": 128,
    "adam_beta1": 0.0,
    "lr": 0.04,
    "logger": QUIET,
    "checkpoint_path": None,
    "output_path": None,
    "verbose": False,
}
HOOK = "blocks.0.hook_resid_post"


def sparse(d_in: int = 256, d_sae: int = 64, **fields: object) -> GatedTrainingSAEConfig:
    """At a λ at which features die."""
    plan = {**RESAMPLING, "rewarm_steps": 4, **fields}
    return GatedTrainingSAEConfig(d_in=d_in, d_sae=d_sae, l1_coefficient=100.0, **plan)


def require_resampled(sae: TrainingSAE) -> None:
    assert [event.step for event in sae.resampler.history] == [6, 12]
    assert all(event.resampled == event.dead for event in sae.resampler.history)
    assert sum(event.resampled for event in sae.resampler.history) > 0
    assert (sae.W_dec.detach().double().norm(dim=1) - 1).abs().max() < 1e-6


@pytest.fixture(scope="module")
def language_model():
    return quickstart.language_model()


@pytest.fixture
def data(language_model):
    rows = quickstart.dataset("embedded/books").select(range(64))
    return {"override_model": language_model, "override_dataset": rows}


def test_saelens_runner_resamples_and_resumes_with_the_state(data, tmp_path):
    values = {**LANGUAGE_MODEL, "checkpoint_path": str(tmp_path), "n_checkpoints": 1}
    cfg = LanguageModelSAERunnerConfig(sae=sparse(), hook_name=HOOK, **values)
    sae = LanguageModelSAETrainingRunner(cfg, **data).run()
    require_resampled(sae)
    (checkpoint,) = (path.parent for path in tmp_path.rglob("trainer_state.pt"))
    cfg = LanguageModelSAERunnerConfig(
        sae=sparse(), hook_name=HOOK, resume_from_checkpoint=str(checkpoint), **LANGUAGE_MODEL
    )
    resumed = LanguageModelSAETrainingRunner(cfg, **data).run()
    require_resampled(resumed)
    assert resumed.resampler.history[0] == sae.resampler.history[0]


def test_multi_sae_runner_resamples_each_by_its_own_plan(data):
    saes = {"on": sparse(), "off": sparse(resampling="off", resample_steps=[])}
    values = {key: value for key, value in LANGUAGE_MODEL.items() if key != "verbose"}
    cfg = MultiSAETrainingRunnerConfig(saes=saes, hook_names=HOOK, **values)
    trained = MultiSAETrainingRunner(cfg, **data).run()
    require_resampled(trained["on"])
    assert trained["off"].resampler is None


def test_synthetic_runner_resamples():
    cfg = SyntheticSAERunnerConfig(
        synthetic_model=SyntheticModelConfig(num_features=32, hidden_dim=16),
        sae=sparse(16, 32),
        training_samples=14 * 32,
        batch_size=32,
        lr=0.05,
        eval_frequency=0,
        run_final_eval=False,
        output_path=None,
        checkpoint_path=None,
        logger=QUIET,
    )
    runner = SyntheticSAERunner(cfg)
    runner.run()
    require_resampled(runner.sae)


def arguments(recipe: Path, out: Path) -> list[object]:
    sets = [word for override in OVERRIDES for word in ("--set", override)]
    return ["train", recipe, *sets, "--out", out, "--checkpoint-every", 1]


def test_a_schedule_that_outlasts_the_run_is_refused(tiny: Path) -> None:
    with pytest.raises(GatedError, match=r"ends at 24, but the run has 20 steps; leave out"):
        Recipe.load(tiny, OVERRIDES[1:])


def test_a_run_killed_about_a_resampling_ends_bit_identical(
    gated_hub: Callable[..., Ended], start: Callable[..., Command], tiny: Path, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert gated_hub(*arguments(tiny, whole)).code == 0
    # In the window of step 12, just after it, and on the way up.
    for step in (9, 12, 15):
        command = start(*arguments(tiny, killed), "--resume")
        command.wait_until(lambda step=step: max(steps(killed), default=0) >= step)
        command.kill()
        assert not Run(killed).is_trained
    assert start(*arguments(tiny, killed), "--resume").wait().code == 0
    assert fingerprint(killed) == fingerprint(whole)
    log = [json.loads(line) for line in Run(whole).training_log.read_text().splitlines()]
    resampled = {line["step"]: line["resampled_features"] for line in log}
    assert 0 == resampled[11] < resampled[12] == resampled[23]
    factors = {line["step"]: line["lr_factor"] for line in log}
    assert factors[11] == 1 and factors[12] == pytest.approx(0.1)
    assert factors[12] < factors[16] < factors[20] < factors[21] == 1
