"""What an enemy, a bad disk or a careless editor does to a file; every choice is `random`'s."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any, TypeVar

Item = TypeVar("Item")


class Raw(str):
    """Text that stands in JSON as it is, be it JSON or not."""


class Pairs(list[list[Any]]):
    """A JSON object as [name, value] pairs, so that a name can occur twice."""


LONG = 200_000
NUMBERS = ["0", "-0", "-1", "1", "1.0", "0.5", "1e400", "-1e400", "1e-400", "NaN", "Infinity",
    "-Infinity", "2147483648", "9223372036854775807", "9223372036854775808", "1" + "0" * 400,
    "9" * 5000, "1e999999999", "0x10", "01", "1_000", "+1", ".5", "1,5", "0.1e1", "3.0"]  # fmt: skip
WORDS = ["true", "false", "null", '""', '"true"', '"0"', '"1"', '"none"', '"NaN"', '"float64"',
    '"gated"', '"standard"', '"expected_average_only_in"', '"hook_z"', '"layer_norm"', '"../../etc/passwd"', '"/etc/passwd"',
    '"C:\\\\x"', '"a\\u0000b"', '"\\ud800"', '"\\u202e\\u2028\\n\\r\\t\\u001b[2J"', '"😀é\u0130ß"',
    '"{{ 7*7 }}{% raw %}"', '"| a | b |\\n---\\n# x <script>`"', '"__class__"', '"self"']  # fmt: skip
SHAPES = ["[]", "{}", "[[]]", "[null]", "[0]", "[-1]", "[true]", "[1.0]", '["1"]', "[1e400]",
    '{"": 0}', '{"__proto__": 1}', '{"self": 1}', '{"to_dict": 1, "__class__": 2}',
    '{"a": 1, "a": 2}', "[9223372036854775807, 9223372036854775807]"]  # fmt: skip
DEEP = ["[" * 100_000, "[" * 500 + "]" * 500, '{"a":' * 300 + "1" + "}" * 300,
    "[" * 985 + "]" * 985]  # fmt: skip
LARGE = ['"' + "x" * LONG + '"', '"' + "\\n" * 1000 + '"', "[" + "9," * LONG + "9]",
    "[" + "[],"  * LONG + "0]", "{" + ",".join(f'"{n}": {n}' for n in range(9000)) + "}"]  # fmt: skip


def hostile_json(random: Random) -> Raw:
    """A JSON value, or nearly one, that nobody expects."""
    kind = random.choices([NUMBERS, WORDS, SHAPES, DEEP, LARGE], [10, 10, 5, 1, 1])[0]
    return Raw(random.choice(kind))


def mutated_json(random: Random, text: str) -> str:
    """JSON `text` with up to three changes by somebody who knows the format."""
    value = parsed(text)
    for _ in range(random.choice([0, 1, 1, 1, 2, 3])):
        places = _places(value)
        if places:
            random.choice(CHANGES)(random, *random.choice(places))
    return unparsed(value)


def parsed(text: str) -> Any:
    """JSON whose objects are `Pairs`."""
    return json.loads(text, object_pairs_hook=lambda pairs: Pairs(map(list, pairs)))


def unparsed(value: Any) -> str:
    """The text of JSON with `Pairs` and `Raw` in it."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{unparsed(k)}: {unparsed(v)}" for k, v in value) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(unparsed, value)) + "]"
    return json.dumps(value)


def _places(value: Any) -> list[tuple[Any, int]]:
    """Every list and object below `value`, with each of its indices."""
    found = []
    if isinstance(value, list):
        items = [pair[1] for pair in value] if isinstance(value, Pairs) else value
        found = [(value, index) for index in range(len(value))]
        for item in items:
            found += _places(item)
    return found


def _value(holder: Any, index: int) -> Any:
    return holder[index][1] if isinstance(holder, Pairs) else holder[index]


def _set(holder: Any, index: int, value: Any) -> None:
    if isinstance(holder, Pairs):
        holder[index] = [holder[index][0], value]
    else:
        holder[index] = value


