"""What surrounds a command in these tests: the environment, its time limits, and what it prints."""

from __future__ import annotations

import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from gated_hub_process import Ended
from pytest import MonkeyPatch

from gated_plugin.hub.local import Access

WRITER, READER = "hf_thewriterstoken", "hf_thereaderstoken"
TOKENS = {WRITER: Access("alice", "write"), READER: Access("bob", "read")}

LONGEST_SLEEP = 0.01
"""Seconds, however long a command wants to wait before it tries again."""


class Surroundings(NamedTuple):
    """Of a command on a machine of its own."""

    url: str
    """Of the hub."""
    folder: Path
    """Holds all that huggingface_hub keeps."""
    token: str = WRITER
    silence: float = 20.0
    """Seconds until a request without an answer is given up."""

    def enter(self, patch: MonkeyPatch) -> None:
        """Let this process be surrounded so; nothing waits before it tries again."""
        import huggingface_hub

        patch.setenv("HF_ENDPOINT", self.url)
        patch.setenv("HF_TOKEN", self.token)
        patch.setenv("HF_HOME", str(self.folder / "home"))
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        # Read from the environment when huggingface_hub was imported.
        constants = huggingface_hub.constants
        patch.setattr(constants, "HF_HUB_CACHE", str(self.folder / "cache"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(self.folder / "token"))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", self.silence)
        patch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", self.silence)
        huggingface_hub.utils.disable_progress_bars()
        sleep = time.sleep
        patch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, LONGEST_SLEEP)))
        patch.setattr("gated_plugin.hub.client.WAITS", (0.0, 0.0))
        patch.setattr("gated_plugin.hub.client.SILENCE_SECONDS", self.silence)


def trust(patch: MonkeyPatch) -> None:
    """Prepare in this process, and leave out the comparison with plain SAELens: two processes that
    take seconds to start."""
    none = dict.fromkeys(
        ("features", "reconstructions", "features_relative", "reconstructions_relative"), 0.0
    )
    compared = {"rows": 64, "float64": none, "float32": none}
    patch.setattr(
        "gated_plugin.hub.preparation.verify_folders", lambda folders: [compared] * len(folders)
    )
    patch.setattr(
        "gated_plugin.hub.publish.apart",
        lambda function, report, *arguments: function(report, *arguments),
    )


def gated_hub(*arguments: object) -> Ended:
    """`gated-hub ARGUMENT…` in this process."""
    from gated_plugin.cli import main

    out, err = StringIO(), StringIO()
    code: Any = 0
    with MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["gated-hub", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            code = end.code
    return Ended(code or 0, out.getvalue(), err.getvalue())
