"""No token and no signature is left anywhere: not on the screen, in logs, errors or files."""

from __future__ import annotations

import logging
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs

import huggingface_hub
import pytest
from faults import FaultyHub
from surroundings import READER, WRITER

from gated_plugin.errors import GatedError
from gated_plugin.hub.publish import publish
from gated_plugin.hub.pull import pull

REPO = "alice/books"
STRANGER = "hf_nobodystoken"
COMMAND = "from gated_plugin.cli import main; main()"
FOR_EVER = {"times": 1000}
ECHO = f"Who is {WRITER}?".encode()
SIGNED = "http://127.0.0.1:1/elsewhere?X-Amz-Signature=0123456789abcdef"


class Trouble(NamedTuple):
    """A request that goes wrong, or a token that may not."""

    method: str = "GET"
    pattern: str = "^$"
    how: dict[str, Any] = {}  # noqa: RUF012 - not changed
    token: str = WRITER


UPLOAD, COMMIT, FILE = ("PUT", "/lfs/"), ("POST", "/commit/"), ("GET", "/resolve/")

PUSHES = {
    "none": Trouble(),
    "unknown token": Trouble(token=STRANGER),
    "token that only reads": Trouble(token=READER),
    "upload 401": Trouble(*UPLOAD, {"status": 401, **FOR_EVER}),
    "upload 403": Trouble(*UPLOAD, {"status": 403, **FOR_EVER}),
    "upload 500": Trouble(*UPLOAD, {"status": 500, **FOR_EVER}),
    "upload 503 once": Trouble(*UPLOAD, {"status": 503}),
    "upload dropped": Trouble(*UPLOAD, {"drop_after_bytes": 9, **FOR_EVER}),
    "commit 401": Trouble(*COMMIT, {"status": 401, **FOR_EVER}),
    "commit 500": Trouble(*COMMIT, {"status": 500, **FOR_EVER}),
    "commit dropped": Trouble(*COMMIT, FOR_EVER),
    "hub that echoes the token": Trouble("GET", "/whoami", {"status": 400, "body": ECHO}),
}
PULLS = {
    "none": Trouble(),
    "unknown token": Trouble(token=STRANGER),
    "tree 401": Trouble("GET", "/tree/", {"status": 401, **FOR_EVER}),
    "file 403": Trouble(*FILE, {"status": 403, **FOR_EVER}),
    "file 500": Trouble(*FILE, {"status": 500, **FOR_EVER}),
    "file dropped": Trouble(*FILE, {"drop_after_bytes": 9, **FOR_EVER}),
    "file elsewhere": Trouble(*FILE, {"status": 302, "headers": {"Location": SIGNED}, **FOR_EVER}),
}


@pytest.fixture
def said(monkeypatch) -> Iterator[list[str]]:
    """All that any logger says, with everything switched on that says more."""
    lines: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    listener = Listener()
    loggers = [logging.getLogger(), logging.getLogger("huggingface_hub")]
    levels = [logger.level for logger in loggers]
    monkeypatch.setattr(huggingface_hub.constants, "HF_DEBUG", True)
    for logger in loggers:
        logger.addHandler(listener)
        logger.setLevel(logging.DEBUG)
    yield lines
    for logger, level in zip(loggers, levels, strict=True):
        logger.removeHandler(listener)
        logger.setLevel(level)


@pytest.mark.parametrize("trouble", PUSHES.values(), ids=PUSHES)
def test_a_push_keeps_its_secrets(run, hub, trusting, monkeypatch, said, tmp_path, trouble):
    monkeypatch.setenv("HF_TOKEN", f"{trouble.token}\n")
    hub.fail(trouble.method, trouble.pattern, **trouble.how)
    try:
        publish([run], REPO, report=said.append)
    except GatedError as error:
        said += everything_of(error)
    require_no_secret(hub, said, run.path, tmp_path / "cache", tmp_path / "home")


@pytest.mark.parametrize("trouble", PULLS.values(), ids=PULLS)
def test_a_pull_keeps_its_secrets(run, hub, trusting, monkeypatch, said, tmp_path, trouble):
    publish([run], REPO)
    monkeypatch.setenv("HF_TOKEN", f"{trouble.token}\n")
    hub.fail(trouble.method, trouble.pattern, **trouble.how)
    try:
        pull(REPO, out=tmp_path / "pulled", report=said.append)
    except GatedError as error:
        said += everything_of(error)
    require_no_secret(hub, said, tmp_path / "pulled", tmp_path / "cache", tmp_path / "home")


@pytest.mark.parametrize("way", ["login file", "argument"])
def test_a_token_may_come_with_the_end_of_its_line(
    run, hub, trusting, monkeypatch, said, tmp_path, way
):
    publish([run], REPO, private=True)
    monkeypatch.delenv("HF_TOKEN")
    if way == "login file":
        Path(huggingface_hub.constants.HF_TOKEN_PATH).write_text(f"{WRITER}\r\n")
    hub.fail("GET", "/resolve/", skip=2, status=403)
    with pytest.raises(GatedError) as error:
        pull(REPO, out=tmp_path / "pulled", token=f" {WRITER}\n" if way == "argument" else None)
    said += everything_of(error.value)
    require_no_secret(hub, said, tmp_path / "pulled", tmp_path / "cache", tmp_path / "home")


@pytest.mark.parametrize("command", ["push", "pull"])
def test_a_talkative_command_keeps_its_secrets(run, hub, trusting, monkeypatch, tmp_path, command):
    publish([run], REPO)
    monkeypatch.setenv("HF_TOKEN", f"{WRITER}\n")
    monkeypatch.setenv("HF_DEBUG", "1")
    hub.fail("GET", "/tree/", status=403, times=1000)
    words = {"push": [run.path, "--repo", REPO], "pull": [REPO, "--out", tmp_path / "pulled"]}
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND, "--debug", command, *map(str, words[command])],
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1 and "Traceback" in ended.stderr
    require_no_secret(hub, [ended.stdout, ended.stderr], tmp_path / "home")


def everything_of(error: BaseException) -> Iterator[str]:
    """What an error and all those behind it say, in every way of printing it."""
    todo: list[BaseException | None] = [error]
    while todo:
        if (each := todo.pop()) is not None:
            yield from [str(each), repr(each), *traceback.format_exception(each)]
            todo += [each.__cause__, each.__context__]


def require_no_secret(hub: FaultyHub, said: list[str], *folders: Path) -> None:
    assert any("/api/" in line for line in said), "nothing was heard of the requests"
    signed = [parse_qs(seen.query) for seen in hub.requests if seen.method == "PUT"]
    secrets = {WRITER, READER, STRANGER, SIGNED.partition("=")[2]}
    secrets |= {value for query in signed for values in query.values() for value in values}
    secrets = {secret for secret in secrets if len(secret) >= 8}
    for secret in secrets:
        assert not [line for line in said if secret in line]
    for path in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert not [secret for secret in secrets if secret.encode() in content], path
