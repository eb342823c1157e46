"""Memory and disk of a run, part by part."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gated_plugin.plan.shape import BYTES, Shape

DENSE_COPIES = {"gated": 6, "l1_baseline": 6, "saelens_gated": 10}
"""Matrices [batch, d_sae] that a dense step holds at its peak: 5.4 to 6.4 by ours where it has one
tile, 9.7 to 10.7 by SAELens' gated (docs/engine.md, column "peak MB")."""
OTHER_COPIES = 6
"""… by SAELens' other architectures, which nobody measured here."""

BUFFERS = 3
"""The buffer in use, the next one as it comes from the language model, and its shuffled copy."""

TILES, BATCHES_OF_TILES = 4, 9
"""Arrays of one tile and of [batch, d_in] in a dense step of ours that goes by tiles. The first are
kept, so that Adam's first step has them beside it."""

BATCHES, BYTES_AN_ENTRY = 7, 109
"""Arrays [batch, d_in] in a sparse step, and bytes for each feature that fires."""

SEARCHED_FEATURES = 2048
"""Features of which a sparse step on a CPU holds the rounded weights at once."""

REST = 20_000_000
"""Bytes of a step that are none of these. With it: within 10 % of what `benchmarks.bounded` measures,
from 1024 × 768 × 12288 to 4096 × 3072 × 131072 (docs/performance.md)."""

LIBRARIES = 744_000_000
"""Bytes of Python, torch and SAELens, there too."""

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
    parts = [*_of_sae(shape), *_libraries(shape)]
    if shape.recipe.synthetic:
        return [*parts, _synthetic(shape)]
    return [*parts, *_buffer(shape), *_of_language_model(shape)]


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
        *_gradients_and_moments(shape, weights, place),
        *_largest_of(_working_set(shape, place)),
        *_densest_step(shape, place),
        *_reservoir(shape, place),
    ]


def _gradients_and_moments(shape: Shape, weights: int, place: str) -> list[Need]:
    if shape.has_kernels and shape.cfg.adam_beta1 == 0:
        how = "twice: with β1 = 0 the last one is Adam's first moment"
        return [
            Need("SAE, gradients", 2 * weights, how, place),
            Need("SAE, Adam", weights, "second moments", place),
        ]
    return [
        Need("SAE, gradients", weights, "as the weights", place),
        Need("SAE, Adam", 2 * weights, "two moments", place),
    ]


def _working_set(shape: Shape, place: str) -> list[Need]:
    """What a step holds besides, at one time or another."""
    first = shape.sae_itemsize * shape.d_in * shape.d_sae + _tiles(shape) + REST
    parts = [_dense_step(shape, place)]
    if shape.has_kernels:
        parts.append(Need("SAE, Adam's first step", first, "a copy of a weight matrix", place))
    if shape.is_sparse:
        how = f"later, at L0 {shape.l0:g}"
        parts.append(Need("SAE, sparse step", _sparse_step(shape, shape.l0), how, place))
    return parts


def _largest_of(parts: list[Need]) -> list[Need]:
    """Alternatives, of which the largest counts."""
    largest = max(parts, key=lambda part: part.bytes)
    return [replace(part, counts=part is largest) for part in parts]


def _tiles(shape: Shape) -> int:
    return TILES * shape.batch * shape.tile * BYTES["float32"]


def _dense_step(shape: Shape, place: str) -> Need:
    note = ": half of all gates open at the start" if shape.is_sparse else ""
    if shape.has_tiles:
        batches = BATCHES_OF_TILES * shape.batch * shape.d_in * shape.sae_itemsize
        how = f"by tiles: {TILES} × [{shape.batch}, {shape.tile}], {BATCHES_OF_TILES} batches{note}"
        return Need("SAE, dense step", _tiles(shape) + batches + REST, how, place)
    copies = DENSE_COPIES.get(shape.architecture, OTHER_COPIES)
    dense = copies * shape.batch * shape.d_sae * shape.sae_itemsize
    how = f"{copies} × [{shape.batch}, {shape.d_sae}]{note}"
    return Need("SAE, dense step", dense, how, place)


def _sparse_step(shape: Shape, l0: float) -> int:
    batches = BATCHES * shape.batch * shape.d_in * shape.sae_itemsize
    entries = round(BYTES_AN_ENTRY * shape.batch * l0)
    return batches + entries + _rounded_weights(shape) + REST


def _densest_step(shape: Shape, place: str) -> list[Need]:
    """Between the two states; of a GPU nobody knows."""
    if not (shape.is_sparse and shape.device.is_cpu):
        return []
    size = _sparse_step(shape, shape.densest * shape.d_sae)
    how = f"not counted: at the most, while {shape.densest:.0%} of the gates are open"
    return [Need("SAE, densest sparse step", size, how, place, False)]


def _rounded_weights(shape: Shape) -> int:
    """bfloat16 copies: of a tile on a CPU; on a GPU of all, and a bit for each gate."""
    if shape.device.is_cpu:
        return BYTES["bfloat16"] * shape.d_in * min(SEARCHED_FEATURES, shape.d_sae)
    copied = shape.sae_dtype != "bfloat16"
    return copied * BYTES["bfloat16"] * shape.d_in * shape.d_sae + shape.batch * shape.d_sae // 8


def _libraries(shape: Shape) -> list[Need]:
    """A GPU's memory has no part in them."""
    if not shape.device.is_cpu:
        return []
    return [Need("Python and its libraries", LIBRARIES, "torch, SAELens", shape.cfg.device)]


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
