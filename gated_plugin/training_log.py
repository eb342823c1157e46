"""What a training run notes about itself: `training.jsonl`, and the line beside the progress bar."""

from __future__ import annotations

import json
import time
from typing import Any

import torch
from sae_lens.saes.sae import TrainingSAE, TrainStepOutput
from sae_lens.training.sae_trainer import SAETrainer

from gated_plugin.paper_sae import PaperTrainingSAE, mean_l0
from gated_plugin.runs import Run, beside


class TrainingLog:
    """One JSON object a line; lines after the step that a run resumes from are dropped.

    Raises:
        GatedError: the disk is full or fails.
    """

    def __init__(self, run: Run, step: int) -> None:
        self.run = run
        path, kept = run.training_log, []
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                if line.endswith("}") and json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        with run.writing(str(path)), beside(path) as unfinished:
            unfinished.write_text("".join(kept), encoding="utf-8")

    def write(self, figures: dict[str, Any]) -> None:
        path = self.run.training_log
        with self.run.writing(str(path)), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(figures) + "\n")


@torch.no_grad()
def figures_of(trainer: SAETrainer[Any, Any], output: TrainStepOutput) -> dict[str, Any]:
    """One line of the log, of the step that was just taken."""
    x = output.sae_in
    error = (output.sae_out - x).pow(2).sum()
    return {
        "step": trainer.n_training_steps,
        "tokens": trainer.n_training_samples,
        "time": round(time.time(), 3),
        "lr": trainer.optimizer.param_groups[0]["lr"],
        "l0": mean_l0(output.feature_acts),
        "fvu": (error / (x - x.mean(0)).pow(2).sum()).item(),
        "alive": 1 - trainer.dead_neurons.float().mean().item(),
        **{name: value.item() for name, value in output.losses.items()},
        **_engine_choice(trainer.sae),
        **_resampling(trainer.sae),
    }


def _engine_choice(sae: TrainingSAE[Any]) -> dict[str, Any]:
    """What served the step, where it is a SAE of ours."""
    if not isinstance(sae, PaperTrainingSAE):
        return {}
    choice = sae.engine_choice
    return {"engine": choice.impl, "screened": choice.screened, "gate_density": choice.density}


def _resampling(sae: TrainingSAE[Any]) -> dict[str, Any]:
    """Features resampled since the start, and the factor on `lr`, where the run resamples."""
    resampler = sae.resampler if isinstance(sae, PaperTrainingSAE) else None
    return {} if resampler is None else resampler.metrics


def live_line(figures: dict[str, Any]) -> str:
    """What stands beside the progress bar."""
    resampled = figures.get("resampled_features")
    return f"L0 {figures['l0']:.1f}  FVU {figures['fvu']:.3f}  alive {figures['alive']:.1%}" + (
        f"  resampled {resampled}" if resampled else ""
    )
