"""Forward passes of a language model in which a hook point's activations are replaced.

What comes before the hook point is the same in every pass over the same tokens, so it runs once. A
TransformerLens model begins again at the block of the hook point, with the residual stream that
entered it, or at the next block where the hook point is a block's output. Any other model, and one
whose later blocks need more than the residual stream, runs from the tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from sae_lens.config import LanguageModelSAERunnerConfig
from torch import Tensor
from transformer_lens import HookedTransformer

IN_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")

Hooks = list[tuple[str, Callable[[Tensor, Any], Tensor | None]]]


class Place:
    """The numbers of a hook point's activations that an SAE is for.

    Args:
        head: the one that the SAE was trained on; otherwise all heads, concatenated.
        mask: which tokens, bool [prompts, context].
    """

    def __init__(self, head: int | None, mask: Tensor) -> None:
        self.head, self.mask = head, mask

    def take(self, activation: Tensor) -> Tensor:
        """The SAE's inputs [masked tokens, d_in], float32."""
        return self._flat(activation)[self.mask].float()

    def put(self, activation: Tensor, values: Tensor | float) -> Tensor:
        """A copy of `activation` with `values` [masked tokens, d_in] in it."""
        replaced = activation.clone()
        flat = self._flat(activation).clone()
        flat[self.mask] = torch.as_tensor(values).to(flat)
        if self.head is not None:
            replaced[:, :, self.head] = flat
            return replaced
        return flat.view_as(activation)

    def summed(self, losses: Tensor) -> Tensor:
        """Losses [prompts, context − 1] of what follows the masked tokens, float64 [prompts]."""
        return losses.double().where(self.mask[:, :-1], 0.0).sum(1).cpu()

    def _flat(self, activation: Tensor) -> Tensor:
        """[prompts, context, d_in], heads concatenated as SAELens' store does."""
        if self.head is not None:
            return activation[:, :, self.head]
        return activation.flatten(2)


class Entry(NamedTuple):
    """Where a pass can begin."""

    layer: int
    """The first block that runs; the number of blocks where none is left."""
    hook_name: str
    """The hook point whose activations are the residual stream that enters it."""


class Passes:
    """A language model's losses over one batch of tokens, left alone and with replacements.

    Args:
        model: one that SAELens loads.
        cfg: of it are used the hook's name and the model's keyword arguments.
        tokens: [prompts, context].
        entry: where passes with a replacement begin; from the tokens where None.

    `clean` holds each token's loss [prompts, context − 1] in nats with nothing replaced, and
    `activation` the hook point's activations.
    """

    def __init__(
        self,
        model: Any,
        cfg: LanguageModelSAERunnerConfig[Any],
        tokens: Tensor,
        entry: Entry | None,
    ) -> None:
        self.model, self.cfg, self.tokens, self.entry = model, cfg, tokens, entry
        kept: dict[str, Tensor] = {}

        def keep(activation: Tensor, hook: Any) -> None:
            kept[hook.name] = activation.clone()  # some models go on to write into it

        names = {cfg.hook_name, entry.hook_name if entry else cfg.hook_name}
        self.clean = self._losses(tokens, [(name, keep) for name in sorted(names)])
        self.activation = kept.pop(cfg.hook_name)
        self._residual = kept.pop(entry.hook_name) if kept and entry else None

    def with_activation(self, replacement: Tensor) -> Tensor:
        """Each token's loss [prompts, context − 1] with `replacement` at the hook point."""
        hooks: Hooks = [(self.cfg.hook_name, lambda activation, hook: replacement)]
        if self.entry is None:
            return self._losses(self.tokens, hooks)
        begin = {"start_at_layer": self.entry.layer, "tokens": self.tokens}
        if self._residual is None:
            return self._losses(replacement, [], **begin)
        return self._losses(self._residual, hooks, **begin)

    @torch.no_grad()
    def _losses(self, given: Tensor, hooks: Hooks, **begin: Any) -> Tensor:
        losses: Tensor = self.model.run_with_hooks(
            given,
            return_type="both",  # SAELens' wrapper of transformers' models knows no other
            loss_per_token=True,
            prepend_bos=False,
            fwd_hooks=hooks,
            **begin,
            **self.cfg.model_kwargs,
        )[1]
        return losses


def entry(model: Any, cfg: LanguageModelSAERunnerConfig[Any]) -> Entry | None:
    """Where passes that differ at `cfg.hook_name` alone may begin; None is at the tokens."""
    found = IN_BLOCK.fullmatch(cfg.hook_name)
    if found is None or cfg.model_kwargs or not _needs_residual_alone(model):
        return None
    layer, point = int(found[1]), found[2]
    if point == "hook_resid_post":
        return Entry(layer + 1, cfg.hook_name)
    return Entry(layer, f"blocks.{layer}.hook_resid_pre")


def _needs_residual_alone(model: Any) -> bool:
    """Whether a block's input is all that later blocks see of earlier ones."""
    return (
        isinstance(model, HookedTransformer)
        and model.cfg.positional_embedding_type != "shortformer"
        # Padding on the left comes with an attention mask, made of the tokens.
        and (model.tokenizer is None or model.tokenizer.padding_side == "right")
    )
