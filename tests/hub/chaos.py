"""Faults at the requests of a push and of a pull, and what they may not do."""

from __future__ import annotations

import json
import re
import shutil
import signal
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from gated_hub_process import Ended
from kinds import KINDS, Case
from scenes import Scene
from surroundings import WRITER
from world import Tree, World, world

FOR_EVER = 1000
KILLED = -9
NEXT_STEP = re.compile(
    r"[;,] (and |or |to [^,;]+, )?"
    r"(accept|check|choose|delete|free|make|mend|name|pull|push|run|set|try|unset|wait)\b"
)
LONGEST_CASE = 60.0
"""Seconds."""


class Outcome(NamedTuple):
    """What became of a case."""

    case: Case
    ended: Ended | None
    wrong: list[str]
    """What should not have happened."""

    @property
    def counted(self) -> Iterator[str]:
        """As what it counts."""
        yield "cases"
        if self.ended is not None:
            yield {0: "succeeded", KILLED: "killed"}.get(self.ended.code or 0, "refused")
        if self.wrong:
            yield "wrong"

    def __str__(self) -> str:
        said = self.ended.stderr if self.ended else ""
        return "\n  ".join([str(self.case), *self.wrong, said.strip()])


def plan(kind: str, scenes: Sequence[Scene], seed: int, some: int) -> list[Case]:
    """The cases of a kind in an order of chance: `some`, or those at every request."""
    random = Random(f"{seed} {kind}")
    cases = []
    for scene in scenes:
        for step in scene.steps:
            for times in (1, FOR_EVER):
                how = KINDS[kind].how(step, random)
                if how is not None:
                    own = Random(random.random())
                    cases.append(Case(kind, scene, step, {**how, "times": times}, own))
    random.shuffle(cases)
    return cases if KINDS[kind].everywhere else cases[:some]


def endure(case: Case, folder: Path) -> Outcome:
    """Let the case happen in a copy of its scene in `folder`, then give the command once more."""
    kind = KINDS[case.kind]
    shutil.copytree(case.scene.start, folder, symlinks=True)
    wrong: list[str] = []
    ended = None
    with world(folder, apart=kind.apart, silence=kind.silence) as spoilt:
        runs = spoilt.run_files()
        signal.signal(signal.SIGALRM, _hang)
        signal.setitimer(signal.ITIMER_REAL, LONGEST_CASE)
        try:
            ended = kind.attack(spoilt, case)
            wrong += _wrong(case, spoilt, ended)
            spoilt.proxy.heal()
            again = spoilt.do(case.scene.command)
            wrong += _wrong_again(case, spoilt, again)
        except Exception:
            wrong.append(traceback.format_exc())
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        if spoilt.run_files() != runs:
            wrong.append("the run was changed")
    shutil.rmtree(folder)
    return Outcome(case, ended, wrong)


def _hang(*args: object) -> None:
    raise AssertionError(f"still running after {LONGEST_CASE} s")


def _wrong(case: Case, spoilt: World, ended: Ended) -> Iterator[str]:
    scene = case.scene
    result, expected = spoilt.result(scene.command), _expected(case)
    if WRITER in ended.stdout + ended.stderr:
        yield "the token was printed"
    if ended.code == 0:
        if result not in expected:
            yield f"claims to have succeeded: {_difference(expected[0], result)}"
        is_head = scene.command == "push" and not KINDS[case.kind].shared
        if is_head and json.loads(ended.stdout)["revision"] != spoilt.head():
            yield "it names another commit"
        return
    if case.how["times"] == 1 and KINDS[case.kind].passes:
        yield "it is not tried again"
    if ended.code != KILLED:
        yield from _wrong_sentence(ended)
    states = [scene.other if KINDS[case.kind].shared else scene.before, *expected]
    if result not in states if scene.command == "push" else _is_mixed(result, states):
        yield f"neither the old nor the new: {_difference(expected[0], result)}"


def _wrong_again(case: Case, spoilt: World, again: Ended) -> Iterator[str]:
    """The same command once more, with no fault."""
    expected, result = _expected(case)[0], spoilt.result(case.scene.command)
    if again.code:
        yield f"once more: {again.stderr}"
    elif result != expected:
        yield f"once more: {_difference(expected, result)}"


def _expected(case: Case) -> list[Tree]:
    """What there may be after a success; the first of them after another one."""
    scene = case.scene
    if not KINDS[case.kind].shared:
        return [scene.after]
    # A pull takes what was there when it began.
    return [scene.both] if scene.command == "push" else [scene.both, scene.after]


def _wrong_sentence(ended: Ended) -> Iterator[str]:
    if ended.code != 1:
        yield f"exit code {ended.code}"
    if ended.stdout:
        yield f"on standard output: {ended.stdout}"
    if not re.fullmatch(r"Error: [^\n]*\.\n", ended.stderr):
        yield "not one sentence"
    if not NEXT_STEP.search(ended.stderr):
        yield "no next step"


def _is_mixed(pulled: Tree, states: Sequence[Tree]) -> bool:
    """Whether a file is of no state, or an SAE that can be loaded is not all of one.

    A pull that broke off may leave some files out, but then the SAE's cfg.json too.
    """
    known = {item for state in states for item in state.items()}
    complete = [path.removesuffix("cfg.json") for path in pulled if path.endswith("/cfg.json")]
    return not pulled.items() <= known or any(
        _below(folder, pulled) not in [_below(folder, state) for state in states]
        for folder in complete
    )


def _below(folder: str, tree: Tree) -> Tree:
    return {path: oid for path, oid in tree.items() if path.startswith(folder)}


def _difference(expected: Tree, found: Tree) -> str:
    paths = {path for path, _ in expected.items() ^ found.items()}
    return ", ".join(sorted(paths))