def _replace(random: Random, holder: Any, index: int) -> None:
    _set(holder, index, hostile_json(random))


def _nudge(random: Random, holder: Any, index: int) -> None:
    value = _value(holder, index)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return _replace(random, holder, index)
    nowhere = [Raw("1e400"), Raw("-1e400"), Raw("NaN")]
    other = [value + 1, value - 1, -value, value * 2, value / 3]
    changed = [*other, *nowhere, str(value), float(value), [value]]
    _set(holder, index, random.choice(changed))


def _delete(random: Random, holder: Any, index: int) -> None:
    del holder[index]


def _repeat(random: Random, holder: Any, index: int) -> None:
    name = holder[index][0] if isinstance(holder, Pairs) else None
    value = random.choice([_value(holder, index), hostile_json(random)])
    holder.insert(random.randrange(len(holder) + 1), value if name is None else [name, value])


def _exchange(random: Random, holder: Any, index: int) -> None:
    other = random.randrange(len(holder))
    mine, theirs = _value(holder, index), _value(holder, other)
    _set(holder, index, theirs)
    _set(holder, other, mine)


def _rename(random: Random, holder: Any, index: int) -> None:
    if isinstance(holder, Pairs):
        name = str(holder[index][0])
        names = [
            name[:-1],
            name + "_",
            name.upper(),
            "",
            "metadata",
            "to_dict",
            Raw(random.choice(WORDS[3:])),
        ]
        holder[index] = [random.choice(names), holder[index][1]]


def _shuffle(random: Random, holder: Any, index: int) -> None:
    random.shuffle(holder)


CHANGES: list[Callable[[Random, Any, int], None]] = [
    *(_replace, _replace, _replace, _nudge, _nudge),
    *(_delete, _repeat, _exchange, _rename, _shuffle),
]


def blindly(random: Random, data: bytes, other: bytes = b"") -> bytes:
    """`data` with up to three changes by somebody who does not know the format.

    Args:
        other: another file of the kind, to splice with.
    """
    for _ in range(random.choice([1, 1, 2, 3])):
        data = random.choice(BLIND)(random, data, other)
    return data


def _flip(random: Random, data: bytes, other: bytes) -> bytes:
    if not data:
        return data
    place = random.randrange(len(data))
    return data[:place] + bytes([data[place] ^ 1 << random.randrange(8)]) + data[place + 1 :]


def _cut(random: Random, data: bytes, other: bytes) -> bytes:
    return data[: random.randrange(len(data) + 1)]


def _insert(random: Random, data: bytes, other: bytes) -> bytes:
    new = random.choice([b"\0", b"\xff", b"\xef\xbb\xbf", b"\n", b"\r\n", b"{", b"0", b"-", b"\x85",
        b"\xed\xa0\x80", random.randbytes(random.randrange(20))])  # fmt: skip
    place = random.choice([0, len(data), random.randrange(len(data) + 1)])
    return data[:place] + new + data[place:]


def _remove(random: Random, data: bytes, other: bytes) -> bytes:
    place = random.randrange(len(data) + 1)
    return data[:place] + data[place + random.choice([1, 1, 2, 4, 8, 100]) :]


def _double(random: Random, data: bytes, other: bytes) -> bytes:
    start = random.randrange(len(data) + 1)
    stop = start + random.choice([1, 8, 64, len(data)])
    return data[:stop] + data[start:]


def _splice(random: Random, data: bytes, other: bytes) -> bytes:
    return data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]


def _recode(random: Random, data: bytes, other: bytes) -> bytes:
    text = data.decode(errors="replace")
    coding = random.choice(["utf-16", "utf-32", "utf-8-sig", "latin-1", "utf-7"])
    return text.encode(coding, errors="replace")


BLIND: list[Callable[[Random, bytes, bytes], bytes]] = [
    *(_flip, _flip, _flip, _cut, _insert, _insert, _remove, _double, _splice, _recode)
]
