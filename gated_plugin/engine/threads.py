"""Runs a compiled kernel over a range, on as many threads as torch uses.

Plain Python threads: the kernels release the GIL, and unlike a parallel runtime's own pool they
can be entered from several threads at once and survive a fork.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import torch


def in_threads(work: Callable[[int, int], Any], ranges: Sequence[tuple[int, int]]) -> list[Any]:
    """`work(lo, hi)` for every range, the first one on this thread; results in their order."""
    others = [_pool(len(ranges)).submit(work, lo, hi) for lo, hi in ranges[1:]]
    return [work(*ranges[0]), *(other.result() for other in others)]


def even_ranges(length: int) -> list[tuple[int, int]]:
    """[0, length) in one piece per thread."""
    threads = max(1, min(torch.get_num_threads(), length))
    cuts = [length * i // threads for i in range(threads + 1)]
    return list(pairwise(cuts))


@cache
def _pool(workers: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(workers, thread_name_prefix="gated_plugin")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)
