"""Finds features that have died and has them begin anew (arXiv 2404.16014).

After the optimizer steps in `resample_steps`, a feature that fired in none of the last
`resample_window` steps is set to an input that was drawn with probability ∝ ‖x − x̂‖⁴, the squared
loss, from the batches just before (`reservoir`, `revival`); Adam forgets it, and the learning rate
drops and climbs back (`lr_rewarm`).

Departures from Bricken et al. 2023: the loss of an input is that of the step that trained on it, at
most `INPUTS_PER_PLACE` inputs ago for each place in the reservoir, so that no second pass is needed;
and no input is drawn twice. At most `LARGEST_RESERVOIR` features begin anew at once; the others wait
for the next of `resample_steps`.

Steps are counted here, not by the trainer, whose count a checkpoint may hold one short: an
optimizer step counts that followed a training forward pass. Weights change just after such a step,
so that a checkpoint between two steps holds all there is.
Shapes: B batch, N d_in, M d_sae.
"""

from __future__ import annotations

import json
import logging
from bisect import bisect_right
from pathlib import Path
from typing import Any, NamedTuple
from weakref import ref

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook
from torch.utils.weak import WeakTensorKeyDictionary

from gated_plugin.resampling_plan import OFF, ResamplingPlan
from gated_plugin.trainer_hooks.lr_rewarm import LrRewarm, rewarm
from gated_plugin.trainer_hooks.reservoir import Reservoir
from gated_plugin.trainer_hooks.revival import SCHEMES, FeatureWeights, forget_moments

STATE_FILENAME = "gated_resampling.safetensors"
INPUTS_PER_PLACE = 32
"""Of how many inputs before a resampling some are drawn, for each place in the reservoir. At
1024 × 256 × 2048 collecting costs 8 % of a step: two windows of 150 steps in a run of 1,000 would add
2.4 % to it, and so add 1.3 %."""
LARGEST_RESERVOIR = 8192
"""Rows: 128 MB of float32 at d_in 4096."""
SEED_STRIDE = 1009
"""So that the batches of one step, where gradients are accumulated, have seeds of their own."""

logger = logging.getLogger("gated_plugin")


class Resampled(NamedTuple):
    """What one of `resample_steps` came to."""

    step: int
    dead: int
    resampled: int
    """Of the dead; fewer where there were more than inputs to begin from."""


