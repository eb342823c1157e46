"""The section `sweep` of a recipe: what `gated-hub sweep` trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gated_plugin.errors import GatedError


@dataclass(frozen=True)
class SweepPlan:
    """Which λ and seeds, and what the baseline is; flags of the command go before.

    Raises:
        GatedError: a λ is not above 0, or a λ or seed is given twice.
    """

    lambdas: tuple[float, ...] = ()
    """Values of λ: of `sae.paper_lambda` where the recipe has that, else of `sae.l1_coefficient`."""
    seeds: tuple[int, ...] = ()
    """The recipe's own seed alone, where there are none."""
    baseline: dict[str, Any] = field(default_factory=dict)
    """What the baseline has otherwise, by dotted key, such as `lr: 0.002`. Where it does not say,
    the architecture is `l1_baseline`, at 1.5 times the width, as in the paper."""
    baseline_lambdas: tuple[float, ...] = ()
    """The baseline's own λ; `lambdas` where there are none."""

    def __post_init__(self) -> None:
        for key in ("lambdas", "baseline_lambdas"):
            _require_once(key, getattr(self, key))
            for value in getattr(self, key):
                if not value > 0:
                    raise GatedError(f"sweep.{key} has {value}; give λ above 0.")
        _require_once("seeds", self.seeds)


def _require_once(key: str, values: Sequence[float]) -> None:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise GatedError(f"sweep.{key} has {twice[0]:g} more than once; give each value once.")
