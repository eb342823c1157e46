"""A hub on loopback, and a run to push to it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faults import FaultyHub
from miniature import make_run
from surroundings import TOKENS, Surroundings, trust

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
    with FaultyHub(tmp_path / "hub", TOKENS) as hub:
        Surroundings(hub.url, tmp_path).enter(monkeypatch)
        yield hub


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `publish` believe that plain SAELens agrees, and so take no seconds."""
    trust(monkeypatch)


@pytest.fixture
def edit() -> Callable[..., None]:
    """Changes keys of a JSON file."""

    def change(path: Path, **values: object) -> None:
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change
