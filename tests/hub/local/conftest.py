"""A running hub, the real client to it, and a repository on it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["NO_PROXY"] = "127.0.0.1"

import huggingface_hub
from hub_calls import REPO
from huggingface_hub import HfApi

from gated_plugin.hub.local import LocalHub


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Xet, whoever imported the client before; and its own retries come at once."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def api(hub: LocalHub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token)


@pytest.fixture
def repo(api: HfApi) -> str:
    api.create_repo(REPO)
    return REPO


@pytest.fixture
def seen(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[str]]:
    """The answers so far that fit a pattern, as the hub logged them: `GET /path 200`."""
    caplog.set_level("INFO", logger="gated_plugin.hub.local")

    def lines(pattern: str) -> list[str]:
        logged = [one.getMessage() for one in caplog.records if one.name.startswith("gated_plugin")]
        return [line for line in logged if re.search(pattern, line)]

    return lines
