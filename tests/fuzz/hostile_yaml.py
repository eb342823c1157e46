"""What an enemy or a careless editor does to YAML, which has more ways to go wrong than JSON."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random

from mutations import LONG, NUMBERS, WORDS

MISREAD = ["0100", "010_000", "0200", "1:30", "1:59:59", "2:00.5", "0x1F", "0b11", "1_000", "1e3"]
"""Numbers that YAML 1.1 may take for others than a person does."""
VALUES = ["", "~", "yes", "no", "on", "y", "NULL", ".nan", "-.inf", ".NaN", "0o17", "1__0", "1e-3",
    "1.0e+3", "+.5", "2020-13-45", "2020-01-01", "2001-12-14t21:59:43.10-25:00", "=", "<<", "!!int 3.5", "!!int x",
    "!!float x", "!!bool maybe", "!!null x", "!!str 1", "!!binary ####", "!!binary aGk=", "!!set {a}",
    "!!omap [a: 1]", "!!pairs [a: 1]", "!!timestamp x", "!unknown x", "! x", "!<tag:x> y", "*missing",
    "&a [*a]", "&b {x: *b}", "{<<: 1}", "{<<: [1]}", "{[a]: 1}", "{{a: 1}: 1}", "{a: 1, a: 2}", "@x",
    "`x`", "%x", "'unended", '"\\ud800"', '"\\0"', '"\\q"', '"\\u2028x\\x85"', "|", ">-", "|9", "? x",
    "- x", "[a, b", "a: b: c", "\tx", "x #y", "'a\n\n  b'", "0x" + "f" * 6000, "0b" + "1" * 9000,
    "1:" * 900 + "1", "9" * 5000, "-" * 3000, "[" * 2000, "[" * 150 + "]" * 150, "{a: " * 990,
    "- " * 2000 + "x", "x" * LONG, "[" + "1, " * 5000 + "1]", "\x00", "\x07", "\ufeff", "\u2028",
    "!!python/object/apply:os.system ['touch touched']", "!!python/name:os.system",
    "!!python/object/new:pathlib.Path ['x']", "!!python/tuple [1]"]  # fmt: skip
BOMB = "".join(
    f"bomb{n}: &bomb{n} [" + ", ".join([f"*bomb{n - 1}"] * 9 if n else ["boom"] * 9) + "]\n"
    for n in range(10)
)
MERGES = "".join(
    f"bomb{n}: &bomb{n} " + ("{<<: [" + f"*bomb{n - 1}, " * 9 + "]}" if n else "{a: 1}") + "\n"
    for n in range(10)
)
"""Nine mappings merged into one, nine times over: 9⁹ members."""


def mutated_yaml(random: Random, text: str) -> str:
    """YAML `text` with up to three changes by somebody who knows the format."""
    for _ in range(random.choice([0, 1, 1, 1, 2, 3])):
        lines = text.split("\n")
        text = "\n".join(random.choice(CHANGES)(random, lines, random.randrange(len(lines))))
    return text


def _value(random: Random) -> str:
    return random.choice(random.choices([VALUES, MISREAD, NUMBERS, WORDS], [6, 2, 2, 1])[0])


def _replace(random: Random, lines: list[str], place: int) -> list[str]:
    found = re.match(r"(\s*(?:- )?[\w.-]+:)( .*)?", lines[place])
    lines[place] = f"{found[1]} {_value(random)}" if found else f"{lines[place]} {_value(random)}"
    return lines


def _add(random: Random, lines: list[str], place: int) -> list[str]:
    indent = " " * random.choice([0, 0, 2, 3])
    name = random.choice(
        ["x", "lr", "seed", "<<", "tags", "datasets", "sae", "name", "'\\0'", "[a]"]
    )
    return [*lines[:place], f"{indent}{name}: {_value(random)}", *lines[place:]]


def _repeat(random: Random, lines: list[str], place: int) -> list[str]:
    return [*lines[: place + 1], lines[random.randrange(len(lines))], *lines[place + 1 :]]


def _delete(random: Random, lines: list[str], place: int) -> list[str]:
    return [*lines[:place], *lines[place + 1 :]]


def _indent(random: Random, lines: list[str], place: int) -> list[str]:
    lines[place] = random.choice([" ", "  ", "\t", "- "]) + lines[place]
    return lines


def _exchange(random: Random, lines: list[str], place: int) -> list[str]:
    other = random.randrange(len(lines))
    lines[place], lines[other] = lines[other], lines[place]
    return lines


def _interrupt(random: Random, lines: list[str], place: int) -> list[str]:
    mark = random.choice(["---", "...", "%YAML 3.0", "%TAG ! x", "# x", "", "?", "|", "- a", "}"])
    return [*lines[:place], mark, *lines[place:]]


def _explode(random: Random, lines: list[str], place: int) -> list[str]:
    bomb, alias = random.choice([(BOMB, "*bomb9"), (MERGES, "*bomb9"), (BOMB, "[*bomb9, *bomb8]")])
    levels = bomb.split("\n")
    where = random.choice([0, place])
    name = random.choice(["x", "tags", "lr", "name", "description", "model_kwargs", "datasets"])
    return [*lines[:where], *levels, f"{name}: {alias}", *lines[where:]]


CHANGES: list[Callable[[Random, list[str], int], list[str]]] = [
    *(_replace, _replace, _replace, _replace, _add, _add),
    *(_repeat, _delete, _indent, _exchange, _interrupt, _explode),
]
