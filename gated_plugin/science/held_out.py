"""The text that a recipe keeps from training, as batches of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from sae_lens.config import LanguageModelSAERunnerConfig
from torch import Tensor

from gated_plugin import sources
from gated_plugin.activations import open_store
from gated_plugin.errors import GatedError
from gated_plugin.recipes import Recipe

OF_EVALUATION = ("evaluation.", "device=", "llm_device=")


def require_for_evaluation(overrides: Iterable[str]) -> None:
    """Raise `GatedError` unless each `key=value` says how to evaluate, not what was trained."""
    for override in overrides:
        if not override.startswith(OF_EVALUATION):
            raise GatedError(
                f"--set {override!r} would change what was trained; an evaluation takes keys of "
                "evaluation, such as evaluation.tokens=100_000, device and llm_device."
            )


class HeldOut:
    """The whole batches of a recipe's held-out text, up to the planned tokens.

    `batches` are prompts, int64 [batch_size_prompts, context_size].

    Raises:
        GatedError: the text does not fit the recipe, or is shorter than one batch.
    """

    def __init__(self, recipe: Recipe, cfg: LanguageModelSAERunnerConfig[Any], model: Any) -> None:
        self.plan = recipe.evaluation
        rows = sources.token_rows(self.plan.dataset_path, self.plan.split, streaming=cfg.streaming)
        self._store = open_store(model, rows, cfg)
        self.batches = list(self._read())  # of which progress needs the number

    def mask(self, tokens: Tensor) -> Tensor:
        """Positions that the SAE was trained for: its slice of the context, special tokens or not.

        Args:
            tokens: prompts of `batches`.

        Returns:
            bool, of their shape.
        """
        mask = torch.zeros_like(tokens, dtype=torch.bool)
        mask[:, slice(*self._store.seqpos_slice)] = True
        special = self._store.exclude_special_tokens
        if special is not None:
            mask &= ~torch.isin(tokens, special.to(tokens.device))
        return mask

    def _read(self) -> Iterator[Tensor]:
        prompts = self.plan.batch_size_prompts
        for made in range(max(1, self.plan.tokens // (prompts * self._store.context_size))):
            try:
                yield self._store.get_batch_tokens(prompts, raise_at_epoch_end=True)
            except StopIteration:
                if made == 0:
                    raise GatedError(
                        f"{self.plan.dataset_path} holds less than one batch of {prompts} prompts; "
                        "lower evaluation.batch_size_prompts."
                    ) from None
                return
