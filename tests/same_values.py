"""Whether what was read from two files is the same to the last bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def assert_same(ours: Any, theirs: Any) -> None:
    """Tensors have the same bytes; ours are contiguous."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, Tensor):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
        assert ours.stride() == theirs.contiguous().stride()
        as_bytes = [t.contiguous().view(-1).view(torch.uint8) for t in (ours, theirs)]
        assert torch.equal(*as_bytes)
    elif isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, list | tuple):
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other)
    else:
        assert ours == theirs
