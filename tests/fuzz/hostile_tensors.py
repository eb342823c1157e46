"""What an enemy or a bad disk does to a safetensors file."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from mutations import Pairs, Raw, blindly, hostile_json, mutated_json, parsed, unparsed

SAME_SIZE = {"F32": "I32", "F16": "BF16", "BF16": "F16", "F64": "I64"}
SIZES = [-8, -4, -1, 1, 4, 8, 24, 1 << 40]
NUMBERS = [b"\0\0\xc0\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f", b"\0\0\0\x80", b"\x01\0\0\0"]
"""NaN, −∞, the largest, −0 and the smallest, in float32."""

Tensor = dict[str, list[Any]]
"""The [key, value] pairs of one tensor in the header, by their keys."""


def mutated_tensors(random: Random, data: bytes, other: bytes) -> bytes:
    """A safetensors file with changes by somebody who knows the format, or does not, or both.

    Args:
        other: another such file, to splice with.
    """
    length = int.from_bytes(data[:8], "little")
    header, content = data[8 : 8 + length].decode(), data[8 + length :]
    if random.random() < 0.6:
        change = mutated_json if random.random() < 0.3 else _mutated_header
        header = change(random, header)
    if random.random() < 0.3:
        content = _mutated_content(random, content)
    text = header.encode(errors="surrogatepass")
    claimed = random.choice([len(text)] * 20 + [0, len(text) + 1, len(text) - 1, 1 << 40, 1 << 63])
    data = max(claimed, 0).to_bytes(8, "little") + text + content
    return blindly(random, data, other) if random.random() < 0.3 else data


def _mutated_header(random: Random, header: str) -> str:
    value = parsed(header)
    members = {name: {pair[0]: pair for pair in about} for name, about in value}
    members.pop("__metadata__", None)
    random.choice(CHANGES)(random, value, list(members.values()))
    return unparsed(value) + " " * random.choice([0, 0, 1, 8, 1 << 20])


def _mutated_content(random: Random, content: bytes) -> bytes:
    """Numbers that are none, or other ones; sometimes not as many."""
    place = random.randrange(len(content) // 4) * 4
    changed = content[:place] + random.choice(NUMBERS) + content[place + 4 :]
    return random.choice([changed, changed, changed + b"\0" * 4, changed[:-4], b""])


def _reshape(random: Random, header: Pairs, tensors: list[Tensor]) -> None:
    pair = random.choice(tensors)["shape"]
    shape = pair[1]
    longer = [[*shape, 1], [1, *shape], [*shape, 0], [1 << 40] * 9, [9] * 200_000]
    pair[1] = random.choice([shape[::-1], [24], [], [shape[0] + 1, *shape[1:]], *longer])


def _resize(random: Random, header: Pairs, tensors: list[Tensor]) -> None:
    """Other offsets: both, or one alone."""
    pair = random.choice(tensors)["data_offsets"]
    by = random.choice(SIZES)
    pair[1] = [pair[1][0] + by * random.randrange(2), pair[1][1] + by]


def _move_border(random: Random, header: Pairs, tensors: list[Tensor]) -> None:
    """The end of one tensor and the beginning of the next."""
    one = random.choice(tensors)["data_offsets"]
    by, border = random.choice(SIZES), one[1][1]
    for tensor in tensors:
        offsets = tensor["data_offsets"]
        offsets[1] = [offset + by * (offset == border) for offset in offsets[1]]


def _retype(random: Random, header: Pairs, tensors: list[Tensor]) -> None:
    pair = random.choice(tensors)["dtype"]
    pair[1] = random.choice([SAME_SIZE.get(pair[1], "I8"), "F8_E5M2", Raw('"f32"'), "F64"])


def _rename(random: Random, header: Pairs, tensors: list[Tensor]) -> None:
    one, two = random.choice(header), random.choice(header)
    one[0], two[0] = two[0], random.choice([one[0], two[0], "x", ""])


def _repeat(random: Random, header: Pairs, tensors: list[Tensor]) -> None:
    about = random.choice(header)[1]
    header.append([random.choice(["x", "scaling_factor", "b_gate"]), about])


def _annotate(random: Random, header: Pairs, tensors: list[Tensor]) -> None:
    header.insert(0, ["__metadata__", hostile_json(random)])


CHANGES: list[Callable[[Random, Pairs, list[Tensor]], None]] = [
    *(_reshape, _resize, _move_border, _retype, _rename, _repeat, _annotate)
]
