"""A run's conversion, measured in its language model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from convert_sources import write_activations, write_saelens

from gated_plugin.convert import convert
from gated_plugin.errors import GatedError
from gated_plugin.recipes import Recipe
from gated_plugin.runs import Run
from gated_plugin.science.evaluation import evaluate

pytestmark = pytest.mark.usefixtures("unpacked_once")

D_IN = 256


@pytest.fixture
def run(tiny: Path, tmp_path: Path) -> Run:
    """An SAE that writes half of what is positive, in every direction."""
    run = Run(tmp_path / "run")
    both = torch.cat([torch.eye(D_IN), -torch.eye(D_IN)])
    half = torch.full((len(both),), 0.5)
    weights = {
        "W_enc": both.T.contiguous() * 0.7,
        "W_dec": both * 2,
        "b_dec": torch.zeros(D_IN),
        "b_gate": torch.full_like(half, -1.0),
        "b_mag": torch.zeros_like(half),
        "r_mag": half.log() - 0.3,
    }
    write_saelens(run.sae, weights)
    settings = ["sae.normalize_activations=none", f"sae.d_sae={len(both)}"]
    run.recipe.write_text(Recipe.load(tiny, settings).to_yaml())
    x = torch.randn(20, D_IN, generator=torch.Generator().manual_seed(0))
    write_activations(run.activations, x)
    return run


def test_it_is_that_of_an_evaluation_and_nearly_unchanged(run: Run, tmp_path: Path) -> None:
    lines: list[str] = []
    conversion = convert(run.path, "jumprelu", tmp_path / "twin", report=lines.append)
    found = conversion.record["audit"]["loss_recovered"]
    wanted = evaluate(run, Recipe.load(run.recipe), quiet=True)
    assert found["source"] == wanted.loss_recovered
    assert 0.1 < found["source"] < 0.999
    assert found["result"] == pytest.approx(found["source"], abs=1e-5)
    assert found["tokens"] == wanted.tokens_evaluated
    assert conversion.record["audit"]["activations"] == {
        "rows": 20,
        "of": "held-out activations of the run",
    }
    assert any("books-gelu-1l" in line for line in lines)


def test_the_library_s_layout_is_measured_too(run: Run, tmp_path: Path) -> None:
    found = convert(run.path, "dictionary_learning", tmp_path / "library").record["audit"]
    assert found["loss_recovered"]["change"] == pytest.approx(0, abs=1e-5)


def test_bf16_changes_it_a_little(run: Run, tmp_path: Path) -> None:
    found = convert(run.path, "bf16", tmp_path / "half").record["audit"]["loss_recovered"]
    assert 0 < abs(found["change"]) < 0.01
    assert found["change"] == found["result"] - found["source"]


def test_a_model_that_is_not_at_hand_is_said_and_hinders_nothing(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nowhere(cfg: object) -> None:
        raise GatedError("The language model could not be loaded.")

    monkeypatch.setattr("gated_plugin.sources.language_model", nowhere)
    found = convert(run.path, "saelens", tmp_path / "out").record["audit"]
    assert found["loss_recovered"] == {"not_measured": "The language model could not be loaded."}
