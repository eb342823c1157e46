"""A local hub in a process of its own, which can be killed and whose memory can be measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SERVE = """
import sys
from pathlib import Path
from gated_plugin.hub.local import LocalHub
with LocalHub(Path(sys.argv[1])) as hub:
    print(hub.url, flush=True)
    sys.stdin.read()
"""


class HubProcess:
    """Serves the folder `root` until the `with` block ends."""

    def __init__(self, root: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.url = self._process.stdout.readline().strip()
        self.token = (root / "token").read_text()

    def __enter__(self) -> HubProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=10)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def peak_memory(self) -> int:
        """The most bytes of memory that the process has had so far."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
