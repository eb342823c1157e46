"""What a local hub says and is told: a refusal, JSON, and the members of a JSON object."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

LARGEST = 64_000_000
"""Bytes of JSON that are read: a body, or one line of a commit."""
T = TypeVar("T")


class Refusal(HTTPException):
    """The hub says no: an HTTP status, a sentence, and the code by which the client tells why."""

    def __init__(
        self,
        status_code: int,
        detail: str,
        code: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        headers = {"X-Error-Message": re.sub("[^ -~]+", " ", detail), **(headers or {})}
        if code:
            headers["X-Error-Code"] = code
        super().__init__(status_code, detail, headers)


class Json(JSONResponse):
    """An answer that holds text of any sort: what is no valid Unicode is escaped."""

    def render(self, content: object) -> bytes:
        return json.dumps(content).encode()


def check_size(size: int) -> None:
    """Refuse with 413 what has more than `LARGEST` bytes."""
    if size > LARGEST:
        raise Refusal(413, f"The request holds more than {LARGEST} bytes of JSON.")


def json_object(text: bytes) -> dict[str, Any]:
    """`text` as a JSON object.

    Raises:
        Refusal: 400 when it is something else.
    """
    try:
        value = json.loads(text or b"{}")
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"The request is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise Refusal(400, "The request is not a JSON object.")
    return value


def member(value: object, name: str, kind: type[T]) -> T:
    """`value[name]`, where `value` must be a JSON object and this member of `kind`.

    Raises:
        Refusal: 400 when it is not.
    """
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, kind):
        raise Refusal(400, f"The request needs `{name}` of type {kind.__name__}.")
    return found
