"""Figures that SAELens' `run_evals` defines too, on the same batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sae_lens import SAE
from sae_lens.evals import EvalConfig, run_evals
from sae_lens.registry import get_sae_class
from sae_lens.training.activation_scaler import ActivationScaler
from sae_lens.training.activations_store import ActivationsStore

from gated_plugin import quickstart
from gated_plugin.recipes import Recipe
from gated_plugin.runs import Run
from gated_plugin.science.evaluation import Measurement, measure

pytestmark = pytest.mark.usefixtures("unpacked_once")

ROWS, D_SAE = 16, 300
SPECIAL = [0, 12, 316]

Make = Callable[..., tuple[Run, Recipe]]


def random_sae(architecture: str, d_in: int, metadata: Any, **given: Any) -> SAE[Any]:
    """Weights with which about a third of the features fire, reconstructing a part of x."""
    sae_class, config = get_sae_class(architecture)
    sae: SAE[Any] = sae_class(config(d_in=d_in, d_sae=D_SAE, metadata=metadata, **given))
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(D_SAE, d_in, generator=generator)
    W_dec /= W_dec.norm(dim=1, keepdim=True)
    weights = {"W_dec": W_dec, "W_enc": W_dec.T.contiguous() / 20}
    weights |= {"b_gate": torch.full((D_SAE,), -0.1), "threshold": torch.full((D_SAE,), 0.1)}
    state = {name: weights.get(name, torch.zeros_like(t)) for name, t in sae.state_dict().items()}
    sae.load_state_dict(state)
    return sae.eval()


def of_saelens(
    sae: SAE[Any], language_model: Any, batches: int, special: list[int] | bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first rows in `batches` of equal size."""
    rows = quickstart.dataset("embedded/books-heldout").select(range(ROWS))
    metrics, of_features = run_evals(
        sae,
        # The rows are used up by the first of its two passes, and begin again for the second.
        ActivationsStore.from_sae(
            language_model, sae, rows, store_batch_size_prompts=ROWS // batches
        ),
        language_model,
        ActivationScaler(),
        EvalConfig(
            n_eval_reconstruction_batches=batches,
            n_eval_sparsity_variance_batches=batches,
            compute_ce_loss=True,
            compute_sparsity_metrics=True,
            compute_variance_metrics=True,
            compute_l2_norms=True,
            compute_featurewise_density_statistics=True,
            compute_featurewise_weight_based_metrics=True,
        ),
        exclude_special_tokens=special,
    )
    return {name: value for group in metrics.values() for name, value in group.items()}, of_features


def require_agreement(
    found: Measurement, theirs: dict[str, Any], of_features: dict[str, Any]
) -> None:
    ours = found.evaluation
    assert ours.l0 == pytest.approx(theirs["l0"], rel=1e-5)
    assert ours.ce_clean == pytest.approx(theirs["ce_loss_without_sae"], rel=1e-6)
    assert ours.ce_sae == pytest.approx(theirs["ce_loss_with_sae"], rel=1e-6)
    assert ours.fvu is not None
    assert 1 - ours.fvu == pytest.approx(theirs["explained_variance"], abs=1e-5)
    rates = torch.tensor(of_features["feature_density"])
    assert torch.allclose(found.features["firing_rate"], rates, rtol=1e-5)
    cosines = torch.tensor(of_features["encoder_decoder_cosine_sim"])
    assert torch.allclose(found.features["encoder_decoder_cosine"], cosines, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "given"),
    [("gated", {}), ("standard", {}), ("topk", {"k": 20}), ("jumprelu", {})],
)
def test_of_every_architecture(
    architecture: str, given: dict[str, Any], made: Make, language_model: Any
) -> None:
    run, recipe = made()
    metadata = SAE.load_from_disk(run.sae).cfg.metadata
    sae = random_sae(architecture, 256, metadata, **given)
    found = measure(sae, recipe, quiet=True)
    theirs, of_features = of_saelens(sae, language_model, 4, False)
    require_agreement(found, theirs, of_features)
    assert found.evaluation.ce_zero == pytest.approx(theirs["ce_loss_with_ablation"], rel=1e-6)
    assert found.evaluation.loss_recovered == pytest.approx(theirs["ce_loss_score"], abs=1e-6)
    assert 5 < found.evaluation.l0 < 200


def test_the_bias_of_one_batch(made: Make, language_model: Any) -> None:
    """Of several, `run_evals` gives the mean of their ratios instead of the ratio of sums."""
    run, recipe = made(f"evaluation.batch_size_prompts={ROWS}")
    sae = random_sae("gated", 256, SAE.load_from_disk(run.sae).cfg.metadata)
    theirs, _ = of_saelens(sae, language_model, 1, False)
    found = measure(sae, recipe, quiet=True).evaluation
    assert found.gamma == pytest.approx(theirs["relative_reconstruction_bias"], rel=1e-5)
    assert abs(1 - theirs["relative_reconstruction_bias"]) > 0.05


def test_without_special_tokens(made: Make, language_model: Any) -> None:
    """But for CE(0): `run_evals` zeroes the activations of special tokens too."""
    run, recipe = made(f"exclude_special_tokens={SPECIAL}")
    sae = random_sae("gated", 256, SAE.load_from_disk(run.sae).cfg.metadata)
    theirs, of_features = of_saelens(sae, language_model, 4, SPECIAL)
    found = measure(sae, recipe, quiet=True)
    assert found.evaluation.tokens_evaluated < ROWS * 128 * 0.98
    require_agreement(found, theirs, of_features)


@pytest.mark.parametrize("head", [None, 3])
def test_at_the_heads(head: int | None, made: Make, language_model: Any) -> None:
    overrides = ["hook_name=blocks.0.attn.hook_z"]
    d_in = 256
    if head is not None:
        overrides += [f"hook_head_index={head}", "sae.d_in=32"]
        d_in = 32
    run, recipe = made(*overrides)
    sae = random_sae("gated", d_in, SAE.load_from_disk(run.sae).cfg.metadata)
    found = measure(sae, recipe, quiet=True)
    theirs, of_features = of_saelens(sae, language_model, 4, False)
    require_agreement(found, theirs, of_features)
    assert found.evaluation.ce_zero == pytest.approx(theirs["ce_loss_with_ablation"], rel=1e-6)
