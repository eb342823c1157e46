"""Which implementation serves a call: decided when it is made, by what the input is.

The decision depends on the batch, the weights and the options alone, so a resumed or repeated run
takes the same paths.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from gated_plugin.engine import plain
from gated_plugin.engine.options import check_impl, options
from gated_plugin.engine.products import gpu_rounds_float32_products, screening_pays
from gated_plugin.engine.support import EncoderWeights, Support
from gated_plugin.engine.triton_kernels import is_interpreted
from gated_plugin.errors import GatedError

DENSE = ("dense", "reference")
KERNELS = ("numba", "triton")

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

DENSEST_ON_GPU, DENSEST_ON_TENSOR_CORES = 0.05, 0.01
"""Counted, not measured: an open gate costs 5 reads of a row, and a dense step 14 N operations a
gate. At 4 TB/s and 50 TFLOP/s of float32 they are equal at 5.6 %; at 400 TFLOP/s of TF32, or 700 of
bfloat16 with rows of half the bytes, at 0.7 and 0.8 %, where the dense step's passes over its
activations are not counted."""

OLDEST_GPU = (8, 0)
"""Compute capability of the first GPUs whose tensor cores multiply bfloat16."""

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
        require_served(impl, values_K, W_MN)
        return impl
    kernels = kernels_for(values_K, W_MN)
    if not density <= (_densest_on_gpu(W_MN) if kernels == "triton" else DENSEST_ENCODE):
        return "dense"
    return kernels or "torch"


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
        kernels = kernels_for(x_BN, weights.W_enc_NM)
        served = kernels or _are_float32_on_cpu(x_BN, weights.W_enc_NM)
        if not served or len(x_BN) < FEWEST_ROWS:
            return Choice("dense", False, None)
        density = sampled_density(x_BN, weights)
        if not density <= _densest_of(kernels, densest, x_BN):
            return Choice("dense", False, density)
        impl = kernels or "torch"
    require_served(impl, x_BN, weights.W_enc_NM)
    return Choice(impl, _screened(impl, x_BN), density)


def _densest_of(kernels: str | None, densest: float, x_BN: Tensor) -> float:
    if kernels == "triton":
        return _densest_on_gpu(x_BN)
    return DENSEST_PLAIN if kernels is None else densest


def _densest_on_gpu(operand: Tensor) -> float:
    on_tensor_cores = operand.dtype == torch.bfloat16 or gpu_rounds_float32_products()
    return DENSEST_ON_TENSOR_CORES if on_tensor_cores else DENSEST_ON_GPU


def sampled_density(x_BN: Tensor, weights: EncoderWeights) -> float:
    """Share of open gates among evenly spaced rows and features; NaN if one of them is NaN."""
    # An odd stride, so that rows of [batch, position] are not all at one position.
    x = x_BN[:: -(-len(x_BN) // SAMPLED_ROWS) | 1]
    stride = -(-weights.W_enc_NM.shape[1] // SAMPLED_FEATURES)
    gate = x @ weights.W_enc_NM[:, ::stride] + weights.b_gate_M[::stride]
    return ((gate > 0).float().mean() + 0 * gate.sum()).item()


def implementation(impl: str) -> ModuleType:
    """The module that holds the sparse operations of `impl`.

    Raises:
        GatedError: it needs a package that is not installed.
    """
    if impl == "torch":
        return plain
    package = "triton" if impl == "triton" else "numba"
    if not _has(package):
        raise GatedError(
            f"impl={impl!r} needs the package {package}, which is not installed here; "
            f"run: pip install {package}, or take impl='torch'."
        )
    if impl == "triton":
        from gated_plugin.engine import gpu

        return gpu
    from gated_plugin.engine import cpu

    return cpu


def densest_step(W_enc_NM: Tensor) -> float:
    """The density above which a dense training step is the cheaper one."""
    fits = W_enc_NM.numel() * W_enc_NM.element_size() <= CACHE_BYTES
    return DENSEST_STEP_IN_CACHE if fits else DENSEST_STEP


def operations_for(*tensors: Tensor) -> ModuleType:
    """The operations that are at hand for these tensors, whatever the options say."""
    return implementation(kernels_for(*tensors) or "torch")


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


def kernels_for(*tensors: Tensor) -> str | None:
    """The kernels of ours that serve these tensors: "numba" or "triton"."""
    if _are_float32_on_cpu(*tensors):
        return "numba" if _has("numba") else None
    return "triton" if _has("triton") and _are_on_new_gpu(*tensors) else None


def require_served(impl: str, *tensors: Tensor) -> None:
    """Raise `GatedError` where `impl` cannot compute with these tensors."""
    if impl in ("auto", "torch", *DENSE):
        return
    implementation(impl)
    if impl == "numba" and not _are_float32_on_cpu(*tensors):
        raise GatedError(
            f"impl='numba' computes in float32 on a CPU, but was given {_kinds(tensors)}; take "
            "impl='torch', or 'auto'."
        )
    if impl == "triton" and not (_are_on_new_gpu(*tensors) or is_interpreted()):
        raise GatedError(
            "impl='triton' computes in float32 or bfloat16 on an NVIDIA GPU of compute capability "
            f"8.0 or newer, but was given {_kinds(tensors)}; take 'auto', or try the kernels on a "
            "CPU by starting with TRITON_INTERPRET=1."
        )


def _kinds(tensors: tuple[Tensor, ...]) -> str:
    return ", ".join(sorted({f"{t.dtype} on {t.device}" for t in tensors}))


def _screened(impl: str, x_BN: Tensor) -> bool:
    if impl == "torch" and x_BN.is_cuda:
        return False  # torch may add bfloat16 products in bfloat16 there, which no bound covers
    if options().screening != "auto":
        return options().screening != "never"
    return impl == "triton" or screening_pays(len(x_BN), options().deterministic)


def _are_float32_on_cpu(*tensors: Tensor) -> bool:
    return all(
        type(tensor) in (Tensor, Parameter)
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        for tensor in tensors
    )


def _are_on_new_gpu(*tensors: Tensor) -> bool:
    return all(
        type(tensor) in (Tensor, Parameter)
        and tensor.device.type == "cuda"
        and tensor.dtype in (torch.float32, torch.bfloat16)
        and torch.cuda.get_device_capability(tensor.device) >= OLDEST_GPU
        for tensor in tensors
    )


@cache
def _has(package: str) -> bool:
    try:
        import_module(package)  # which tells more than a search: a broken install has none
    except ImportError:
        return False
    return True
