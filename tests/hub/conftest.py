"""A hub on loopback, and a run to push to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import FaultyHub
from miniature import make_run

from gated_plugin.hub.local import Access
from gated_plugin.runs import Run


@pytest.fixture(scope="session")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "miniature"
    make_run(path)
    return path


@pytest.fixture
def run(made_run: Path, tmp_path: Path) -> Run:
    """A copy of the miniature run, for a test to spoil."""
    shutil.copytree(made_run, tmp_path / "runs" / "mine")
    return Run(tmp_path / "runs" / "mine")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyHub]:
    """An empty hub that the environment names, with a token of alice, who may write."""
    tokens = {
        "hf_thewriterstoken": Access("alice", "write"),
        "hf_thereaderstoken": Access("bob", "read"),
    }
    with FaultyHub(tmp_path / "hub", tokens=tokens) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("HF_TOKEN", hub.token)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        # Read from the environment when huggingface_hub was imported.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr("gated_plugin.hub.client.WAITS", (0.0, 0.0))
        yield hub


@pytest.fixture
def edit() -> Callable[..., None]:
    """Changes keys of a JSON file."""

    def change(path: Path, **values: object) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change
