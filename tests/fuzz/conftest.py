"""The summary of the mutated inputs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from fuzzing import Summary

sys.path.append(str(Path(__file__).parents[1] / "hub"))  # entries of an index
SUMMARY = pytest.StashKey[Summary]()


@pytest.fixture(scope="session")
def summary(pytestconfig: pytest.Config) -> Summary:
    """Of all cases of this session."""
    return pytestconfig.stash.setdefault(SUMMARY, Summary())


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for line in config.stash[SUMMARY].lines() if SUMMARY in config.stash else ():
        terminalreporter.write_line(line)
