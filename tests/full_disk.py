"""A disk without room."""

from __future__ import annotations

import builtins
import errno
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytest import MonkeyPatch


@contextmanager
def full_disk(room: int, *folders: Path) -> Iterator[Callable[[], int]]:
    """Let `room` bytes be written below `folders`, and no more; gives how many are left."""
    left = room
    opened = io.open

    class Full(io.FileIO):
        def write(self, data: Any, /) -> int:
            nonlocal left
            size = min(len(data), left)
            if not size and len(data):
                raise OSError(errno.ENOSPC, "No space left on device", self.name)
            left -= size
            return super().write(memoryview(data)[:size]) or 0

    def open_(file: Any, mode: str = "r", buffering: int = -1, *rest: Any, **options: Any) -> Any:
        path = Path() if isinstance(file, int) else Path(file).absolute()
        written = set(mode) & set("wax+")
        if not written or not any(path.is_relative_to(folder) for folder in folders):
            return opened(file, mode, buffering, *rest, **options)
        raw = Full(path, "".join(set(mode) - set("bt")), opener=options.pop("opener", None))
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, *rest, **options)

    with MonkeyPatch.context() as patch:
        patch.setattr(io, "open", open_)
        patch.setattr(builtins, "open", open_)
        yield lambda: left
