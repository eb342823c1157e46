"""Settings that tests of the engine change and must not leave behind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest
import torch

from gated_plugin.engine import dispatch


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """`torch.set_num_threads`, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def rounded_float32_products() -> Iterator[None]:
    """Lets torch round the operands of float32 products to bfloat16, where the CPU can."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def flushed_denormals() -> Iterator[None]:
    """Lets this thread take denormals for 0, where the CPU can."""
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if numba were not installed."""
    monkeypatch.setitem(sys.modules, "numba", None)
    dispatch._has.cache_clear()
    yield
    dispatch._has.cache_clear()
