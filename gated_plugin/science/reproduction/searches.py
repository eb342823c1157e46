"""The searches for the arms' learning rates, as they were measured."""

from __future__ import annotations

from gated_plugin.science.reproduction.design import Trial

SEARCHED = (
    "One seed each, at `resid` (`mlp` where it says so), 1000 steps of 1024 tokens (or 512), "
    "51,200 held-out tokens, knobs near an L0 of 32. Loss recovered rises by about 0.03 where L0 rises e-fold."
)

SEARCHES: dict[str, tuple[Trial, ...]] = {
    "gated": (
        Trial(lr=5e-3, l0=30.7, loss_recovered=0.9583, note="random start"),
        Trial(lr=5e-3, l0=31.0, loss_recovered=0.9567, note="start at data", taken=True),
        Trial(lr=7e-3, l0=30.6, loss_recovered=0.9559, note="random start"),
        Trial(lr=7e-3, l0=30.6, loss_recovered=0.9597, note="random start, another seed"),
        Trial(lr=7e-3, l0=29.6, loss_recovered=0.9615, note="the same, λ warmed up for 300 steps"),
        Trial(lr=7e-3, l0=29.7, loss_recovered=0.9574, note="the same, another seed"),
        Trial(lr=7e-3, l0=31.1, loss_recovered=0.9532, note="random start, lr decays over 80 %"),
        Trial(lr=1e-2, l0=30.8, loss_recovered=0.9617, note="random start; 86 % alive"),
        Trial(lr=2e-2, l0=32.5, loss_recovered=0.9597, note="random start; 66 % alive"),
        Trial(lr=2e-3, l0=42.4, loss_recovered=0.9690, note="`mlp`, batch 512, λ 4"),
        Trial(lr=5e-3, l0=19.9, loss_recovered=0.9521, note="`mlp`, batch 512, λ 4"),
        Trial(lr=1e-2, l0=12.0, loss_recovered=0.9202, note="`mlp`, batch 512, λ 4; 89 % alive"),
    ),
    "baseline": (
        Trial(lr=1e-3, l0=27.8, loss_recovered=0.8339),
        Trial(lr=3e-3, l0=25.4, loss_recovered=0.8876),
        Trial(lr=1e-2, l0=27.8, loss_recovered=0.8882),
        Trial(lr=3e-3, l0=25.2, loss_recovered=0.8685, note="β1 0.9"),
        Trial(lr=3e-3, l0=25.2, loss_recovered=0.8827, note="batch 512", taken=True),
        Trial(lr=1e-2, l0=26.8, loss_recovered=0.8762, note="batch 512"),
        Trial(lr=3e-3, l0=24.7, loss_recovered=0.8456, note="batch 512, start at data"),
        Trial(lr=3e-3, l0=24.0, loss_recovered=0.8692, note="batch 512, resampled twice"),
        Trial(lr=1e-3, l0=68.9, loss_recovered=0.9503, note="`mlp`, batch 512, λ 2.2"),
        Trial(lr=3e-3, l0=29.9, loss_recovered=0.9511, note="`mlp`, batch 512, λ 2.2"),
        Trial(lr=1e-2, l0=12.7, loss_recovered=0.8826, note="`mlp`, batch 512, λ 2.2; 69 % alive"),
    ),
    "saelens_gated": (
        Trial(lr=1e-3, l0=73.6, loss_recovered=0.9560, note="λ 2"),
        Trial(lr=3e-3, l0=32.4, loss_recovered=0.9436, note="λ 2", taken=True),
        Trial(lr=1e-2, l0=12.9, loss_recovered=0.9049, note="λ 2"),
    ),
    "batchtopk": (
        Trial(lr=1e-3, l0=30.0, loss_recovered=0.9330, note="k 32"),
        Trial(lr=3e-3, l0=30.2, loss_recovered=0.9520, note="k 32", taken=True),
        Trial(lr=1e-2, l0=30.5, loss_recovered=0.9479, note="k 32"),
    ),
    "jumprelu": (
        Trial(lr=3e-3, l0=16.7, loss_recovered=0.9139, note="l0_coefficient 1"),
        Trial(lr=3e-3, l0=27.3, loss_recovered=0.9433, note="l0_coefficient 0.4"),
        Trial(lr=1e-2, l0=28.1, loss_recovered=0.9548, note="l0_coefficient 0.4", taken=True),
        Trial(lr=1e-2, l0=32.2, loss_recovered=0.9567, note="the same, batch 512"),
        Trial(lr=2e-2, l0=41.1, loss_recovered=0.9596, note="the same, batch 512; 44 % alive"),
        Trial(lr=3e-2, l0=37.5, loss_recovered=0.9202, note="the same, batch 512; 24 % alive"),
    ),
}
