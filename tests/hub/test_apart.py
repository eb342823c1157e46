"""Functions in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gated_plugin.errors import GatedError
from gated_plugin.hub.apart import apart

Report = Callable[[str], None]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.path.dirname(__file__))


def added(report: Report, *numbers: int) -> dict:
    print("what a library says goes elsewhere")
    report(f"adding {len(numbers)}")
    return {"sum": sum(numbers), "process": os.getpid(), "torch": "torch" in sys.modules}


def refused(report: Report) -> None:
    raise GatedError("This cannot be; do that.")


def broken(report: Report) -> None:
    raise ZeroDivisionError("by nought")


def killed(report: Report) -> None:
    os.kill(os.getpid(), 9)


def noisy(report: Report) -> str:
    sys.stderr.write("a warning\n" * 100_000)
    os.write(1, b"a library in C\n")
    return "said"


def out_of_space(report: Report) -> None:
    raise OSError(28, "No space left on device", "/tmp/weights")


def children(report: Report) -> None:
    child = subprocess.Popen(["sleep", "60"])
    report(str(child.pid))
    child.wait()


def length(report: Report, text: str) -> int:
    return len(text)


def test_the_answer_and_the_reports_come_from_another_process():
    lines: list[str] = []
    answer = apart(added, lines.append, 1, 2, 3)
    assert answer["sum"] == 6
    assert answer["process"] != os.getpid()
    assert lines == ["adding 3"]


def test_arguments_may_be_longer_than_a_command_line():
    assert apart(length, print, "é" * 1_000_000) == 1_000_000


def test_an_error_for_people_comes_through_as_it_is():
    with pytest.raises(GatedError, match=r"^This cannot be; do that\.$"):
        apart(refused, print)


def test_whatever_libraries_print_the_answer_arrives():
    assert apart(noisy, print) == "said"


def test_a_full_disk_is_named():
    with pytest.raises(GatedError, match=r"^No space left on device \(/tmp/weights\)"):
        apart(out_of_space, print)


def test_modules_in_the_users_folder_do_not_stand_in_for_ours(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise ImportError('not this one')")
    (tmp_path / "gated_plugin.py").write_text("raise ImportError('not this one')")
    monkeypatch.chdir(tmp_path)
    assert apart(length, print, "abc") == 3


def test_an_interrupt_ends_what_the_process_has_started():
    started: list[int] = []

    def interrupt(pid: str) -> None:
        started.append(int(pid))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        apart(children, interrupt)
    for _ in range(200):  # a signal takes its moment
        if not is_running(started[0]):
            return
        time.sleep(0.01)
    pytest.fail("it goes on")


def is_running(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(("function", "cause"), [(broken, "by nought"), (killed, "signal 9")])
def test_a_process_that_ends_early_is_one_sentence(function, cause):
    with pytest.raises(GatedError, match=f"{function.__name__} ended early .*{cause}") as refusal:
        apart(function, print)
    assert "\n" not in str(refusal.value)
