"""Arithmetic of a run, part by part, and how long it takes."""

from __future__ import annotations

from dataclasses import dataclass

from gated_plugin.plan.shape import Shape

DENSE_PRODUCTS = {"gated": 7, "l1_baseline": 7, "saelens_gated": 13}
"""Products of [batch, d_in] × [d_in, d_sae] or of its mirrors in a dense step, as torch's own
counter finds them; ours encodes once more where it goes by tiles."""
OTHER_PRODUCTS = 6
"""… of SAELens' other architectures, such as standard and topk: two forward, four backward."""

SPARSE_PRODUCTS = 8
"""Multiply-adds with a row of d_in for each feature that fires: recheck, two decodes, their two
mirrors, three sums of gradients."""

LANGUAGE_MODEL_USE, SAE_USE = 0.4, 0.5
"""Share of the peak that is reached; taken as such, not measured on these devices."""

SEARCH_IN_PRODUCTS, ROWS_OF_WEIGHTS, SPARSE_SLOWDOWN = 0.6, 700, 6.0
"""On a CPU a sparse step takes 0.6 float32 products for the search; as long as a product of 700 rows,
whatever the batch, for what passes over the weights: rounding, clipping, Adam, norms; and its sparse
operations run at a sixth of a product's rate. Steps of 1024 and 2048 × 768 and of 4096 × 3072
(docs/engine.md, docs/performance.md) take 0.75 to 1.15 times that."""

WEIGHT_PASSES, ROW_READS = 19, 2.5
"""Bytes that a sparse step moves on a GPU besides the search's product: 19 times those of a weight
matrix, and 2.5 rows for each feature that fires. Of the 38 GB that docs/performance.md counts at
4096 × 3072 × 131072 and L0 64, the rows are those of recheck, decodes and gradients, 8 GB."""

SEARCH_USE, BANDWIDTH_USE = 0.7, 0.875
"""Shares of the peaks in bfloat16 and of the bandwidth, as docs/performance.md takes them: 620 to 790
of 989 TFLOP/s, 4.2 of 4.8 TB/s. Not measured."""


@dataclass(frozen=True)
class Work:
    """One part."""

    part: str
    flops: float
    seconds: float | None
    """None where nothing but the whole is known, and for an alternative to another part."""
    how: str
    counts: bool = True
    """Whether it is part of the total; an alternative to another part is not."""


def training_work(shape: Shape) -> list[Work]:
    """What training computes."""
    return _sae(shape) if shape.recipe.synthetic else [_language_model(shape), *_sae(shape)]


def evaluation_work(shape: Shape) -> Work:
    """What one evaluation computes."""
    plan = shape.recipe.evaluation
    if shape.recipe.synthetic:
        flops = 4 * shape.d_in * shape.d_sae * plan.tokens
        seconds = flops / shape.device.rate(shape.sae_dtype)
        return Work("evaluation", flops, seconds, f"{plan.tokens:,} tokens: encoded, decoded")
    flops = 3 * plan.tokens * shape.model.forward_flops(shape.context)
    return Work(
        "evaluation",
        flops,
        flops / _model_rate(shape),
        f"{plan.tokens:,} tokens: left alone, spliced, zeroed",
    )


def _language_model(shape: Shape) -> Work:
    flops = shape.model_tokens * shape.model.forward_flops(shape.context, shape.layers)
    blocks = "all" if shape.layers is None else f"{shape.layers} of {shape.model.layers}"
    return Work(
        "language model",
        flops,
        flops / _model_rate(shape),
        f"{shape.model_tokens:,} tokens through {blocks} blocks, in {shape.model_dtype}",
    )


def _sae(shape: Shape) -> list[Work]:
    tokens = shape.steps * shape.batch
    product = 2 * shape.d_in * shape.d_sae * tokens
    count = DENSE_PRODUCTS.get(shape.architecture, OTHER_PRODUCTS) + shape.has_tiles
    rate = shape.device.rate("bfloat16" if shape.cfg.autocast else shape.sae_dtype)
    rate *= 1 if shape.device.measured else SAE_USE
    how = f"{count} products of {shape.d_in} × {shape.d_sae} a token"
    dense = Work("SAE, dense", count * product, count * product / rate, how)
    if not shape.is_sparse:
        return [dense]
    sparse = 2 * SPARSE_PRODUCTS * shape.d_in * shape.l0 * tokens
    note = f"1 product, and {SPARSE_PRODUCTS} rows for each of {shape.l0:g} features a token"
    return [
        Work("SAE, sparse", product + sparse, shape.steps * _sparse_step(shape), note),
        Work("SAE, if it were dense", dense.flops, None, how, counts=False),
    ]


def _sparse_step(shape: Shape) -> float:
    """Seconds of one step."""
    matrix, entries = shape.d_in * shape.d_sae, shape.batch * shape.l0
    if shape.device.is_cpu:
        rows = SEARCH_IN_PRODUCTS * shape.batch + ROWS_OF_WEIGHTS
        sparse = SPARSE_SLOWDOWN * SPARSE_PRODUCTS * shape.d_in * entries
        return 2 * (rows * matrix + sparse) / shape.device.rate(shape.sae_dtype)
    search = 2 * shape.batch * matrix / (SEARCH_USE * shape.device.bfloat16)
    moved = shape.sae_itemsize * (WEIGHT_PASSES * matrix + ROW_READS * shape.d_in * entries)
    return search + moved / (BANDWIDTH_USE * shape.device.bandwidth)


def _model_rate(shape: Shape) -> float:
    dtype = "bfloat16" if shape.cfg.autocast_lm else shape.model_dtype
    return shape.device.rate(dtype) * LANGUAGE_MODEL_USE
