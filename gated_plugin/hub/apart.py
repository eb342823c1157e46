"""A function in a process of its own, whose memory is gone afterwards.

Whoever moves bytes stays small so: torch and SAELens alone take half a gigabyte, and a dictionary
several.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from gated_plugin.errors import GatedError


def apart(function: Callable[..., Any], report: Callable[[str], None], *arguments: Any) -> Any:
    """What `function(report, *arguments)` returns in a process of its own.

    Args:
        function: one of a module's top; what goes in and comes out is JSON.
        report: takes the lines that the function reports, when it does.

    Raises:
        GatedError: the function's own, or the process was killed.
    """
    name = f"{function.__module__}:{function.__qualname__}"
    with subprocess.Popen(
        [sys.executable, "-m", __name__, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        try:
            # An argument of a command may have 128 kB; the index of a large repository has more.
            json.dump(arguments, process.stdin)
            process.stdin.close()
            for line in process.stdout:
                kind, value = json.loads(line)
                if kind == "report":
                    report(value)
                elif kind == "error":
                    raise GatedError(value)
                else:
                    return value
        except BaseException:
            process.kill()
            raise
        said = process.stderr.read().strip().splitlines()
    cause = said[-1] if said else f"signal {-process.returncode}, perhaps for want of memory"
    raise GatedError(
        f"The process that does {function.__name__} ended early ({cause}); free some memory and "
        "run the same command again, with --debug before it to see more."
    )


def main(name: str) -> None:
    """Run a function for `apart`: an answer is one line of JSON, whatever libraries print."""
    answers, sys.stdout = sys.stdout, sys.stderr

    def answer(kind: str, value: Any) -> None:
        print(json.dumps([kind, value]), file=answers, flush=True)

    module, _, function = name.partition(":")
    try:
        run = getattr(import_module(module), function)
        answer("result", run(lambda line: answer("report", line), *json.load(sys.stdin)))
    except GatedError as error:
        answer("error", str(error))


if __name__ == "__main__":
    main(sys.argv[1])
