"""How the engine may choose: settings for a `with` block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

from gated_plugin.errors import GatedError

IMPLEMENTATIONS = ("auto", "dense", "numba", "triton", "torch", "reference")
SCREENING = ("auto", "always", "never", "unchecked")


def check_impl(impl: str) -> None:
    """Raises `GatedError` for an implementation that does not exist."""
    if impl not in IMPLEMENTATIONS:
        raise GatedError(f"Unknown impl {impl!r}; choose one of {', '.join(IMPLEMENTATIONS)}.")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the engine may choose; see `use`."""

    impl: str = "auto"
    """One of `IMPLEMENTATIONS`, for every operation that has it."""

    screening: str = "auto"
    """Whether candidates are found by a bfloat16 product: "auto" where it pays, "always", "never".
    The result is the same. "unchecked", on a GPU, is not exact: what the bfloat16 product says is
    closed counts as closed, so that gates close to their threshold are missed."""

    deterministic: bool = False
    """Let nothing that was timed take part in a choice."""

    def __post_init__(self) -> None:
        check_impl(self.impl)
        if self.screening not in SCREENING:
            raise GatedError(
                f"Unknown screening {self.screening!r}; choose one of {', '.join(SCREENING)}."
            )


_options: ContextVar[Options | None] = ContextVar("gated_plugin_engine", default=None)


def options() -> Options:
    """Those of the innermost `use` around the caller."""
    return _options.get() or Options()


@contextmanager
def use(**changes: str | bool) -> Iterator[None]:
    """Within the `with` block, choose as told: `use(impl="dense")`, `use(screening="never")`.

    Raises:
        GatedError: an option has a value that does not exist.
    """
    token = _options.set(replace(options(), **changes))  # type: ignore[arg-type] # Options checks
    try:
        yield
    finally:
        _options.reset(token)
