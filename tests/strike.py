"""A process that dies as if by `kill -9`, right before a file operation."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
"""Of Python's audit events: these change a folder, as does an `open` for writing."""


@dataclass
class Strike:
    """Called once, kills its process before change number `number` of what is below `folder`."""

    folder: str
    number: int

    def __call__(self) -> None:
        sys.addaudithook(self._listen)

    def _listen(self, event: str, details: tuple[object, ...]) -> None:
        if self._is_change(event, details):
            self.number -= 1
            if not self.number:
                os.kill(os.getpid(), signal.SIGKILL)

    def _is_change(self, event: str, details: tuple[object, ...]) -> bool:
        if event == "open":
            flags = details[2]
            assert isinstance(flags, int)
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return False
        elif event not in CHANGES:
            return False
        in_a_tree = event in ("os.remove", "os.rmdir") and details[-1] != -1  # a name alone
        return in_a_tree or str(details[0]).startswith(self.folder)
