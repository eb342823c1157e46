"""What goes wrong between this computer and the Hub: which of it passes, and what to do about it."""

from __future__ import annotations

import os
import textwrap
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from json import JSONDecodeError
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gated_plugin.errors import GatedError
from gated_plugin.hub.redaction import hidden

if TYPE_CHECKING:
    import httpx2

LONGEST_WAIT = 60.0
"""Seconds that the Hub may ask us to wait before the next try; when it asks for more, we give up
and say so."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")

FOR_EVER = 1e9
TRANSIENT = (408, 429, 500, 502, 503, 504)
LONGEST_REASON = 200


def failures() -> tuple[type[Exception], ...]:
    """What a call of huggingface_hub raises: its own errors are OSErrors and HTTPErrors, an answer
    that it cannot read is a ValueError or a failed look into it, and a failed upload comes wrapped
    in a RuntimeError."""
    import httpx2

    return (httpx2.HTTPError, OSError, ValueError, RuntimeError, *_MISREAD)


def unreachable() -> tuple[type[Exception], ...]:
    """The failures of a computer without a network."""
    import httpx2

    return (httpx2.ConnectError, httpx2.ConnectTimeout)


def is_transient(failure: BaseException) -> bool:
    """Whether the same call may succeed in a moment."""
    import httpx2
    from huggingface_hub.errors import OfflineModeIsEnabled

    root, status = _root(failure), status_of(failure)
    if status is not None:
        return status in TRANSIENT
    if isinstance(
        root, (OfflineModeIsEnabled, httpx2.UnsupportedProtocol, httpx2.LocalProtocolError)
    ):
        return False
    if is_of_this_computer() and isinstance(root, unreachable()):
        return False
    # A proxy in front of the Hub answers in HTML, which the client takes for JSON. hf_xet raises
    # Python's own ConnectionError.
    return isinstance(root, (httpx2.TransportError, ConnectionError, JSONDecodeError))


def status_of(failure: BaseException) -> int | None:
    """The HTTP status that the Hub answered with; None when there was no answer."""
    return getattr(getattr(_root(failure), "response", None), "status_code", None)


def wait_asked(failure: BaseException) -> float | None:
    """Seconds after which the Hub wants to be asked again; None when it did not say."""
    response = getattr(_root(failure), "response", None)
    return None if response is None else wait_asked_by(response)


def wait_asked_by(response: httpx2.Response) -> float | None:
    """As `wait_asked`, of an answer: by `Retry-After`, or by the Hub's own `RateLimit`."""
    from huggingface_hub.utils import parse_ratelimit_headers

    asked = response.headers.get("Retry-After", "").strip()
    if asked.isdecimal():
        return min(float(asked), FOR_EVER)
    limit = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    try:
        when = parsedate_to_datetime(asked)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=timezone.utc)
    return max((when - datetime.now(timezone.utc)).total_seconds(), 0.0)


def explained(failure: BaseException, action: str, repo_id: str) -> GatedError:
    """The sentence for a person, with what to do next, and without the token.

    Args:
        action: what was to be done with the repository: "upload to".
    """
    from huggingface_hub.errors import OfflineModeIsEnabled

    root, status = _root(failure), status_of(failure)
    if status is not None:
        return GatedError(_status_sentence(root, status, action, repo_id))
    if isinstance(root, OfflineModeIsEnabled):
        return GatedError(f"Cannot {action} {repo_id} offline; unset HF_HUB_OFFLINE first.")
    reason = ": ".join(filter(None, (type(root).__name__, _reason(root))))
    if is_of_this_computer() and isinstance(root, unreachable()):
        return GatedError(
            f"No hub answers at {endpoint()}; start it with `gated-hub serve`, or unset HF_ENDPOINT "
            "for the public one."
        )
    if is_transient(root):
        return GatedError(
            f"The Hub at {endpoint()} could not be reached to {action} {repo_id} ({reason}); "
            "check the network and run the same command again."
        )
    if isinstance(root, _MISREAD):
        return GatedError(
            f"What {endpoint()} answers is not what a Hub does ({reason}), so we could not "
            f"{action} {repo_id}; check HF_ENDPOINT and run the same command again."
        )
    return GatedError(
        f"Could not {action} {repo_id} ({_reason(root) or type(root).__name__}); mend that and run "
        "the same command again."
    )


def endpoint() -> str:
    """The address of the Hub that huggingface_hub itself would ask, without a slash at its end."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT", "").strip() or constants.ENDPOINT).rstrip("/")


def _status_sentence(failure: BaseException, status: int, action: str, repo_id: str) -> str:
    wait = wait_asked(failure) or 0.0
    if status in TRANSIENT and wait > LONGEST_WAIT:
        return (
            f"The Hub does not let us {action} {repo_id} for now (HTTP {status}); run the same "
            f"command again in {_time(wait)}."
        )
    reason = _reason(failure) or "no reason given"
    if status in TRANSIENT:
        return (
            f"The Hub failed to {action} {repo_id} (HTTP {status}: {reason}); run the same command "
            "again in a few minutes."
        )
    return _refusal(failure, status, action, repo_id) or (
        f"The Hub refused to {action} {repo_id} (HTTP {status}: {reason}); mend that and run the "
        "same command again."
    )


def _refusal(failure: BaseException, status: int, action: str, repo_id: str) -> str | None:
    """The sentence for those refusals of which we know what to do."""
    from huggingface_hub import errors

    if isinstance(failure, errors.GatedRepoError):
        return (
            f"{repo_id} is open to those who accept its terms; accept them at "
            f"{endpoint()}/{repo_id} and run the same command again."
        )
    if isinstance(failure, errors.RepositoryNotFoundError):
        return (
            f"The Hub has no repository {repo_id} that you may see; check its name and "
            "`hf auth whoami`."
        )
    if isinstance(failure, errors.RevisionNotFoundError):
        return (
            f"{repo_id} has no such branch, tag or commit; name another one with --revision, or "
            "leave it out for the newest."
        )
    if isinstance(failure, errors.RemoteEntryNotFoundError):
        return f"Could not {action} {repo_id}, which lacks it; run `gated-hub list {repo_id}`."
    by_status = {
        401: "The Hub does not know your token; run `hf auth login` or set HF_TOKEN, with one of "
        f"{_token_page()}.",
        403: f"Your token may not {action} {repo_id}; take one that may, of {_token_page()}, and "
        "run `hf auth login`.",
        412: f"Somebody else changed {repo_id} in the meantime, so nothing was sent; run the same "
        "command again.",
    }
    return by_status.get(status)


def _root(failure: BaseException) -> BaseException:
    """The error below the wrappers that huggingface_hub puts around it."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(failure, (RuntimeError, LocalEntryNotFoundError)) and failure.__cause__:
        failure = failure.__cause__
    return failure


def _reason(failure: BaseException) -> str:
    """What the Hub or the error itself says, on one line."""
    said = getattr(failure, "server_message", None)
    text = str(failure) if status_of(failure) is None else said or ""
    return textwrap.shorten(hidden(text), LONGEST_REASON, placeholder=" …")


def is_of_this_computer() -> bool:
    """Whether the endpoint is a local hub."""
    return urlsplit(endpoint()).hostname in LOOPBACK


def _token_page() -> str:
    if is_of_this_computer():
        return "the file `token` in the folder of the local hub"
    return f"{endpoint()}/settings/tokens"


def _time(seconds: float) -> str:
    minutes = max(round(seconds / 60), 1)
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:,.0f} hours"


_MISREAD = (LookupError, TypeError, AttributeError)
"""What reading an answer of another shape raises in huggingface_hub."""
