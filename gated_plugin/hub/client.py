"""How this package talks to the Hub: huggingface_hub, with time limits, retries and plain errors."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import gated_plugin
from gated_plugin.errors import GatedError
from gated_plugin.hub.failures import (
    LONGEST_WAIT,
    LOOPBACK,
    TRANSIENT,
    endpoint,
    explained,
    failures,
    is_of_this_computer,
    is_transient,
    status_of,
    wait_asked,
    wait_asked_by,
)
from gated_plugin.hub.redaction import hide, redacted

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi

__all__ = [
    "CONNECT_SECONDS",
    "LOG_IN",
    "SILENCE_SECONDS",
    "WAITS",
    "Patience",
    "ask",
    "ask_once",
    "connect",
    "explained",
    "failures",
    "is_transient",
    "status_of",
]

Answer = TypeVar("Answer")

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 120.0
"""The longest silence within a request. The client itself waits for ever."""

WAITS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Seconds, on average, before each further try of a call that failed for a moment."""

LOG_IN = "run `hf auth login` or set HF_TOKEN, with a token that may write"


def connect(token: str | None = None, *, anonymous_ok: bool = False) -> HfApi:
    """The Hub's client, for the endpoint and the token that huggingface_hub itself would take.

    Args:
        token: one to take in place of that.
        anonymous_ok: whether no token is needed, which is so for reading what is public.

    Raises:
        GatedError: nobody is logged in, or token or endpoint cannot be one.
    """
    from huggingface_hub import HfApi

    address = _checked_endpoint()
    _set_up()
    if not anonymous_ok:
        _choose_upload_protocol(address)
    found = _token(token, anonymous_ok)
    if found is not None:
        hide(found)
    elif not anonymous_ok:
        raise GatedError(f"You are not logged in to the Hub; {LOG_IN}.")
    return HfApi(
        endpoint=address,
        token=found or False,
        library_name="gated-plugin",
        library_version=gated_plugin.__version__,
    )


class Patience:
    """How long to wait after each failure of a call, and when to give up."""

    def __init__(self) -> None:
        self._waits = iter(WAITS)

    def wait_after(self, failure: BaseException) -> float | None:
        """Seconds to wait before the next try; None when there shall be none."""
        wait = next(self._waits, None) if is_transient(failure) else None
        asked = wait_asked(failure) or 0.0
        if wait is None or asked > LONGEST_WAIT:
            return None
        # At random, so that many clients that failed at once do not come back at once.
        return asked + wait * random.uniform(0.5, 1.5)


def ask(
    action: str,
    repo_id: str,
    call: Callable[[], Answer],
    final: tuple[type[BaseException], ...] = (),
) -> Answer:
    """What `call` returns, tried again when the Hub fails for a moment.

    Args:
        action: what the call does to the repository, for the message: "upload to".
        call: one that may be sent twice.
        final: failures after which it is not.

    Raises:
        GatedError: it failed for good.
    """
    patience = Patience()
    while True:
        try:
            return call()
        except failures() as failure:
            wait = None if isinstance(failure, final) else patience.wait_after(failure)
            if wait is None:
                raise explained(failure, action, repo_id) from redacted(failure)
        time.sleep(wait)


def ask_once(action: str, repo_id: str, call: Callable[[], Answer]) -> Answer:
    """As `ask`, for calls that huggingface_hub tries again by itself, such as uploads: all but what
    it cannot read, for an answer that was cut is no failure to it."""
    import httpx2

    return ask(action, repo_id, call, final=(httpx2.HTTPError, OSError, RuntimeError))


def _token(given: str | None, anonymous_ok: bool) -> str | None:
    """The token without the white space that comes with copying it; None where there is none."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import get_token_to_send

    found = given or (get_token_to_send(None) if anonymous_ok else get_token())
    token = "".join((found or "").split())
    if not token.isascii() or not token.isprintable():
        raise GatedError(
            "Your Hub token holds characters that no token has; copy it once more, and run "
            "`hf auth login` or set HF_TOKEN."
        )
    return token or None


def _checked_endpoint() -> str:
    address = endpoint()
    try:
        parts = urlsplit(address)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise GatedError(
            f"HF_ENDPOINT is {address!r}, which is no address of a Hub; unset it, or set it to "
            "one such as https://huggingface.co."
        )
    return address


def _choose_upload_protocol(address: str) -> None:
    """Plain LFS, which needs 39 MiB where Xet took 470, unless HF_HUB_DISABLE_XET=0 asks for Xet.

    The client takes Xet wherever hf_xet is installed, but a hub on this computer has LFS only.
    """
    from huggingface_hub import constants

    asked_for = os.environ.get("HF_HUB_DISABLE_XET") == "0"
    constants.HF_HUB_DISABLE_XET = not asked_for or is_of_this_computer()


@cache
def _set_up() -> None:
    """Once in a process, for the factory replaces the client that everybody shares."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    theirs = _http._GLOBAL_CLIENT_FACTORY

    def factory() -> httpx2.Client:
        client = _default_client() if theirs is _http.default_client_factory else theirs()
        hooks = client.event_hooks
        client.event_hooks = {
            "request": [*hooks["request"], _limit_silence],
            "response": [*hooks["response"], _refuse_long_waits],
        }
        return client

    set_client_factory(factory)


def _default_client() -> httpx2.Client:
    """As huggingface_hub makes its own, but no proxy stands before this computer itself."""
    import httpx2
    from huggingface_hub.utils import _http

    hosts = (f"[{host}]" if ":" in host else host for host in LOOPBACK)
    return httpx2.Client(
        event_hooks={"request": [_http.hf_request_event_hook]},
        follow_redirects=True,
        timeout=None,
        mounts=dict.fromkeys(f"all://{host}" for host in hosts),
    )


def _limit_silence(request: httpx2.Request) -> None:
    """For each request, because many calls ask for no time limit whatever the client's own is."""
    asked = request.extensions.get("timeout", {})
    limits = dict.fromkeys(("read", "write", "pool"), SILENCE_SECONDS)
    limits |= {"connect": CONNECT_SECONDS}
    limits |= {part: seconds for part, seconds in asked.items() if seconds is not None}
    request.extensions["timeout"] = limits


def _refuse_long_waits(response: httpx2.Response) -> None:
    """huggingface_hub would sleep for as long as the Hub says, in silence, be it an hour."""
    from huggingface_hub.utils import hf_raise_for_status

    if response.status_code in TRANSIENT and (wait_asked_by(response) or 0.0) > LONGEST_WAIT:
        response.read()
        hf_raise_for_status(response)
