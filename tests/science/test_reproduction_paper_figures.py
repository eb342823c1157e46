"""What is said about the paper's tables is in them."""

from __future__ import annotations

import math

from gated_plugin.science.reproduction import paper_figures


def test_shrinkage_is_the_range_of_gamma_where_both_arms_are() -> None:
    """The least is that of Gemma-7B attention 6, the most of Pythia-2.8B resid 20. Both arms are at
    Gemma mlp 20, attn 6 and 20; Pythia attn 4 and 16, mlp 12 and 16, resid 4, 12, 16 and 20."""
    assert paper_figures.shrinkage().endswith("0.720–0.986 on the same 11 hook points")


def test_the_share_of_features_is_interpolated_in_log_l0() -> None:
    """Gemma-7B attention 6: the baseline's 85.42 at L0 54.6 is Gated's between 82.28 at 8.9 and
    85.54 at 16.4."""
    share = (85.42 - 82.28) / (85.54 - 82.28)
    l0 = math.exp(math.log(8.9) + share * math.log(16.4 / 8.9))
    least = l0 / 54.6
    ends = paper_figures.share_of_features().split("tables ")[1].split(" of")[0].split("–")
    assert float(ends[0]) <= round(least, 2) <= float(ends[1])


def test_gated_is_ahead_of_every_baseline_of_the_tables() -> None:
    text = paper_figures.advantage()
    least, most = text.removesuffix(" percentage points more").split(", ")[-1].split(" to ")
    assert 0 < float(least) < float(most)
