"""Options that the commands share."""

from __future__ import annotations

from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

Shape = tuple[int, int, int]


def add_protocol(parser: ArgumentParser) -> None:
    """How to measure, how often, and where the figures go."""
    parser.add_argument("--repeats", type=positive, default=7)
    add_conditions(parser)


def add_conditions(parser: ArgumentParser) -> None:
    """How to measure, and where the figures go."""
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--beta1", type=float, default=0.0, help="Adam's β1; SAELens' default: 0.9")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, help="write every raw time and the conditions here")


def shape(text: str) -> Shape:
    """ROWSxD_INxD_SAE."""
    sizes = text.split("x")
    if len(sizes) != 3:
        raise ArgumentTypeError(f"{text!r} is not ROWSxD_INxD_SAE; give e.g. 1024x768x12288")
    rows, d_in, d_sae = map(positive, sizes)
    return rows, d_in, d_sae


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
