"""The one error that a person can cause and mend."""

from __future__ import annotations


class GatedError(Exception):
    """What went wrong and what to type next, in one sentence.

    The command line prints it without a traceback (`--debug` adds one) and exits with 1.
    """


class Interrupted(GatedError):
    """Ctrl-C or a request to terminate, at a moment from which the same command goes on."""

    exit_code = 130
