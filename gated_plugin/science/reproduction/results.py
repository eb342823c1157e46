"""What a reproduction measured: one row an SAE, and the two tables that are not about one."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from gated_plugin.runs import beside
from gated_plugin.science.synthetic import Recovery

OWN, PURSUIT = "own", "pursuit"
"""What chose the features: the SAE's own encoder, or gradient pursuit over its dictionary."""

NEAR = 0.1
"""Share of the wanted L0 that an SAE on the synthetic model may be off, and still be compared."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One SAE on held-out text; intervals are of 95 %, over sequences."""

    site: str
    arm: str
    seed: int
    knob: float
    encoder: str
    """`own` or `pursuit`."""
    l0: float
    l0_low: float | None
    l0_high: float | None
    loss_recovered: float | None
    loss_recovered_low: float | None
    loss_recovered_high: float | None
    gamma: float | None
    gamma_low: float | None
    gamma_high: float | None
    fvu: float | None
    alive: float
    n_dead: int
    n_dense: int
    width: int
    tokens: int
    """Trained on."""
    tokens_evaluated: int
    run: str
    """Its folder, below that of the reproduction."""


@dataclass(frozen=True, kw_only=True)
class ClockRow:
    """What training an arm costs, measured beside the others in one process."""

    site: str
    arm: str
    steps: int
    """Of a whole training of this arm."""
    seconds: float
    """Of those steps alone, from the mean of the timed ones."""


@dataclass(frozen=True, kw_only=True)
class Results:
    """All that was measured."""

    rows: tuple[Row, ...] = ()
    synthetic: tuple[Recovery, ...] = ()
    clock: tuple[ClockRow, ...] = ()
    l0: tuple[float, ...] = field(default=())
    """Where arms are compared."""
    seeds: tuple[int, ...] = ()
    """Of the scale, measured or not."""
    synthetic_l0: float = 0.0
    """Where SAEs on the synthetic model are compared."""

    def of(self, site: str, arm: str, encoder: str = OWN) -> dict[int, list[Row]]:
        """The rows of an arm at a site, by seed."""
        found: dict[int, list[Row]] = {}
        for row in self.rows:
            if (row.site, row.arm, row.encoder) == (site, arm, encoder):
                found.setdefault(row.seed, []).append(row)
        return found

    def recovered(self, arm: str) -> list[Recovery]:
        """What an arm's SAEs found of the synthetic model, where L0 is near the wanted one."""
        most = NEAR * self.synthetic_l0
        return [
            row
            for row in self.synthetic
            if row.arm == arm and abs(row.l0 - self.synthetic_l0) <= most
        ]

    def seconds(self, site: str, arm: str) -> float | None:
        """Of an arm's whole training; None where it was not timed there."""
        times = (row.seconds for row in self.clock if (row.site, row.arm) == (site, arm))
        return next(times, None)


def write_csv(path: Path, rows: Sequence[Row] | Sequence[Recovery] | Sequence[ClockRow]) -> None:
    """One line a row, under the names of its fields; six digits; an empty cell is None."""
    kind = type(rows[0])
    with beside(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(kind)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(_cells(asdict(row)) for row in rows)


def _cells(record: dict[str, Any]) -> dict[str, Any]:
    return {
        name: f"{value:.6g}" if isinstance(value, float) else value
        for name, value in record.items()
    }
