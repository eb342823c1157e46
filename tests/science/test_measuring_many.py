"""Many SAEs off one set of passes, and what is measured of each feature."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_class
from safetensors.torch import load_file
from torch import Tensor
from transformer_lens import HookedTransformer

from gated_plugin import quickstart
from gated_plugin.errors import GatedError
from gated_plugin.recipes import Recipe
from gated_plugin.runs import Run
from gated_plugin.science import measuring
from gated_plugin.science.evaluation import evaluate, evaluate_all, measure, measure_all

pytestmark = pytest.mark.usefixtures("unpacked_once", "one_thread")

HOOK = "blocks.0.hook_resid_post"
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gated": {},
    "standard": {},
    "topk": {"k": 20},
    "jumprelu": {},
}


def random_sae(architecture: str, d_sae: int, seed: int = 0) -> SAE[Any]:
    """Some features fire often, some now and then, some never."""
    sae_class, config = get_sae_class(architecture)
    sae: SAE[Any] = sae_class(config(d_in=256, d_sae=d_sae, **ARCHITECTURES[architecture]))
    generator = torch.Generator().manual_seed(seed)

    def noise(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=generator) / 10

    state = {name: noise(tensor.shape) for name, tensor in sae.state_dict().items()}
    for name in {"b_gate", "b_enc"} & state.keys():
        state[name] -= torch.linspace(0, 5, d_sae)
    state["W_enc"][:, -20:] = 0
    if "threshold" in state:
        state["threshold"] = state["threshold"].abs()
    sae.load_state_dict(state)
    return sae.eval()


def without_time(measured: measuring.Measurement) -> dict[str, Any]:
    return {**vars(measured.evaluation), "seconds": None}


@pytest.fixture(scope="module")
def recipe(tiny: Path) -> Recipe:
    return Recipe.load(tiny, ["evaluation.tokens=1024"])


def test_measured_together_as_measured_alone(recipe: Recipe) -> None:
    saes = {a: random_sae(a, 64 + 9 * i) for i, a in enumerate(ARCHITECTURES)}
    together = measure_all(saes, recipe, quiet=True)
    assert list(together) == list(saes)
    for name, sae in saes.items():
        alone = measure(sae, recipe, quiet=True)
        assert without_time(together[name]) == without_time(alone)
        assert together[name].features.keys() == alone.features.keys()
        for figure, values in alone.features.items():
            assert torch.equal(together[name].features[figure], values)
    assert len({measured.evaluation.ce_sae for measured in together.values()}) == len(saes)


def test_passes_without_an_sae_run_once(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[Any] = []
    run_with_hooks = HookedTransformer.run_with_hooks

    def counting(self: HookedTransformer, *given: Any, **options: Any) -> Any:
        passes.append(options.get("start_at_layer"))
        return run_with_hooks(self, *given, **options)

    monkeypatch.setattr(HookedTransformer, "run_with_hooks", counting)
    measure_all({str(n): random_sae("gated", 64, n) for n in range(3)}, recipe, quiet=True)
    assert passes == [None, 1, 1, 1, 1] * 2  # left alone; zeroed and three splices, after block 0


@pytest.fixture(scope="module")
def x() -> Iterator[Tensor]:
    """The activations of the text, all at once."""
    rows = torch.tensor(quickstart.dataset("embedded/books-heldout").select(range(8))["input_ids"])
    with torch.no_grad():
        yield quickstart.language_model().run_with_cache(rows)[1][HOOK].flatten(0, 1)


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
@pytest.mark.parametrize("at_once", [1 << 26, 1 << 14])
def test_figures_of_features(
    architecture: str,
    at_once: int,
    recipe: Recipe,
    x: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tokens go through the SAE in whole batches of 512, or 128 by 128."""
    monkeypatch.setattr(measuring, "FEATURES_AT_ONCE", at_once)
    sae = random_sae(architecture, 100)
    found, of_features, recorded = measure(sae, recipe, quiet=True)
    with torch.no_grad():
        features = sae.encode(x).double()
    fires = features > 0
    rates = fires.double().mean(0)
    assert torch.allclose(of_features["firing_rate"].double(), rates, rtol=1e-6)
    means = features.sum(0) / fires.sum(0).clamp_min(1)
    assert torch.allclose(of_features["mean_magnitude"].double(), means, rtol=1e-4)
    assert found.n_dead == (rates == 0).sum() > 0
    assert found.n_dense == (rates > 0.1).sum() > 0
    assert found.alive == 1 - found.n_dead / 100
    W_enc, W_dec = sae.W_enc.detach().double(), sae.W_dec.detach().double()
    cosines = (W_enc.T * W_dec).sum(1) / (W_enc.norm(dim=0) * W_dec.norm(dim=1)).clamp_min(1e-9)
    assert (cosines[-20:] == 0).all()  # their encoder is 0
    assert torch.allclose(of_features["encoder_decoder_cosine"].double(), cosines, atol=1e-6)
    expected = cosines[rates > 0].mean().item()
    assert found.encoder_decoder_cosine == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(recorded, x[:256])