class Resampler:
    """State of one SAE's resampling; `save` and `load` carry all of it through a checkpoint."""

    def __init__(self, plan: ResamplingPlan, d_sae: int) -> None:
        self.plan = plan
        self.step = 0
        self.history: list[Resampled] = []
        self.last_fired_M = torch.zeros(d_sae, dtype=torch.int64)
        """Noted in the windows before `resample_steps` alone."""
        self.reservoir = Reservoir(min(d_sae, LARGEST_RESERVOIR))
        self.rewarm = LrRewarm(plan.rewarm_steps)
        self.unstepped = 0
        """Training forward passes since the last optimizer step."""

    @classmethod
    def of(cls, plan: ResamplingPlan, d_sae: int) -> Resampler | None:
        """None where resampling is off."""
        return None if plan.resampling == OFF else cls(plan, d_sae)

    @property
    def inputs(self) -> int:
        """Of how many inputs just before a resampling some are drawn, about."""
        return INPUTS_PER_PLACE * self.reservoir.capacity

    @property
    def metrics(self) -> dict[str, float]:
        """For logs: how many were resampled since the start, and what the next step's lr is of its own."""
        resampled = sum(event.resampled for event in self.history)
        return {"resampled_features": resampled, "lr_factor": self.rewarm.factor}

    @torch.no_grad()
    def observe(self, x_BN: Tensor, x_hat_BN: Tensor, seen_BN: Tensor, features_BM: Tensor) -> None:
        """Take in a training forward pass.

        Args:
            x_BN, x_hat_BN: the batch and its reconstruction, [..., N].
            seen_BN: the batch in the units that W_dec writes in.
            features_BM: its features, [..., M], none below 0.
        """
        self.unstepped += 1
        steps = self.plan.resample_steps
        upcoming = bisect_right(steps, self.step)
        if upcoming == len(steps):
            return
        now = self.step + 1
        left = steps[upcoming] - now
        if left >= self.plan.resample_window:
            return
        self._note_firing(features_BM, now)
        rows = x_BN.shape[:-1].numel()
        if left * rows < self.inputs:
            wide = torch.promote_types(x_BN.dtype, torch.float32)
            error_BN = (x_hat_BN.to(wide) - x_BN.to(wide)).reshape(rows, -1)
            norms_B = torch.linalg.vector_norm(error_BN, dim=1).double()
            seed = SEED_STRIDE * now + self.unstepped
            self.reservoir.offer(seen_BN.reshape(rows, -1), 4 * norms_B.log(), seed=seed)

    def _note_firing(self, features_BM: Tensor, now: int) -> None:
        features_BM = features_BM.detach()
        if features_BM.dim() != 2:
            features_BM = features_BM.reshape(-1, features_BM.shape[-1])
        self.last_fired_M = self.last_fired_M.to(features_BM.device)
        self.last_fired_M[features_BM.sum(0) > 0] = now

    @torch.no_grad()
    def after_step(self, sae: Any, optimizer: Optimizer) -> None:
        """Count an optimizer step, and resample where it is one of `resample_steps`."""
        if not self.unstepped:
            return
        self.unstepped = 0
        self.step += 1
        self.rewarm.advance()
        if self.step in self.plan.resample_steps:
            self._resample(sae, optimizer)

    def _resample(self, sae: Any, optimizer: Optimizer) -> None:
        dead_M = self.last_fired_M <= self.step - self.plan.resample_window
        dead = dead_M.nonzero().squeeze(1)
        inputs_DN = self.reservoir.take(len(dead))
        self.reservoir.clear()
        features_D = dead[: 0 if inputs_DN is None else len(inputs_DN)]
        if inputs_DN is not None and len(features_D):
            weights = FeatureWeights.of(sae)
            centred_DN = inputs_DN - sae.b_dec * sae.cfg.apply_b_dec_to_input
            SCHEMES[self.plan.resampling](weights, features_D, centred_DN, dead_M)
            forget_moments(optimizer, weights, features_D)
            self.last_fired_M[features_D] = self.step
            self.rewarm.begin()
        self.history.append(Resampled(self.step, len(dead), len(features_D)))
        logger.info(
            "Step %d: resampled %d of %d dead features.", self.step, len(features_D), len(dead)
        )

    def save(self, folder: Path) -> None:
        """Write `STATE_FILENAME`."""
        tensors = {"last_fired": self.last_fired_M}
        if self.reservoir.keys_R is not None and self.reservoir.rows_RN is not None:
            tensors |= {"keys": self.reservoir.keys_R, "rows": self.reservoir.rows_RN}
        numbers = {
            "step": self.step,
            "rewarm_position": self.rewarm.position,
            "history": self.history,
        }
        save_file(tensors, folder / STATE_FILENAME, {"state": json.dumps(numbers)})

    def load(self, folder: Path) -> None:
        """Take over what `save` wrote into this folder; nothing, where it wrote nothing."""
        if not (folder / STATE_FILENAME).exists():
            return
        with safe_open(folder / STATE_FILENAME, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            numbers = json.loads(file.metadata()["state"])
        self.step, self.rewarm.position = numbers["step"], numbers["rewarm_position"]
        self.history = [Resampled(*event) for event in numbers["history"]]
        self.last_fired_M = tensors["last_fired"]
        self.reservoir.keys_R, self.reservoir.rows_RN = tensors.get("keys"), tensors.get("rows")


_watched: Any = WeakTensorKeyDictionary()
_listening: list[Any] = []


@torch.compiler.disable
def watch(sae: Any, resampler: Resampler) -> None:
    """From now on optimizer steps of `sae.W_dec` are `resampler`'s, and their lr too. Idempotent."""
    if sae.W_dec in _watched:
        return
    parameters: list[nn.Parameter] = list(sae.parameters())
    rewarm(parameters, resampler.rewarm)
    if not _listening:
        _listening.append(register_optimizer_step_post_hook(_after_step))
    # Weak: the SAE holds W_dec, and what W_dec's entry holds would never be freed.
    _watched[sae.W_dec] = (ref(sae), resampler)


def _after_step(optimizer: Optimizer, _args: Any, _kwargs: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            sae, resampler = _watched.get(parameter, (_nobody, None))
            if sae() is not None and sae().W_dec is parameter:
                resampler.after_step(sae(), optimizer)


def _nobody() -> None: ...
