"""A batch with NaN or infinity is refused before it can poison the weights for good."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gated_plugin.errors import GatedError

if TYPE_CHECKING:
    from sae_lens.saes.sae import TrainStepInput


class NonFiniteLossError(GatedError):
    """A batch that would poison the weights for good; they are as they were before it."""


@torch.compiler.disable
def refuse_non_finite(loss: Tensor, step_input: TrainStepInput) -> None:
    """Raise `NonFiniteLossError` where the loss of a batch is NaN or infinite."""
    if torch.isfinite(loss):
        return
    if not len(step_input.sae_in):
        raise NonFiniteLossError(
            f"Training step {step_input.n_training_steps} was refused: its batch has no rows; "
            "give it some."
        )
    rows = (~torch.isfinite(step_input.sae_in).all(-1)).sum().item()
    cause = (
        f"{rows} of its {len(step_input.sae_in)} activation rows hold NaN or infinity; mend "
        "the model or the data and resume from the last checkpoint"
        if rows
        else "the loss overflowed on finite activations; start again with a lower learning rate"
    )
    raise NonFiniteLossError(
        f"Training step {step_input.n_training_steps} was refused and the weights kept: the "
        f"loss of its batch is {loss.item()}, because {cause}."
    )
