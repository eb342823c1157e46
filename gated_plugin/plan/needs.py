"""Memory and disk of a run, part by part."""

from __future__ import annotations

from dataclasses import dataclass

from gated_plugin.plan.shape import BYTES, Shape

DENSE_COPIES = {"gated": 6, "l1_baseline": 6, "saelens_gated": 10}
"""Matrices [batch, d_sae] that a dense step holds at its peak: 5.7 to 6.4 by ours, 9.7 to 10.7 by
SAELens' gated (docs/engine.md, column "peak MB")."""
OTHER_COPIES = 6
"""… by SAELens' other architectures, which nobody measured here."""

BUFFERS = 3
"""The buffer in use, the next one as it comes from the language model, and its shuffled copy."""

SEARCHED_FEATURES, BYTES_SEARCHED, ROWS_SEARCHED = 2048, 6, 4096
BYTES_AN_ENTRY = 113
"""A sparse step holds a bfloat16 copy of W_enc, one tile of pre-activations, three batches, and this
for each feature that fires: within 7 % of the three peaks in docs/engine.md."""

ON_THE_HUB = 2
"""Bytes a parameter of a language model as it is downloaded."""

PAIRS = 3
"""Matrices [heads, context, context] of attention: scores, mask or softmax, pattern."""

LOGITS = 3
"""float32 copies of the logits in an evaluation: as they are, their log-softmax, and one between."""


@dataclass(frozen=True)
class Need:
    """One part."""

    part: str
    bytes: int
    how: str
    """What it is counted from."""
    place: str = "disk"
    """The torch device that it lies on, as the recipe has it."""
    counts: bool = True
    """Whether it is part of the total; an alternative to another part is not."""


def memory(shape: Shape) -> list[Need]:
    """Training at its peak, all parts at once; and, not counted, what an evaluation adds."""
    if shape.recipe.synthetic:
        return [*_of_sae(shape), _synthetic(shape)]
    return [*_of_sae(shape), *_buffer(shape), *_of_language_model(shape)]


def disk(shape: Shape) -> list[Need]:
    """What a run leaves on disk at the most, and what it downloads."""
    weights = shape.sae_parameters * shape.sae_itemsize
    parts = [
        Need("checkpoints", 2 * 3 * weights, "weights and two moments; the new one beside the old"),
        Need("trained SAE", weights, "sae/"),
        Need("publication", weights, "the same as it is published"),
    ]
    if not (shape.recipe.is_embedded or shape.recipe.synthetic):
        size = shape.model.parameters_on_the_hub
        parts.append(
            Need("language model", ON_THE_HUB * size, f"{size:,} in the Hub's cache, 2 bytes each")
        )
    return parts


def _of_sae(shape: Shape) -> list[Need]:
    weights = shape.sae_parameters * shape.sae_itemsize
    place = shape.cfg.device
    return [
        Need("SAE, weights", weights, f"{shape.sae_parameters:,} in {shape.sae_dtype}", place),
        Need("SAE, gradients", weights, "as the weights", place),
        _moments(shape, weights, place),
        *_working_set(shape, place),
        *_reservoir(shape, place),
    ]


def _moments(shape: Shape, weights: int, place: str) -> Need:
    if shape.is_sparse and shape.cfg.adam_beta1 == 0:
        how = "second moments; with β1 = 0 the first is the gradient"
        return Need("SAE, Adam", weights, how, place)
    return Need("SAE, Adam", 2 * weights, "two moments", place)


def _working_set(shape: Shape, place: str) -> list[Need]:
    copies = DENSE_COPIES.get(shape.architecture, OTHER_COPIES)
    dense = copies * shape.batch * shape.d_sae * shape.sae_itemsize
    how = f"{copies} × [{shape.batch}, {shape.d_sae}]"
    if not shape.is_sparse:
        return [Need("SAE, dense step", dense, how, place)]
    how = f"{how}: half of all gates open at the start"
    rows = min(shape.batch, ROWS_SEARCHED)
    sparse = (
        2 * shape.d_in * shape.d_sae
        + BYTES_SEARCHED * rows * min(SEARCHED_FEATURES, shape.d_sae)
        + 3 * 4 * shape.batch * shape.d_in
        + round(BYTES_AN_ENTRY * shape.batch * shape.l0)
    )
    return [
        Need("SAE, dense step", dense, how, place),
        Need("SAE, sparse step", sparse, f"instead, later, at L0 {shape.l0:g}", place, False),
    ]


def _reservoir(shape: Shape, place: str) -> list[Need]:
    from gated_plugin.resampling_plan import OFF
    from gated_plugin.trainer_hooks.resampling import LARGEST_RESERVOIR

    if getattr(shape.cfg.sae, "resampling", OFF) == OFF:
        return []
    rows = min(LARGEST_RESERVOIR, shape.d_sae)
    size = rows * shape.d_in * shape.sae_itemsize
    return [Need("SAE, resampling", size, f"{rows:,} inputs", place)]


def _buffer(shape: Shape) -> list[Need]:
    tokens = shape.buffer_tokens
    size = BUFFERS * tokens * shape.d_in * shape.sae_itemsize
    how = f"{BUFFERS} × {tokens:,} × {shape.d_in} in {shape.sae_dtype}"
    return [Need("activations, buffer", size, how, shape.cfg.act_store_device)]


def _synthetic(shape: Shape) -> Need:
    from gated_plugin.synthetic_stream import DIRECTIONS

    numbers = DIRECTIONS * shape.d_in**2 + shape.batch * shape.d_in
    how = f"{DIRECTIONS * shape.d_in:,} directions and a batch, in float32"
    return Need(
        "synthetic activations", BYTES["float32"] * numbers, how, shape.cfg.act_store_device
    )


def _of_language_model(shape: Shape) -> list[Need]:
    model, size, place = shape.model, BYTES[shape.model_dtype], shape.cfg.llm_device
    prompts = shape.cfg.store_batch_size_prompts
    in_blocks = (model.products_in_mlp * model.d_mlp + 8 * model.d_model) * shape.context
    pairs = PAIRS * model.heads * shape.context**2
    held = shape.recipe.evaluation.batch_size_prompts
    logits = LOGITS * held * shape.context * model.vocabulary * BYTES["float32"]
    weights = Need(
        "language model, weights",
        model.parameters * size,
        f"{model.parameters:,} in {shape.model_dtype}",
        place,
    )
    if not model.shape_is_known:
        how = "not known without the model's shape"
        return [weights, Need("language model, forward pass", 0, how, place, False)]
    return [
        weights,
        Need(
            "language model, forward pass",
            prompts * (in_blocks + pairs) * size,
            f"{prompts} prompts of {shape.context} at once",
            place,
        ),
        Need(
            "evaluation, logits",
            logits,
            f"not while training: {LOGITS} × {held} prompts × {model.vocabulary:,}",
            place,
            False,
        ),
    ]
