"""`gated-hub train --synthetic`: a run without a language model, from training to figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gated_hub_process import Command, Ended
from run_results import fingerprint, steps
from safetensors.torch import load_file

from gated_plugin import sources
from gated_plugin.cli.commands import app
from gated_plugin.convert import convert
from gated_plugin.errors import GatedError
from gated_plugin.recipes import SYNTHETIC, Recipe
from gated_plugin.runner import train
from gated_plugin.runs import Run
from gated_plugin.science.evaluation import evaluate, load_sae, measure
from gated_plugin.science.held_out import HeldOutActivations
from gated_plugin.science.sweep import sweep
from gated_plugin.synthetic_stream import SyntheticStream

LOSSES = ("loss_recovered", "loss_recovered_interval", "ce_clean", "ce_sae", "ce_zero")


@pytest.fixture(autouse=True)
def no_language_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a language model or a text was opened")

    monkeypatch.setattr(sources, "language_model", refuse)
    monkeypatch.setattr(sources, "token_rows", refuse)


@pytest.fixture(scope="module")
def recipe(tiny: Path) -> Recipe:
    return Recipe.load(tiny, ["synthetic=true"])


@pytest.fixture(scope="module")
def trained(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(recipe, tmp_path_factory.mktemp("trained") / "run", quiet=True)


def test_a_killed_run_ends_bit_identical(
    start: Callable[..., Command], gated_hub: Callable[..., Ended], tiny: Path, tmp_path: Path
) -> None:
    more = ("--synthetic", "--set", "training_tokens=2560", "--checkpoint-every", 1)
    assert gated_hub("train", tiny, *more, "--out", tmp_path / "whole").code == 0
    killed = start("train", tiny, *more, "--out", tmp_path / "run")
    killed.wait_until(lambda: max(steps(tmp_path / "run"), default=0) >= 7)
    killed.kill()
    resumed = gated_hub(
        "train", tmp_path / "run/recipe.yaml", "--out", tmp_path / "run", "--resume"
    )
    assert resumed.code == 0, resumed.stderr
    assert fingerprint(tmp_path / "run") == fingerprint(tmp_path / "whole")


def test_the_run_remembers_that_it_is_synthetic(trained: Run, tiny: Path) -> None:
    assert Recipe.load(trained.recipe).synthetic
    assert not Recipe.load(tiny).synthetic
    metadata = json.loads((trained.sae / "cfg.json").read_text())["metadata"]
    assert metadata["synthetic"] is True
    assert not {"model_name", "hook_name", "dataset_path"} & metadata.keys()


@pytest.mark.parametrize("synthetic", [True, False])
def test_resuming_as_the_other_kind_is_one_sentence(
    synthetic: bool, tiny: Path, tmp_path: Path
) -> None:
    Run(tmp_path).recipe.write_text(
        Recipe.load(tiny, [f"synthetic={str(not synthetic).lower()}"]).to_yaml()
    )
    recipe = Recipe.load(tiny, [f"synthetic={str(synthetic).lower()}"])
    with pytest.raises(GatedError) as caught:
        train(recipe, tmp_path, resume=True, quiet=True)
    assert f"was started with synthetic = {not synthetic}, not {synthetic}; resume it" in str(
        caught.value
    )


def test_a_variant_trains_into_a_folder_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sets = ["device=cpu", "sae.d_in=16", "sae.d_sae=32", "train_batch_size_tokens=8"]
    sets += ["training_tokens=80", "lr_warm_up_steps=0", "sae.resample_steps=[5]"]
    sets += ["sae.resample_window=3"]
    words = [word for override in sets for word in ("--set", override)]
    app(
        ["train", "gemma-7b/attn-6-lambda-0.0007", "--synthetic", "--quiet", *words],
        standalone_mode=False,
    )
    run = Run.open("runs/gemma-7b-attn-6-lambda-0.0007-synthetic")
    found = evaluate(run, Recipe.load(run.recipe, ["evaluation.tokens=1024"]), quiet=True)
    assert found.tokens_evaluated == 1024


def test_what_needs_no_language_model_is_measured(trained: Run, recipe: Recipe) -> None:
    found = evaluate(trained, recipe, quiet=True)
    assert found.dataset_path == SYNTHETIC
    assert found.tokens_evaluated == 2048
    assert found.context_size is None
    assert [getattr(found, name) for name in LOSSES] == [None] * 5
    written = json.loads(trained.evaluation.read_text())
    assert written["ce_sae"] is None
    cfg = recipe.runner_config()
    x = torch.cat([batch.x_TN for batch in HeldOutActivations(recipe, cfg)])
    sae = load_sae(trained)
    with torch.no_grad():
        features, x_hat = sae.encode(x), sae(x).double()
    x = x.double()
    assert found.l0 == pytest.approx((features > 0).sum(1).double().mean().item(), rel=1e-3)
    fvu = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    assert found.fvu == pytest.approx(fvu.item(), rel=1e-4)
    gamma = x_hat.square().sum() / (x_hat * x).sum()
    assert found.gamma == pytest.approx(gamma.item(), rel=1e-4)
    for name in ("l0", "fvu", "gamma"):
        low, high = getattr(found, f"{name}_interval")
        assert low < getattr(found, name) < high
    rates = load_file(trained.features)["firing_rate"]
    assert rates.sum().item() == pytest.approx(found.l0)
    assert torch.equal(load_file(trained.activations)["activations"], x[:256].float())


def test_what_is_held_out_differs_from_training_and_is_the_same_for_every_seed(
    tiny: Path, recipe: Recipe
) -> None:
    other = Recipe.load(tiny, ["synthetic=true", "seed=3"])
    (ours, *_), (theirs, *_) = (
        HeldOutActivations(each, each.runner_config()) for each in (recipe, other)
    )
    assert torch.equal(ours.x_TN, theirs.x_TN)
    seen = next(SyntheticStream(recipe.runner_config()))
    assert not torch.equal(ours.x_TN[:64], seen)


def test_weights_that_are_not_finite_are_named(trained: Run, recipe: Recipe) -> None:
    sae = load_sae(trained)
    sae.W_dec.data[0] = torch.nan
    sae.b_dec.data[0] = torch.nan
    with pytest.raises(GatedError, match="synthetic activations is not finite; nothing was wr"):
        measure(sae, recipe, quiet=True)


def test_the_command_shows_the_figures_that_there_are(
    trained: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    app(["eval", str(trained.path)], standalone_mode=False)
    shown = capsys.readouterr().out
    assert f"{trained.path} on synthetic activations" in shown
    assert "loss_recovered          -\n" in shown
    assert (trained.plots / "features.png").exists()
    app(["eval", str(trained.path), "--json"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out)["loss_recovered"] is None


def test_a_sweep_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(GatedError, match="synthetic=false"):
        sweep(recipe, tmp_path / "sweep", lambdas=[1.0], quiet=True)


def test_a_conversion_measures_no_loss(trained: Run, tmp_path: Path) -> None:
    found = convert(trained.path, "bf16", tmp_path / "half").record["audit"]["loss_recovered"]
    assert found == {"not_measured": "the run is of synthetic activations and no language model"}


@pytest.mark.parametrize("value", ["maybe", "1.5", "[]"])
def test_the_key_is_yes_or_no(value: str, tiny: Path) -> None:
    with pytest.raises(GatedError, match="synthetic"):
        Recipe.load(tiny, [f"synthetic={value}"])
