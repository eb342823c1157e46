"""A function in a process of its own, whose memory is gone afterwards.

Whoever moves bytes stays small so: torch and SAELens alone take half a gigabyte, and a dictionary
several.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from tempfile import TemporaryFile
from typing import Any

from gated_plugin.errors import GatedError

# `-m` would put the user's own folder first on the path, and a datasets.py in it before datasets.
PROGRAM = """
import sys
sys.path[:] = [entry for entry in sys.path if entry]
from gated_plugin.hub.apart import main
main(sys.argv[1])
"""
LOOK_FOR_PARENT_SECONDS = 0.5


def apart(function: Callable[..., Any], report: Callable[[str], None], *arguments: Any) -> Any:
    """What `function(report, *arguments)` returns in a process of its own.

    Args:
        function: one of a module's top; what goes in and comes out is JSON.
        report: takes the lines that the function reports, when it does.

    Raises:
        GatedError: the function's own, or the process was killed.
    """
    name = f"{function.__module__}:{function.__qualname__}"
    with TemporaryFile() as said, _process(name, said) as process:
        assert process.stdin and process.stdout
        # An argument of a command may have 128 kB; the index of a large repository has more.
        with suppress(BrokenPipeError):
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
        process.wait()
        said.seek(0)
        text = said.read().decode(errors="replace")
    lines = text.strip().splitlines()
    cause = lines[-1] if lines else f"signal {-process.returncode}, perhaps for want of memory"
    raise GatedError(
        f"The process that does {function.__name__} ended early ({cause}); run the same command "
        "again, and with `gated-hub --debug` to see more."
    ) from RuntimeError(text)


@contextmanager
def _process(name: str, said: Any) -> Iterator[subprocess.Popen[str]]:
    """The process, in a group with those that it starts, which ends with the block."""
    command = [sys.executable, "-c", PROGRAM, name]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=said,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                assert pipe is not None
                pipe.close()


def main(name: str) -> None:
    """Run a function for `apart`: an answer is one line of JSON, whatever libraries print."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    def answer(kind: str, value: Any) -> None:
        print(json.dumps([kind, value]), file=answers, flush=True)

    module, _, function = name.partition(":")
    try:
        run = getattr(import_module(module), function)
        answer("result", run(lambda line: answer("report", line), *json.load(sys.stdin)))
    except GatedError as error:
        answer("error", str(error))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        answer("error", f"{error.strerror or error}{where}; mend that and run the command again.")


def _end_with(parent: int) -> None:
    """A process that was killed cannot end those that it started: they must look for it."""
    while os.getppid() == parent:
        time.sleep(LOOK_FOR_PARENT_SECONDS)
    os.killpg(0, signal.SIGKILL)
