"""How fast a device computes: stated peaks for GPUs, a measurement for this computer."""

from __future__ import annotations

import time
from dataclasses import dataclass
from difflib import get_close_matches

from gated_plugin.errors import GatedError

GIGA = 1e9


@dataclass(frozen=True, kw_only=True)
class Device:
    """What computes, and how much it holds."""

    name: str
    float32: float
    """Operations a second of dense float32 products, as torch does them by default (no TF32)."""
    bfloat16: float
    memory: float | None
    """Bytes; None where it is not known."""
    bandwidth: float = 0
    """Bytes a second that a GPU's memory moves; no count for a CPU needs it."""
    measured: bool = False
    """Whether the rates were measured just now; those of a GPU are its maker's peaks."""

    @property
    def is_cpu(self) -> bool:
        return self.name == "cpu"

    def rate(self, dtype: str) -> float:
        """Peak operations a second in `dtype`."""
        if dtype in ("bfloat16", "float16"):
            return self.bfloat16
        return self.float32 / (2 if dtype == "float64" else 1)


# NVIDIA's data sheets, SXM, without sparsity. All of compute capability 8.0 or newer.
GPUS = {
    gpu.name: gpu
    for gpu in (
        Device(name="H200", float32=67e12, bfloat16=989e12, memory=141e9, bandwidth=4.8e12),
        Device(name="H100", float32=67e12, bfloat16=989e12, memory=80e9, bandwidth=3.35e12),
        Device(name="A100", float32=19.5e12, bfloat16=312e12, memory=80e9, bandwidth=2.04e12),
    )
}
CHOICES = (*GPUS, "cpu")

PROBE = (1024, 1024, 2048)
"""Rows, inner and outer dimension of the measured product: some 20 to 100 ms on two cores."""


def device(name: str) -> Device:
    """One of `CHOICES`, in any case.

    Raises:
        GatedError: there is no such device.
    """
    if name.lower() == "cpu":
        return _this_cpu()
    if name.upper() not in GPUS:
        near = get_close_matches(name, CHOICES, n=1, cutoff=0.0)
        raise GatedError(
            f"There is no device {name!r} to plan for, but {', '.join(CHOICES)}; give --gpu "
            f"{near[0]}, or --tokens-per-second for another."
        )
    return GPUS[name.upper()]


def _this_cpu() -> Device:
    import torch

    rows, inner, outer = PROBE
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, w = torch.ones(rows, inner, dtype=dtype), torch.ones(inner, outer, dtype=dtype)
        rates[dtype] = 2 * rows * inner * outer / min(_seconds(x, w) for _ in range(3))
    return Device(
        name="cpu",
        float32=rates[torch.float32],
        bfloat16=rates[torch.bfloat16],
        memory=_this_memory(),
        measured=True,
    )


def _seconds(x: object, w: object) -> float:
    started = time.perf_counter()
    x @ w  # type: ignore[operator] # tensors
    return time.perf_counter() - started


def _this_memory() -> float | None:
    import os

    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return None
