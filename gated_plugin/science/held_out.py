"""What a recipe keeps from training: text, as batches of tokens, or synthetic activations."""

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
from gated_plugin.science.metrics import Batch
from gated_plugin.synthetic_stream import HELD_OUT, SyntheticSource, batch_generator

SEQUENCES, SEQUENCE = 8, 128
"""Synthetic activations of one batch, in groups that stand for sequences: they are independent of
each other, so that intervals are right for groups of any size."""
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


class HeldOutActivations:
    """Synthetic activations that no training sees, the same for every seed; about as many as the
    recipe plans tokens, in whole batches."""

    def __init__(self, recipe: Recipe, cfg: LanguageModelSAERunnerConfig[Any]) -> None:
        self.device = str(cfg.device)
        self._source = SyntheticSource.of(cfg.sae.d_in, self.device)
        self._batches = max(1, recipe.evaluation.tokens // (SEQUENCES * SEQUENCE))

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        sequence_T = torch.arange(SEQUENCES, device=self.device).repeat_interleave(SEQUENCE)
        for number in range(self._batches):
            generator = batch_generator(0, HELD_OUT, 0, number, self.device)
            x_TN = self._source.draw(SEQUENCES * SEQUENCE, generator)
            yield Batch(x_TN, sequence_T, SEQUENCES)
