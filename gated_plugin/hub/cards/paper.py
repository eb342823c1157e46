"""Tables 1–8 of the paper, arXiv 2404.16014: paper_tables.csv, whose first line says what is in it."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from gated_plugin.errors import GatedError

TABLES = Path(__file__).with_name("paper_tables.csv")
TOKENS = {"gemma-7b": 300_000 * 4096, "pythia-2.8b": 400_000 * 4096}
"""Training steps times batch, by language model."""


@dataclass(frozen=True)
class PaperRow:
    """One SAE of the paper."""

    model: str
    arch: str
    """`gated` or `baseline`."""
    site: str
    """`resid`: residual stream after the block; `mlp`: MLP output; `attn`: heads before W_O."""
    layer: int
    l1: float
    """λ as printed: it weighs the L1 term where the squared error is divided by d_in."""
    lr: float
    l0: float
    loss_recovered: float
    """In percent."""
    ce_clean: float
    """Cross-entropies in nats per token: as it is, with the SAE spliced in, with zeros."""
    ce_sae: float
    ce_zero: float
    width: int
    alive: float
    """In percent."""
    gamma: float
    tokens: int
    """Trained on."""


def rows(model: str) -> list[PaperRow]:
    """The paper's SAEs of one language model.

    Raises:
        GatedError: the tables have no such model.
    """
    if model not in TOKENS:
        raise GatedError(
            f"The paper's tables have no language model {model!r}; give one of {', '.join(TOKENS)}."
        )
    lines = TABLES.read_text(encoding="utf-8").splitlines()[1:]
    return [_row(record) for record in csv.DictReader(lines) if record["model"] == model]


def _row(record: dict[str, str]) -> PaperRow:
    return PaperRow(
        model=record["model"],
        arch=record["arch"],
        site=record["site"],
        layer=int(record["layer"]),
        l1=float(record["lambda"]),
        lr=float(record["lr"]),
        l0=float(record["l0"]),
        loss_recovered=float(record["ce_recovered"]),
        ce_clean=float(record["clean_ce"]),
        ce_sae=float(record["sae_ce"]),
        ce_zero=float(record["zero_abl_ce"]),
        width=int(record["width"]),
        alive=float(record["alive"]),
        gamma=float(record["gamma"]),
        tokens=TOKENS[record["model"]],
    )
