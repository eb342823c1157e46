"""Options that the commands share."""

from __future__ import annotations

import sys
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
    parser.add_argument(
        "--beta1", type=float, default=0.0, help="Adam's β1: 0, the paper's, by default"
    )
    parser.add_argument("--device", type=device, default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=new_file, help="write all figures and the conditions here")


def device(text: str) -> str:
    """cpu, cuda or cuda:NUMBER."""
    if text.split(":")[0] not in ("cpu", "cuda"):
        raise ArgumentTypeError(f"{text!r} is neither cpu nor cuda")
    return text


def require_device(device: str) -> None:
    """Leave with a sentence where torch finds no such GPU."""
    import torch

    if device != "cpu" and not torch.cuda.is_available():
        sys.exit("torch finds no GPU here; leave out --device, or run this where there is one.")


def new_file(text: str) -> Path:
    """A file in a folder that exists: what took hours is not lost at its end."""
    path = Path(text)
    if not path.parent.is_dir():
        raise ArgumentTypeError(f"{path.parent} is no folder; make it first")
    return path


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