def test_theta_is_the_threshold_of_magnitudes(recipe: Recipe, x: Tensor) -> None:
    sae = random_sae("gated", 100)
    theta = measure(sae, recipe, quiet=True).features["theta"].double()
    with torch.no_grad():
        product = (x - sae.b_dec).double() @ sae.W_enc.double()
        magnitude = product * sae.r_mag.double().exp() + sae.b_mag.double()
        fires = (product + sae.b_gate.double() > 0) & (magnitude > 0)
    clear = (magnitude - theta).abs() > 1e-5
    assert torch.equal(fires[clear], (magnitude > theta)[clear])
    assert clear.double().mean() > 0.99
    assert (theta == 0).any()
    assert (theta > 0).any()


def test_theta_is_given_where_the_architecture_has_one(recipe: Recipe) -> None:
    saes = {name: random_sae(name, 64) for name in ("standard", "topk", "jumprelu")}
    measured = measure_all(saes, recipe, quiet=True)
    assert "theta" not in measured["standard"].features
    assert "theta" not in measured["topk"].features
    assert torch.equal(measured["jumprelu"].features["theta"], saes["jumprelu"].threshold.detach())


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    made = []
    for number, architecture in enumerate(ARCHITECTURES):
        made.append(Run(tmp_path / architecture))
        random_sae(architecture, 64, number).save_model(made[-1].sae)
    return made


def test_every_run_gets_its_own_figures(runs: list[Run], recipe: Recipe) -> None:
    runs = runs[::2]
    found = evaluate_all(runs, recipe, quiet=True)
    together = [run.evaluation.read_text() for run in runs]
    for run, figures, text in zip(runs, found, together, strict=True):
        rates = load_file(run.features)["firing_rate"]
        assert rates.sum().item() == pytest.approx(figures.l0, rel=1e-5)
        alone = evaluate(run, recipe, quiet=True)
        assert vars(alone) | {"seconds": figures.seconds} == vars(figures)
        assert f'"ce_sae": {figures.ce_sae}' in text
    assert len(set(together)) == len(runs)


def test_where_one_fails_nothing_is_written_into_any(runs: list[Run], recipe: Recipe) -> None:
    bad = random_sae("gated", 64)
    bad.b_dec.data.fill_(3e38)
    bad.save_model(runs[2].sae)
    with pytest.raises(GatedError, match=f"With {runs[2].path} spliced in") as caught:
        evaluate_all(runs, recipe, quiet=True)
    assert "is not finite, and without it it is" in str(caught.value)
    assert not any(run.evaluation.exists() or run.features.exists() for run in runs)


def test_all_runs_are_held_while_they_are_evaluated(runs: list[Run], recipe: Recipe) -> None:
    with runs[3].alone(), pytest.raises(GatedError, match="Another process works on"):
        evaluate_all(runs, recipe, quiet=True)
