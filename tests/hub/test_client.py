"""How calls of the real client are authorised, tried again, explained and logged."""

from __future__ import annotations

import logging
import os
import socket
import threading
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import httpx2
import pytest
from huggingface_hub import close_session, constants, get_session
from huggingface_hub import set_client_factory as set_factory
from huggingface_hub.utils import _http
from published import REPO, SAE, publish, repository

from gated_plugin.errors import GatedError
from gated_plugin.hub import client, failures
from gated_plugin.hub.pull import pull
from gated_plugin.hub.repository import Repository

INFO = f"/api/models/{REPO}$"


@pytest.fixture
def naps(monkeypatch) -> list[float]:
    """The seconds that were slept, none of them in truth."""
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    return slept


@pytest.fixture
def new_session():
    """One that is made within the test, and not kept after it."""
    client._set_up()
    close_session()
    yield
    close_session()


@pytest.fixture
def said() -> list[str]:
    """All that any library logs, at debug level."""
    lines: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(self.format(record))

    listener, names = Listener(), ("", "huggingface_hub", "httpx2", "httpcore2")
    before = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.DEBUG)
        logging.getLogger(name).addHandler(listener)
    yield lines
    for name in names:
        logging.getLogger(name).setLevel(before[name])
        logging.getLogger(name).removeHandler(listener)


def sent_token(hub) -> str | None:
    return hub.requests[-1].headers["Authorization"]


def read(hub, token: str | None = None) -> None:
    Repository(client.connect(token, anonymous_ok=True), REPO).info()


@pytest.mark.parametrize("given", ["argument", "environment", "file"])
def test_a_token_is_sent_without_the_white_space_around_it(hub, monkeypatch, given):
    spaced = f" {hub.token}\r\n"
    if given == "environment":
        monkeypatch.setenv("HF_TOKEN", spaced)
    if given == "file":
        monkeypatch.delenv("HF_TOKEN")
        with open(constants.HF_TOKEN_PATH, "w") as file:
            file.write(spaced)
    read(hub, spaced if given == "argument" else None)
    assert sent_token(hub) == f"Bearer {hub.token}"


def test_reading_needs_no_token_and_writing_does(hub, monkeypatch):
    publish(hub, repository())
    monkeypatch.delenv("HF_TOKEN")
    read(hub)
    assert sent_token(hub) is None
    with pytest.raises(GatedError, match=r"not logged in.*hf auth login"):
        client.connect()


