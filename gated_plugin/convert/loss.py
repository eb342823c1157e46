"""What a conversion changes in the language model, where that is at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lens import SAE

from gated_plugin.architecture import GatedSAE
from gated_plugin.convert import dictionary_learning
from gated_plugin.convert.weights import Source
from gated_plugin.dictionaries import Dictionary
from gated_plugin.errors import GatedError
from gated_plugin.loading import read
from gated_plugin.recipes import Recipe

if TYPE_CHECKING:
    from gated_plugin.science.evaluation import Evaluation


def change_in_loss_recovered(
    source: Source,
    result: Callable[[Path], SAE[Any]],
    folder: Path,
    quiet: bool,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """Loss recovered of source and result on the held-out text of the source's recipe.

    Args:
        result: loads what is in `folder`.

    Returns:
        `source`, `result`, `change`, `tokens`; or `not_measured`, with the reason.
    """
    if source.run is None:
        return {"not_measured": "the source is no run, so that no language model is named"}
    from gated_plugin.science.evaluation import measure

    try:
        recipe = Recipe.load(source.run.recipe)
        if recipe.synthetic:
            return {"not_measured": "the run is of synthetic activations and no language model"}
        report(f"Measuring the loss recovered in {recipe.model_name}, of both.")
        before = measure(read(Dictionary.open(source.folder), "float32"), recipe, quiet=quiet)
        after = measure(result(folder), recipe, quiet=quiet)
    except GatedError as error:
        return {"not_measured": str(error)}
    return _change(before.evaluation, after.evaluation)


def _change(before: Evaluation, after: Evaluation) -> dict[str, Any]:
    change = None
    if before.loss_recovered is not None and after.loss_recovered is not None:
        change = after.loss_recovered - before.loss_recovered
    return {
        "source": before.loss_recovered,
        "result": after.loss_recovered,
        "change": change,
        "l0": [before.l0, after.l0],
        "tokens": after.tokens_evaluated,
    }


def gated_of(folder: Path) -> SAE[Any]:
    """A gated SAE in SAELens' layout."""
    return read(Dictionary.open(folder), "float32")


def jumprelu_of(folder: Path) -> SAE[Any]:
    """A JumpReLU SAE."""
    return SAE.load_from_disk(folder)


def library_of(folder: Path) -> SAE[Any]:
    """A gated SAE in dictionary_learning's layout."""
    source = dictionary_learning.read(folder)
    weights = source.weights
    sae = GatedSAE(source.cfg)
    state = {name: getattr(weights, name) for name in ("b_dec", "b_gate", "b_mag", "r_mag")}
    state |= {"W_enc": weights.W_enc.part(), "W_dec": weights.W_dec.part()}
    sae.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return sae
