"""What nobody else may read in messages and logs: tokens, and the signatures of addresses."""

from __future__ import annotations

import logging
import re

LOGGERS = (
    "huggingface_hub.utils._http",
    "huggingface_hub.utils._pagination",
    "huggingface_hub.file_download",
    "huggingface_hub.hf_api",
    "huggingface_hub.lfs",
    "httpx2",
    "httpcore2.connection",
    "httpcore2.http11",
    "httpcore2.http2",
    "httpcore2.proxy",
    "httpcore2.socks",
)
"""Those that log addresses or headers. A filter does not reach the loggers below its own."""

_tokens: set[str] = set()


def hide(token: str) -> None:
    """Let `token` be readable in no message and in no log of this process from now on."""
    _tokens.add(token)
    for name in LOGGERS:
        logging.getLogger(name).addFilter(_redacted)


def hidden(text: str) -> str:
    """`text` with *** for each token, and without the queries of addresses: uploads and downloads
    of large files hold their signature there."""
    for token in _tokens:
        text = text.replace(token, "***")
    return re.sub(r"\?\S+", "?…", text)


def redacted(failure: BaseException) -> BaseException:
    """`failure`, with nothing secret in it or in what caused it: `--debug` shows them all."""
    seen: list[BaseException] = []
    link: BaseException | None = failure
    while link is not None and link not in seen:
        seen.append(link)
        link.args = tuple(hidden(each) if isinstance(each, str) else each for each in link.args)
        link = link.__cause__ or link.__context__
    return failure


def _redacted(record: logging.LogRecord) -> bool:
    record.msg, record.args = hidden(record.getMessage()), ()
    return True
