"""Peak memory and seconds of every part of our training step, at the start and at an L0.

Held anyway are the weights, the batch, the optimizer's state, and the gradients with the memory that
is kept for the next ones. What a part has above that, and above what the process held after steps at
a toy size, is its working memory.

The first step is by itself, since Adam makes its state in it. `decoder norm` is done once more
apart: it is a hook of the optimizer's step, whose figures have it in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchmarks.implementations import Training, saelens
from benchmarks.memory import bytes_of, held_bytes, peak_bytes
from benchmarks.saved_tensors import kept_by_saelens, peak_arrays_of_saelens
from benchmarks.workload import Case, make
from gated_plugin.config import GatedTrainingSAEConfig
from gated_plugin.engine.kept_memory import GRADIENTS
from gated_plugin.engine.weight_rows import normalise_rows
from gated_plugin.training import GatedTrainingSAE

WHOLE = "the trainer's whole step"


def measure(case: Case, threads: int) -> dict[str, Any]:
    """Held bytes by kind, steps part by part, and what SAELens would hold."""
    peak_arrays = peak_arrays_of_saelens(case, threads)
    torch.set_num_threads(threads)
    _Run(replace(case, rows=256, d_in=64, d_sae=512, l0=4)).steps()
    floor = held_bytes(case.device)
    built: list[_Run] = []
    set_up_peak = peak_bytes(lambda: built.append(_Run(case, floor)), case.device)
    (run,) = built
    steps = run.steps()
    parts = [part for step in steps for part in step["parts"]]
    whole = {s["state"]: p for s in steps for p in s["parts"] if p["name"] == WHOLE}
    return {
        "libraries_bytes": floor,
        "held_bytes": {kind: bytes_of(tensors) for kind, tensors in run.held().items()},
        "steps": steps,
        "peak_bytes": max(part["peak_bytes"] for part in parts),
        "set_up_peak_bytes": set_up_peak,
        "tokens_per_second": {name: case.rows / part["seconds"] for name, part in whole.items()},
        "saelens_keeps": kept_by_saelens(case),
        "saelens_peak_arrays": peak_arrays,
    }


class _Run:
    """Our SAE in SAELens' trainer, with nothing beside it."""

    def __init__(self, case: Case, floor: int = 0) -> None:
        workload = make(case)
        self.case, self.floor, self.threshold = case, floor, workload.threshold
        self.sae = GatedTrainingSAE(GatedTrainingSAEConfig(**saelens.sizes(case)))
        saelens.fill_gated(self.sae, workload)
        self.batch_BN = workload.x_BN
        self.training: Training = saelens.training(self.sae, workload.without_weights())
        self.sae.feature_major_weights()

    def steps(self) -> list[dict[str, Any]]:
        """The first one, then one of each state."""
        self._set_thresholds(0.0)
        first = self._step("start, first step")
        start = self._step("start", whole=True)
        self._set_thresholds(self.threshold)
        return [first, start, self._step(f"L0 {self.case.l0}", whole=True)]

    def held(self) -> dict[str, list[Tensor]]:
        """Every storage once, under the first kind that has it."""
        parameters = list(self.sae.parameters())
        state = (
            value for values in self.training.optimizer.state.values() for value in values.values()
        )
        gradients = [weight.grad for weight in parameters]
        kept = [array for weight in parameters for array in GRADIENTS.kept(weight)]
        kinds: dict[str, list[Any]] = {
            "weights": parameters,
            "batch": [self.batch_BN],
            "gradients": [*gradients, *kept],
            "optimizer": list(state),
        }
        seen: set[int] = set()
        return {kind: list(_unseen(tensors, seen)) for kind, tensors in kinds.items()}

    @torch.no_grad()
    def _set_thresholds(self, threshold: float) -> None:
        self.sae.b_gate.fill_(-threshold)
        self.sae.b_mag.fill_(-threshold / 2)

    def _step(self, state: str, *, whole: bool = False) -> dict[str, Any]:
        training, losses = self.training, []
        calls: dict[str, Callable[[], Any]] = {
            "forward": lambda: losses.append(training.loss()),
            "backward": lambda: losses.pop().backward(),
            "clip": lambda: torch.nn.utils.clip_grad_norm_(self.sae.parameters(), 1.0),
            "Adam and decoder norm": self._optimize,
            "decoder norm": lambda: normalise_rows(self.sae.W_dec),
        }
        if whole:
            calls[WHOLE] = training.update
        parts = [self._part(name, call) for name, call in calls.items()]
        choice = self.sae.engine_choice
        return {"state": state, "served": choice.impl, "parts": parts}

    def _optimize(self) -> None:
        self.training.optimizer.step()
        self.training.optimizer.zero_grad()

    def _part(self, name: str, call: Callable[[], Any]) -> dict[str, Any]:
        seconds: list[float] = []

        def timed() -> None:
            start = perf_counter()
            call()
            if self.case.device != "cpu":
                torch.cuda.synchronize(self.case.device)
            seconds.append(perf_counter() - start)

        before = self._held_bytes()
        peak = peak_bytes(timed, self.case.device)
        working = peak - self.floor - max(before, self._held_bytes())
        return {"name": name, "peak_bytes": peak, "working_bytes": working, "seconds": seconds[0]}

    def _held_bytes(self) -> int:
        return sum(bytes_of(tensors) for tensors in self.held().values())


def _unseen(tensors: Iterable[Any], seen: set[int]) -> Iterable[Tensor]:
    for tensor in tensors:
        if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in seen:
            seen.add(tensor.untyped_storage().data_ptr())
            yield tensor
