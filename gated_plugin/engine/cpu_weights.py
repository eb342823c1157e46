"""Adam and the decoder's norm on whole rows of weights, in one pass over memory each.

Compiled kernels for float32 weights [M, N] on a CPU whose rows lie one after another.
"""

from __future__ import annotations

from math import sqrt

import numpy as np
from torch import Tensor

from gated_plugin.engine.kernels import weight_rows
from gated_plugin.engine.threads import even_ranges, in_threads


def adam_step(
    W_MN: Tensor,
    gradient_MN: Tensor,
    first_MN: Tensor,
    square_MN: Tensor,
    last_step_M: Tensor,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float],
    eps: float,
) -> None:
    """Adam on the rows whose gradient or first moment is not 0 (arXiv 1412.6980, algorithm 1).

    A row where both are 0 does not move, and its second moment `square` only decays: that is put
    off until the row is touched again, or until `pay_decay`.

    Args:
        first_MN: the first moment; with β1 = 0 the gradient itself.
        last_step_M: the step at which each row's second moment was last brought up to date; int64.
        step: this step, from 1 on.
    """
    weights = (W_MN, gradient_MN, first_MN, square_MN, last_step_M)
    arrays = [t.detach().numpy() for t in weights]
    beta1, beta2 = betas
    corrected = (lr / (1 - beta1**step), beta1, beta2, 1 / sqrt(1 - beta2**step), eps)
    scalars = [np.float32(value) for value in corrected]
    in_threads(
        lambda lo, hi: weight_rows.adam_rows(*arrays, step, *scalars, lo, hi),
        even_ranges(len(W_MN)),
    )


def pay_decay(square_MN: Tensor, last_step_M: Tensor, step: int, beta2: float) -> None:
    """Bring every row's second moment up to `step`."""
    arrays = [t.numpy() for t in (square_MN, last_step_M)]
    in_threads(
        lambda lo, hi: weight_rows.decay_rows(*arrays, step, np.float32(beta2), lo, hi),
        even_ranges(len(square_MN)),
    )


def normalise_rows(W_MN: Tensor) -> None:
    """Scale every row to norm 1, in place; a row of zeros has no direction and stays."""
    rows = W_MN.detach().numpy()
    in_threads(lambda lo, hi: weight_rows.normalise_rows(rows, lo, hi), even_ranges(len(rows)))


def remove_parallel(gradient_MN: Tensor, W_MN: Tensor) -> None:
    """g ← g − (g · w) w in place, for rows w of norm 1."""
    arrays = [t.detach().numpy() for t in (gradient_MN, W_MN)]
    in_threads(
        lambda lo, hi: weight_rows.remove_parallel_rows(*arrays, lo, hi), even_ranges(len(W_MN))
    )
