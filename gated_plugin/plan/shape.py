"""What of a recipe its costs depend on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from gated_plugin.errors import GatedError
from gated_plugin.plan.devices import Device
from gated_plugin.plan.language_models import LanguageModel
from gated_plugin.recipes import Recipe

OURS = ("gated", "l1_baseline")
"""Architectures that train by our step, with its sparse engine and its Adam by rows."""

ASSUMED_L0 = 64
"""Features per token where neither the recipe nor anybody else says."""

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes of one training run."""

    cfg: Any
    """SAELens' `LanguageModelSAERunnerConfig`."""
    recipe: Recipe
    model: LanguageModel
    device: Device
    sae_parameters: int
    l0: float

    @property
    def d_in(self) -> int:
        return int(self.cfg.sae.d_in)

    @property
    def d_sae(self) -> int:
        return int(self.cfg.sae.d_sae)

    @property
    def batch(self) -> int:
        return int(self.cfg.train_batch_size_tokens)

    @property
    def steps(self) -> int:
        return int(self.cfg.total_training_steps)

    @property
    def context(self) -> int:
        return int(self.cfg.context_size)

    @property
    def architecture(self) -> str:
        return str(self.cfg.sae.architecture())

    @property
    def sae_dtype(self) -> str:
        return str(self.cfg.sae.dtype)

    @property
    def sae_itemsize(self) -> int:
        return BYTES[self.sae_dtype]

    @property
    def model_dtype(self) -> str:
        """What the language model is held in."""
        kwargs = self.cfg.model_from_pretrained_kwargs or {}
        dtype = str(kwargs.get("torch_dtype", kwargs.get("dtype", "float32")))
        return dtype if dtype in BYTES else "float32"

    @property
    def has_kernels(self) -> bool:
        """Whether ours step these weights: float32, and on a GPU bfloat16 too."""
        dtypes = ("float32",) if self.device.is_cpu else ("float32", "bfloat16")
        return self.architecture in OURS and self.sae_dtype in dtypes

    @property
    def uses_engine(self) -> bool:
        """Whether training is our step, sparse or dense."""
        return self.has_kernels and not self.cfg.autocast

    @property
    def densest(self) -> float:
        """The density up to which the engine leaves out the gates that are closed."""
        from gated_plugin.engine import dispatch

        if self.device.is_cpu:
            return dispatch.DENSEST_STEP
        is_half = self.sae_dtype == "bfloat16"
        return dispatch.DENSEST_ON_TENSOR_CORES if is_half else dispatch.DENSEST_ON_GPU

    @property
    def is_sparse(self) -> bool:
        """Whether so few gates are open that the engine leaves the others out."""
        return self.uses_engine and self.l0 <= self.densest * self.d_sae

    @property
    def tile(self) -> int:
        """Features that a dense step of ours computes together; d_sae where it has but one tile."""
        import torch

        from gated_plugin.engine.dense import tiles_of

        return tiles_of(self.batch, torch.empty(self.d_sae, device="meta"))[0].stop

    @property
    def has_tiles(self) -> bool:
        """Whether a dense step goes tile by tile."""
        return self.uses_engine and self.tile < self.d_sae

    @property
    def buffer_prompts(self) -> int:
        """Prompts whose activations are shuffled together."""
        return int(self.cfg.n_batches_in_buffer * self.cfg.store_batch_size_prompts)

    @property
    def buffer_tokens(self) -> int:
        """Activations in a buffer; of special tokens one in a prompt is counted out."""
        positions = len(range(self.context)[slice(*self.cfg.seqpos_slice)])
        excluded = min(positions, bool(self.cfg.exclude_special_tokens))
        return self.buffer_prompts * (positions - excluded)

    @property
    def model_tokens(self) -> int:
        """Tokens that the language model reads in training: whole buffers of whole batches."""
        batches = max(1, self.buffer_tokens // self.batch)
        buffers = -(-self.steps // batches)
        return buffers * self.buffer_prompts * self.context

    @property
    def layers(self) -> int | None:
        """Blocks that training runs; None for all and the unembedding."""
        from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name

        stop: int | None = extract_stop_at_layer_from_tlens_hook_name(self.cfg.hook_name)
        return stop


def shape(recipe: Recipe, model: LanguageModel, device: Device) -> Shape:
    """The sizes of `recipe`'s run on `device`.

    Raises:
        GatedError: SAELens cannot make such an SAE.
    """
    from sae_lens.saes.sae import TrainingSAE

    cfg = recipe.runner_config()
    try:
        sae = TrainingSAE.from_dict(replace(cfg.sae, device="meta").to_dict())
    except (ValueError, TypeError) as error:
        raise GatedError(f"SAELens cannot train by this recipe: {error}; change it.") from error
    target = getattr(cfg.sae, "target_l0", None) or getattr(cfg.sae, "k", None)
    return Shape(
        cfg=cfg,
        recipe=recipe,
        model=model,
        device=device,
        sae_parameters=sum(p.numel() for p in sae.parameters()),
        l0=float(target or ASSUMED_L0),
    )
