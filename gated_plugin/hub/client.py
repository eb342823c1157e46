"""How this package talks to the Hub: huggingface_hub, with time limits, retries and plain errors."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable
from functools import cache
from json import JSONDecodeError
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from gated_plugin.errors import GatedError

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi

Answer = TypeVar("Answer")

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 120.0
"""The longest silence within a request. The client itself waits for ever."""

WAITS = (1.0, 2.0, 4.0)
"""Seconds before each further try of a call that failed for a moment."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")
TRANSIENT = (408, 429, 500, 502, 503, 504)
LOG_IN = "run `hf auth login` or set HF_TOKEN, with a token that may write"


def connect() -> HfApi:
    """The Hub's client, for the endpoint and the token that huggingface_hub itself would take.

    Raises:
        GatedError: nobody is logged in.
    """
    from huggingface_hub import HfApi, constants, get_token

    _set_up()
    if urlsplit(_endpoint()).hostname in LOOPBACK:
        # The client takes Xet for given wherever hf_xet is installed; a local hub has LFS only.
        constants.HF_HUB_DISABLE_XET = True
    token = get_token()
    if token is None:
        raise GatedError(f"You are not logged in to the Hub; {LOG_IN}.")
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)


def ask(action: str, repo_id: str, call: Callable[[], Answer]) -> Answer:
    """What `call` returns, tried again when the Hub fails for a moment.

    Args:
        action: what the call does to the repository, for the message: "upload to".
        call: one that may be sent twice.

    Raises:
        GatedError: it failed for good.
    """
    waits = iter(WAITS)
    while True:
        try:
            return call()
        except failures() as failure:
            wait = next(waits, None)
            if wait is None or not is_transient(failure):
                raise explained(failure, action, repo_id) from failure
        time.sleep(wait)


def ask_once(action: str, repo_id: str, call: Callable[[], Answer]) -> Answer:
    """As `ask`, for calls that huggingface_hub tries again by itself: uploads and file trees."""
    try:
        return call()
    except failures() as failure:
        raise explained(failure, action, repo_id) from failure


def failures() -> tuple[type[Exception], ...]:
    """What a call of huggingface_hub raises: its own errors are OSErrors and HTTPErrors, an answer
    that it cannot read is a ValueError, and a failed upload comes wrapped in a RuntimeError."""
    import httpx2

    return (httpx2.HTTPError, OSError, ValueError, RuntimeError)


def is_transient(failure: BaseException) -> bool:
    """Whether the same call may succeed in a moment."""
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled

    root, status = _root(failure), status_of(failure)
    if status is not None:
        return status in TRANSIENT
    if isinstance(root, OfflineModeIsEnabled):
        return False
    # A proxy in front of the Hub answers in HTML, which the client takes for JSON. hf_xet raises
    # Python's own ConnectionError.
    return isinstance(root, (httpx2.TransportError, ConnectionError, JSONDecodeError))


def status_of(failure: BaseException) -> int | None:
    """The HTTP status that the Hub answered with; None when there was no answer."""
    return getattr(getattr(_root(failure), "response", None), "status_code", None)


def explained(failure: BaseException, action: str, repo_id: str) -> GatedError:
    """The sentence for a person, with what to do next, and without the token."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    root = _root(failure)
    status = status_of(failure)
    if status is not None:
        return GatedError(_status_sentence(root, status, action, repo_id))
    if isinstance(root, OfflineModeIsEnabled):
        return GatedError("The Hub is switched off here; unset HF_HUB_OFFLINE to reach it.")
    if is_transient(root):
        return GatedError(
            f"The Hub at {_endpoint()} could not be reached to {action} {repo_id} "
            f"({type(root).__name__}); check the network and run the same command again."
        )
    message = " ".join(str(root).split())
    return GatedError(f"Could not {action} {repo_id}: {_without_token(message)}")


def _status_sentence(failure: BaseException, status: int, action: str, repo_id: str) -> str:
    from huggingface_hub.errors import RepositoryNotFoundError

    if isinstance(failure, RepositoryNotFoundError):
        return (
            f"The Hub has no repository {repo_id} that you may see; check its name and "
            "`hf auth whoami`."
        )
    if status == 401:
        return f"The Hub does not know your token; {LOG_IN}."
    if status == 403:
        return (
            f"Your token may not {action} {repo_id}; make one with the right to write at "
            f"{_endpoint()}/settings/tokens and run `hf auth login`."
        )
    if status == 412:
        return (
            f"Somebody else changed {repo_id} in the meantime, so nothing was sent; "
            "run the same command again."
        )
    message = _without_token(getattr(failure, "server_message", None) or "no reason given")
    advice = "try again in a few minutes" if status in TRANSIENT else "mend that and try again"
    return f"The Hub failed to {action} {repo_id} (HTTP {status}: {message}); {advice}."


def _root(failure: BaseException) -> BaseException:
    """The error below the wrappers that huggingface_hub puts around it."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(failure, (RuntimeError, LocalEntryNotFoundError)) and failure.__cause__:
        failure = failure.__cause__
    return failure


def _endpoint() -> str:
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", constants.ENDPOINT)


def _without_token(text: str) -> str:
    from huggingface_hub import get_token

    token = get_token()
    return text.replace(token, "***") if token else text


@cache
def _set_up() -> None:
    """Once in a process, for the factory replaces the client that everybody shares."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils._http import default_client_factory

    def factory() -> httpx2.Client:
        client = default_client_factory()
        hooks = client.event_hooks
        client.event_hooks = {**hooks, "request": [*hooks["request"], _limit_waiting]}
        return client

    set_client_factory(factory)
    logging.getLogger("huggingface_hub.utils._http").addFilter(_without_signature)


def _limit_waiting(request: httpx2.Request) -> None:
    """For each request, because many calls ask for no time limit whatever the client's own is."""
    asked = request.extensions.get("timeout", {})
    limits = dict.fromkeys(("read", "write", "pool"), SILENCE_SECONDS)
    limits |= {"connect": CONNECT_SECONDS}
    limits |= {part: seconds for part, seconds in asked.items() if seconds is not None}
    request.extensions["timeout"] = limits


def _without_signature(record: logging.LogRecord) -> bool:
    """Upload addresses hold their signature in the query, and each retry logs its address."""
    record.msg, record.args = re.sub(r"\?\S+", "?…", record.getMessage()), ()
    return True
