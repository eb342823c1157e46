"""Interleaved timing: every repeat goes once round all rows, so that a slow minute hits them all.

The unit is timed anew before every chain of calls, and a multiple is the median of ratios of
neighbours: on shared hardware the same product took 52 ms in one minute and 104 ms in the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch

from benchmarks.implementations import Implementation
from benchmarks.workload import Workload

WARM_UP = 2
"""Rounds that are not recorded: the first compiles, or loads what was compiled."""

Chain = Sequence[tuple[str, Callable[[Any], Any]]]
"""Columns and calls, each timed apart; a call gets what the one before it returned."""


class Timed(NamedTuple):
    """The repeats of one column."""

    milliseconds: list[float]
    mm_milliseconds: list[float]
    """Of the unit, just before."""

    @property
    def multiple(self) -> float:
        """The cost in mm."""
        pairs = zip(self.milliseconds, self.mm_milliseconds, strict=True)
        return round(median(taken / mm for taken, mm in pairs), 4)

    def facts(self) -> dict[str, object]:
        """For the record."""
        return {"multiple_of_mm": self.multiple, **self._asdict()}


Times = dict[str, dict[str, Timed]]
"""By row and column."""


def interleaved(rows: Mapping[str, Sequence[Chain]], workload: Workload, repeats: int) -> Times:
    """Time all chains of all rows, row after row, `repeats` times over."""
    device, unit = workload.case.device, product(workload)
    times: Times = {row: {} for row in rows}
    for turn in range(-WARM_UP, repeats):
        for row, chains in rows.items():
            for chain in chains:
                (_, mm), *timed = _timed([("mm", unit), *chain], device)
                for column, milliseconds in timed if turn >= 0 else ():
                    cell = times[row].setdefault(column, Timed([], []))
                    cell.milliseconds.append(milliseconds)
                    cell.mm_milliseconds.append(mm)
    return times


def mm_milliseconds(times: Times) -> float:
    """The unit, as a median over everything."""
    cells = [cell for columns in times.values() for cell in columns.values()]
    return median(mm for cell in cells for mm in cell.mm_milliseconds)


def product(workload: Workload, dtype: torch.dtype = torch.float32) -> Callable[[Any], None]:
    """One dense encoder product into memory that is already there; in float32 the unit, mm."""
    x_BN, W_enc_NM = workload.x_BN.to(dtype), workload.W_dec_MN.to(dtype).T.contiguous()
    out_BM = x_BN.new_empty(len(x_BN), W_enc_NM.shape[1])

    def multiply(_: Any) -> None:
        torch.mm(x_BN, W_enc_NM, out=out_BM)

    return multiply


def update(implementation: Implementation) -> Chain:
    """The whole training step."""
    training = implementation.training
    assert training is not None
    return [("step", lambda _: training.update())]


def parts(implementation: Implementation) -> list[Chain]:
    """Everything that can be timed of an implementation."""
    encode, decode, _ = implementation.coding
    chains: list[Chain] = [
        [
            ("encode", lambda _: _inferred(encode)),
            ("decode", lambda codes: _inferred(decode, codes)),
        ],
        [("encode+decode", lambda _: _inferred(lambda: decode(encode())))],
    ]
    training = implementation.training
    if training is None:
        return chains
    apart: Chain = [
        ("forward", lambda _: training.loss()),
        ("backward", training.backward),
        ("optimizer", lambda _: training.optimize()),
    ]
    return [update(implementation), apart, *chains]


def _timed(chain: Chain, device: str) -> Iterator[tuple[str, float]]:
    value = None
    for column, call in chain:
        _wait_for(device)
        start = perf_counter()
        result = call(value)
        _wait_for(device)
        milliseconds = (perf_counter() - start) * 1e3
        value = result  # what the call before returned is freed here, outside of the timing
        yield column, milliseconds


def _wait_for(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


@torch.no_grad()
def _inferred(call: Callable[..., Any], *args: Any) -> Any:
    return call(*args)