def test_a_token_that_the_user_keeps_from_reads_is_kept_from_them(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    read(hub)
    assert sent_token(hub) is None


def test_a_token_with_characters_of_no_token_is_refused_without_showing_it(hub):
    with pytest.raises(GatedError, match="characters that no token has") as refusal:
        client.connect("hf_tökén")
    assert "hf_" not in str(refusal.value)


def test_no_log_and_no_error_holds_the_token_or_a_signature(
    hub, monkeypatch, new_session, said, naps, tmp_path
):
    monkeypatch.setattr(constants, "HF_DEBUG", True)
    monkeypatch.setenv("HF_TOKEN", f"{hub.token}\n")
    publish(hub, repository())
    echo = b'{"error": "Bearer hf_thewriterstoken is not welcome"}'
    hub.fail("GET", "/tree/", status=400, body=echo)
    with pytest.raises(GatedError, match="HTTP 400") as refusal:
        pull(REPO, SAE)
    hub.fail("GET", "/resolve/", status=503, headers={"X-Address": "http://cdn/?sig=secret"})
    pull(REPO, SAE)
    hub.fail("GET", "/resolve/", status=400, body=echo)
    with pytest.raises(GatedError, match="HTTP 400"):
        pull(REPO, SAE, out=tmp_path)

    assert any("curl" in line for line in said)
    assert any("receive_response_headers" in line for line in said)
    assert any("HTTP Request: PUT" in line for line in said)
    for text in (*said, str(refusal.value)):
        assert hub.token not in text and "sig=" not in text and "signature=" not in text


def test_tries_are_limited_and_their_waits_grow_with_jitter(hub, monkeypatch, naps):
    monkeypatch.setattr(client, "WAITS", (1.0, 2.0, 4.0))
    hub.fail("GET", INFO, status=503, times=100)
    with pytest.raises(GatedError, match=r"HTTP 503.*run the same command again"):
        read(hub)
    assert len(hub.seen("GET", INFO)) == 4
    assert all(0.5 * w <= nap <= 1.5 * w for nap, w in zip(naps, (1, 2, 4), strict=True))
    assert len({nap / w for nap, w in zip(naps, (1, 2, 4), strict=True)}) == 3


def in_seconds(seconds: float) -> dict[str, str]:
    return {"Retry-After": f"{seconds:.0f}"}


def at_a_date(seconds: float) -> dict[str, str]:
    date = datetime.now(timezone.utc) + timedelta(seconds=seconds)
    return {"Retry-After": format_datetime(date, usegmt=True)}


def by_a_rate_limit(seconds: float) -> dict[str, str]:
    return {"RateLimit": f'"api";r=0;t={seconds:.0f}'}


WAYS_TO_ASK = [in_seconds, at_a_date, by_a_rate_limit]


@pytest.mark.parametrize("asked", WAYS_TO_ASK)
def test_the_wait_that_the_hub_asks_for_is_kept(hub, naps, asked):
    publish(hub, repository())
    hub.fail("GET", INFO, status=429, headers=asked(30))
    read(hub)
    assert len(naps) == 1 and 20 < naps[0] <= 31


@pytest.mark.parametrize("asked", WAYS_TO_ASK)
def test_a_wait_too_long_is_told_and_not_waited_for(hub, naps, asked):
    hub.fail("GET", INFO, status=429, headers=asked(3600))
    with pytest.raises(GatedError, match=r"run the same command again in (59|60) min\.$"):
        read(hub)
    assert not naps


def test_calls_that_the_client_itself_repeats_do_not_sleep_for_hours(hub, naps):
    sha = publish(hub, repository())
    hub.fail("GET", "/tree/", status=429, headers={"Retry-After": "36000"})
    with pytest.raises(GatedError, match="again in 10 hours"):
        Repository(client.connect(), REPO).files(sha)
    assert not naps


@pytest.mark.parametrize("asked", ["soon", "-5", "9" * 400, "Wed, 99 Foo 2026", "\x00"])
def test_an_unreadable_wait_is_no_wait_or_a_long_one(asked):
    answer = httpx2.Response(503, headers={"Retry-After": asked.encode()})
    assert failures.wait_asked_by(answer) in (None, failures.FOR_EVER)


@pytest.mark.parametrize(
    ("endpoint", "setting", "off"),
    [
        ("https://huggingface.co", None, True),
        ("https://huggingface.co", "1", True),
        ("https://huggingface.co", "0", False),
        ("http://127.0.0.1:8000", "0", True),
    ],
)
def test_xet_is_for_those_who_ask_for_it_on_a_hub_that_has_it(monkeypatch, endpoint, setting, off):
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", None)
    if setting is not None:
        monkeypatch.setenv("HF_HUB_DISABLE_XET", setting)
    client.connect("hf_token", anonymous_ok=True)
    assert constants.HF_HUB_DISABLE_XET is None, "reading is none of Xet's business"
    client.connect("hf_token")
    assert constants.HF_HUB_DISABLE_XET is off


def test_a_proxy_is_asked_for_other_hosts_only(hub, monkeypatch, new_session):
    monkeypatch.delenv("NO_PROXY")
    before = dict(os.environ)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.getsockname()[1]}")
        read(hub)
        asked: list[bytes] = []

        def answer() -> None:
            connection, _ = proxy.accept()
            with connection:
                asked.append(connection.recv(1000))
                connection.sendall(b"HTTP/1.1 204 Yes\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert get_session().get("http://hub.invalid/").status_code == 204
        thread.join()
    assert asked[0].startswith(b"GET http://hub.invalid/ ")
    assert os.environ.keys() - before.keys() <= {"HTTP_PROXY", "http_proxy", "ALL_PROXY"}


def test_a_client_that_the_user_made_is_kept_and_gets_time_limits(hub, monkeypatch):
    made: list[httpx2.Client] = []

    def factory() -> httpx2.Client:
        made.append(httpx2.Client(headers={"X-Mine": "yes"}))
        return made[-1]

    publish(hub, repository())
    ours = _http._GLOBAL_CLIENT_FACTORY
    client._set_up.cache_clear()
    set_factory(factory)
    read(hub)
    set_factory(ours)
    assert made and hub.requests[-1].headers["X-Mine"] == "yes"

    monkeypatch.setattr(client, "SILENCE_SECONDS", 7.0)
    request = httpx2.Request("GET", "http://x/", extensions={"timeout": {"connect": 3.0}})
    client._limit_silence(request)
    assert request.extensions["timeout"] == {"read": 7.0, "write": 7.0, "pool": 7.0, "connect": 3.0}


@pytest.mark.parametrize("address", ["localhost:8000", "http://", "http://x:y", "huggingface.co"])
def test_an_address_of_no_hub_is_refused(monkeypatch, address):
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(GatedError, match=r"HF_ENDPOINT is .*; unset it"):
        client.connect("hf_token")


def test_a_slash_at_the_end_of_the_address_does_no_harm(hub, monkeypatch):
    publish(hub, repository())
    monkeypatch.setenv("HF_ENDPOINT", f"{hub.url}/ ")
    assert Repository(client.connect(), REPO).info().id == REPO


HIDDEN = {"X-Error-Code": "RepoNotFound"}
GATED = {"X-Error-Code": "GatedRepo"}
TROUBLE = [
    ({"status": 401}, "does not know your token.*hf auth login"),
    ({"status": 401, "headers": HIDDEN}, "no repository alice/saes.*hf auth whoami"),
    ({"status": 403, "headers": GATED}, "accept them at http.*/alice/saes and run"),
    ({"status": 403}, "Your token may not read alice/saes.*hf auth login"),
    ({"status": 400, "body": b'{"error": "two\\nlines"}'}, r"HTTP 400: two lines\); mend"),
    ({"status": 500, "body": b"<html>\nOops\n</html>"}, "HTTP 500.*again in a few minutes"),
    ({"status": 200, "body": b"<html>"}, "could not be reached to read alice/saes .*Decode"),
    ({"status": 200, "body": b"[]"}, "is not what a Hub does .*check HF_ENDPOINT"),
    ({"status": 200, "body": b"{}"}, "is not what a Hub does .*check HF_ENDPOINT"),
    ({"status": 200, "body": b'{"id": "x"}'}, "does not say which commit"),
    ({"status": 200, "body": b'{"id": "x", "sha": "../../x"}'}, "does not say which commit"),
    ({}, "could not be reached to read alice/saes"),
]


@pytest.mark.parametrize(("trouble", "says"), TROUBLE)
def test_trouble_is_one_sentence_with_the_next_step(hub, trouble, says):
    hub.fail("GET", INFO, times=100, **trouble)
    with pytest.raises(GatedError, match=says) as refusal:
        Repository(client.connect(anonymous_ok=True), REPO).head()
    assert "\n" not in str(refusal.value) and str(refusal.value).endswith(".")


def test_offline_is_one_sentence_and_no_request(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(GatedError, match="offline; unset HF_HUB_OFFLINE"):
        read(hub)
    assert not hub.requests
