"""What resampling adds to a training step: python -m benchmarks.resampling

The processor time that a step spends in the resampler's calls over that of the step without them,
on one thread, as a median: both are taken from the same step, so that a busy machine slows them
alike. `watching`: in a window, firing is noted; `collecting`: inputs are offered to the reservoir
too, the empty one first, which costs most; `average` weighs them by the share of the steps that a
schedule gives them.
"""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from statistics import median
from time import process_time
from typing import Any

SHAPES = [(1024, 256, 2048), (1024, 768, 12288)]
L0 = 32
REPEATS = 40
SCHEDULES = {
    "paper: 300,000 steps of 4096, four resamplings": (300_000, 4096, 4, 12_500),
    "1,000 steps of 1024, two resamplings": (1000, 1024, 2, 150),
}
"""Steps, rows, resamplings, window."""


def main() -> None:
    from benchmarks import machine
    from benchmarks.arguments import positive, shape

    parser = ArgumentParser(prog="python -m benchmarks.resampling", description=__doc__)
    parser.add_argument("--shape", type=shape, action="append", help="ROWSxD_INxD_SAE; repeatable")
    parser.add_argument("--repeats", type=positive, default=REPEATS)
    asked = parser.parse_args()
    machine.restart_with_passive_threads()
    import torch

    torch.set_num_threads(1)
    for sizes in asked.shape or SHAPES:
        added = {kind: added_by(kind, sizes, asked.repeats) for kind in ("watching", "collecting")}
        print("x".join(map(str, sizes)), *(f"{k} {100 * v:+.2f} %" for k, v in added.items()))
        for name, (steps, rows, times, window) in SCHEDULES.items():
            collecting = min(window, inputs_of(sizes) // rows)
            shares = {"watching": window - collecting, "collecting": collecting}
            average = sum(added[kind] * times * shares[kind] / steps for kind in added)
            print(f"  average {100 * average:+.2f} %  {name}")


def inputs_of(sizes: Sequence[int]) -> int:
    """How many inputs before a resampling are offered to the reservoir."""
    from gated_plugin.resampling_plan import ResamplingPlan
    from gated_plugin.trainer_hooks.resampling import Resampler

    return Resampler(ResamplingPlan(), sizes[2]).inputs


def added_by(kind: str, sizes: Sequence[int], repeats: int) -> float:
    """The share of a step's time that resampling adds in this phase of a run."""
    from benchmarks.workload import Case, make

    rows, d_in, d_sae = sizes
    workload = make(Case(rows=rows, d_in=d_in, d_sae=d_sae, l0=L0, beta1=0.0, device="cpu"))
    far = inputs_of(sizes) // rows if kind == "collecting" else 10**7
    stepping = Stepping(workload, far)
    ratios = []
    for _ in range(min(repeats, far - 1)):
        stepping.resampling = 0.0
        seconds = stepping.seconds()
        ratios.append(stepping.resampling / (seconds - stepping.resampling))
    return median(ratios[2:])  # the first two compile


class Stepping:
    """One SAE and its optimizer, and the time that its resampler took."""

    def __init__(self, workload: Any, window: int) -> None:
        import torch

        from gated_plugin import GatedTrainingSAE, GatedTrainingSAEConfig

        case, self.x_BN, self.resampling = workload.case, workload.x_BN, 0.0
        plan: dict[str, Any] = {
            "resampling": "paper",
            "resample_steps": [window],
            "resample_window": window,
        }
        self.sae = GatedTrainingSAE(GatedTrainingSAEConfig(case.d_in, case.d_sae, **plan))
        for name in ("observe", "after_step"):
            setattr(self.sae.resampler, name, self._timed(getattr(self.sae.resampler, name)))
        self.sae.W_dec.data = workload.W_dec_MN.clone()
        self.sae.W_enc.data = workload.W_dec_MN.T.clone()
        self.sae.b_gate.data.fill_(-workload.threshold)
        self.sae.b_mag.data.fill_(-workload.threshold / 2)
        self.optimizer = torch.optim.Adam(self.sae.parameters(), lr=1e-9, betas=(0.0, 0.999))

    def _timed(self, call: Callable[..., None]) -> Callable[..., None]:
        def timed(*args: Any) -> None:
            start = process_time()
            call(*args)
            self.resampling += process_time() - start

        return timed

    def seconds(self) -> float:
        """Of processor time for one step, with the firing statistics that SAELens' trainer keeps."""
        from sae_lens.saes.sae import TrainStepInput

        start = process_time()
        step_input = TrainStepInput(self.x_BN, {"l1": 1.0}, None, 0, False)
        output = self.sae.training_forward_pass(step_input)
        fired = output.feature_acts.bool().float()
        fired.sum(-2), fired.sum(0)
        output.loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return process_time() - start


if __name__ == "__main__":
    main()
