"""Which implementation serves a call: decided when it is made, by what the input is.

The decision depends on the batch, the weights and the options alone, so a resumed or repeated run
takes the same paths.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from gated_plugin.engine import plain
from gated_plugin.engine.options import check_impl, options
from gated_plugin.engine.products import screening_pays
from gated_plugin.engine.support import EncoderWeights, Support
from gated_plugin.errors import GatedError

DENSE = ("dense", "reference")

FEWEST_ROWS = 32
"""With fewer rows the dense product is bound by reading the weights, which nothing avoids."""

DENSEST_ENCODE = 0.06
"""The two paths cost the same at 4.5 to 6 % (768 × 12288) and 8 % (512 × 4096, 256 × 2048)."""

DENSEST_STEP = 0.08
"""They cost the same at 8 to 9 % (768 × 12288, 512 × 4096) …"""

DENSEST_STEP_IN_CACHE, CACHE_BYTES = 0.13, 1 << 22
"""… and at 14 to 18 % where a weight matrix fits a core's cache (256 × 2048, 128 × 4096)."""

DENSEST_PLAIN = 0.005
"""Without numba a step costs 6.1 mm sparse and 8.7 dense at 0.5 %, 29 and 8.7 at 4 %."""

SAMPLED_ROWS, SAMPLED_FEATURES = 64, 256


class Choice(NamedTuple):
    """What served a call, for the record."""

    impl: str
    screened: bool
    density: float | None
    """Share of open gates in a sample of the batch, where it was looked at."""


def choose_for_codes(values_K: Tensor, W_MN: Tensor, density: float, impl: str | None) -> str:
    """What shall serve an operation on codes that are already there."""
    impl = impl or options().impl
    check_impl(impl)
    if impl != "auto":
        _require_served(impl, values_K, W_MN)
        return impl
    if not density <= DENSEST_ENCODE:
        return "dense"
    return "numba" if compiled_kernels_serve(values_K, W_MN) else "torch"


@torch.no_grad()
def choose(x_BN: Tensor, weights: EncoderWeights, impl: str | None, densest: float) -> Choice:
    """What shall serve an encoder operation on rows x.

    Args:
        impl: what the caller asks for; None leaves it to the options.
        densest: the density above which the dense path is the cheaper one.
    """
    impl = impl or options().impl
    check_impl(impl)
    if impl in DENSE:
        return Choice(impl, False, None)
    density = None
    if impl == "auto":
        if not _are_float32_on_cpu(x_BN, weights.W_enc_NM) or len(x_BN) < FEWEST_ROWS:
            return Choice("dense", False, None)
        density = sampled_density(x_BN, weights)
        if not density <= (densest if _has_numba() else DENSEST_PLAIN):
            return Choice("dense", False, density)
        impl = "numba" if _has_numba() else "torch"
    _require_served(impl, x_BN, weights.W_enc_NM)
    return Choice(impl, _screened(x_BN), density)


def sampled_density(x_BN: Tensor, weights: EncoderWeights) -> float:
    """Share of open gates among evenly spaced rows and features; NaN if one of them is NaN."""
    # An odd stride, so that rows of [batch, position] are not all at one position.
    x = x_BN[:: -(-len(x_BN) // SAMPLED_ROWS) | 1]
    stride = -(-weights.W_enc_NM.shape[1] // SAMPLED_FEATURES)
    gate = torch.addmm(weights.b_gate_M[::stride], x, weights.W_enc_NM[:, ::stride])
    return ((gate > 0).float().mean() + 0 * gate.sum()).item()


def implementation(impl: str) -> ModuleType:
    """The module that holds the sparse operations of `impl`.

    Raises:
        GatedError: numba is asked for and not installed.
    """
    if impl == "torch":
        return plain
    if not _has_numba():
        raise GatedError(
            "impl='numba' needs the package numba, which is not installed here; "
            "run: pip install numba, or take impl='torch'."
        )
    from gated_plugin.engine import cpu

    return cpu


def densest_step(W_enc_NM: Tensor) -> float:
    """The density above which a dense training step is the cheaper one."""
    fits = W_enc_NM.numel() * W_enc_NM.element_size() <= CACHE_BYTES
    return DENSEST_STEP_IN_CACHE if fits else DENSEST_STEP


def operations_for(*tensors: Tensor) -> ModuleType:
    """The operations that are at hand for these tensors, whatever the options say."""
    return implementation("numba" if compiled_kernels_serve(*tensors) else "torch")


@torch.no_grad()
def find_support(
    x_BN: Tensor, weights: EncoderWeights, choice: Choice
) -> tuple[ModuleType, Support] | None:
    """The open gates of x, and the operations that found them.

    Returns:
        None where the choice is a dense product, or an operand is such that nothing is certain.
    """
    if choice.impl in DENSE:
        return None
    operations = implementation(choice.impl)
    support = operations.find_support(x_BN, weights, choice.screened)
    return None if support is None else (operations, support)


def _require_served(impl: str, *tensors: Tensor) -> None:
    if impl == "numba" and _has_numba() and not compiled_kernels_serve(*tensors):
        kinds = ", ".join(sorted({f"{t.dtype} on {t.device}" for t in tensors}))
        raise GatedError(
            f"impl='numba' computes in float32 on a CPU, but was given {kinds}; take "
            "impl='torch', or 'auto'."
        )


def _screened(x_BN: Tensor) -> bool:
    if options().screening == "auto":
        if x_BN.device.type != "cpu":
            return False
        return screening_pays(len(x_BN), options().deterministic)
    return options().screening == "always"


def compiled_kernels_serve(*tensors: Tensor) -> bool:
    """Whether all are float32 on a CPU, and numba is installed."""
    return _has_numba() and _are_float32_on_cpu(*tensors)


def _are_float32_on_cpu(*tensors: Tensor) -> bool:
    return all(
        type(tensor) in (Tensor, Parameter)
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        for tensor in tensors
    )


@cache
def _has_numba() -> bool:
    try:
        import numba  # noqa: F401 - an import tells more than a search: a broken install has none
    except ImportError:
        return False
    return True
