"""Training by a recipe: what is refused, what is honoured, and what is saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from run_results import WEIGHTS, fingerprint
from sae_lens import SAE
from sae_lens.saes.sae import TrainingSAE
from safetensors.torch import load_file, save_file

from gated_plugin import GatedSAE, runner
from gated_plugin.errors import GatedError
from gated_plugin.recipes import Recipe
from gated_plugin.runner import train
from gated_plugin.runs import Run

pytestmark = pytest.mark.usefixtures("unpacked_once", "one_thread")


def test_a_folder_in_use_is_refused_and_left_alone(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(GatedError, match="is not empty and no run; give another --out"):
        train(Recipe.load(tiny), tmp_path, quiet=True)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_what_a_kill_left_of_the_first_write_does_not_block_the_folder(
    tiny: Path, tmp_path: Path
) -> None:
    for name in ("environment.json", ".lock", ".recipe.yaml.123.unfinished"):
        (tmp_path / name).touch()
    assert train(Recipe.load(tiny), tmp_path, quiet=True).is_trained
    assert not (tmp_path / ".recipe.yaml.123.unfinished").exists()


def test_checkpoints_that_a_kill_left_of_a_trained_run_are_deleted(
    tiny: Path, tmp_path: Path
) -> None:
    run = train(Recipe.load(tiny), tmp_path / "run", quiet=True)
    (run.checkpoints / "step_00000018").mkdir(parents=True)
    train(Recipe.load(tiny), run.path, resume=True, quiet=True)
    assert not run.checkpoints.exists()


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


def test_an_engine_that_cannot_serve_is_refused_before_there_is_a_folder(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    recipe = Recipe.load(tiny, ["engine.impl=triton"])
    with pytest.raises(GatedError, match="impl='triton' computes"):
        train(recipe, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


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


def test_the_scaling_is_folded_into_the_weights(tiny: Path, tmp_path: Path) -> None:
    recipe = Recipe.load(tiny, ["sae.normalize_activations=covariance_whitening"])
    stream = runner.open_stream(recipe)
    trainer = runner.new_trainer(recipe, stream)
    runner.prepare(trainer, stream, recipe)
    x = next(stream)
    with torch.no_grad():
        before = trainer.sae.encode(trainer.activation_scaler(x)) > 0
    runner.finish(Run(tmp_path), trainer, recipe)
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

    def test_from_a_checkpoint_only_the_weights_are_taken(self, tiny: Path, tmp_path: Path) -> None:
        resampled = ["sae.resampling=paper", "sae.resample_steps=[6]", "sae.resample_window=5"]
        recipe = self.recipe(tiny, tmp_path / "checkpoint", *resampled)
        sae = TrainingSAE.from_dict(recipe.runner_config().sae.to_dict())
        sae.resampler.step, sae.resampler.rewarm.position = 700, 100
        sae.save_model(tmp_path / "checkpoint")
        run = train(recipe, tmp_path / "run", quiet=True)
        first = json.loads(run.training_log.read_text().splitlines()[0])
        assert first["lr_factor"] == 1.0

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
