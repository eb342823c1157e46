"""Our SAEs beside the paper's rows, in the paper's units."""

from __future__ import annotations

import json
import re

import pytest
from entries import entry

from gated_plugin.errors import GatedError
from gated_plugin.hub.cards import paper
from gated_plugin.hub.cards.parity import Figures, parity, records, table

MLP = {"hook": "blocks.20.hook_mlp_out", "id": "mlp", "l0": 39.9}


def test_the_bundled_tables_are_those_of_the_paper():
    counts = {
        model: [
            sum(row.arch == arch for row in paper.rows(model)) for arch in ("gated", "baseline")
        ]
        for model in paper.TOKENS
    }
    assert counts == {"gemma-7b": [45, 11], "pythia-2.8b": [20, 9]}


def test_the_papers_figures_agree_with_each_other_up_to_their_last_digits():
    odd = []
    for row in (row for model in paper.TOKENS for row in paper.rows(model)):
        zero = row.ce_zero - row.ce_clean
        recovered = 100 * (1 - (row.ce_sae - row.ce_clean) / zero)
        rounding = 0.005 + 100 * 2e-4 / zero
        if recovered != pytest.approx(row.loss_recovered, abs=rounding):
            odd.append((row.model, row.arch, row.site, row.layer, row.l0))
    assert odd == [
        # Two rows whose cross-entropies with the SAE look swapped, and one off by 0.0017 nats.
        ("gemma-7b", "gated", "mlp", 6, 45.2),
        ("gemma-7b", "gated", "mlp", 6, 106.0),
        ("pythia-2.8b", "baseline", "mlp", 16, 54.9),
    ]


def test_a_row_of_the_paper_is_read_whole():
    (row,) = [row for row in paper.rows("gemma-7b") if row.l0 == 38.3]
    assert row == paper.PaperRow(
        model="gemma-7b", arch="baseline", site="mlp", layer=20, l1=0.00004, lr=0.00075, l0=38.3,
        loss_recovered=85.18, ce_clean=2.5426, ce_sae=2.5641, ce_zero=2.6881, width=196608,
        alive=95.73, gamma=0.889, tokens=1_228_800_000,
    )  # fmt: skip


def test_an_unknown_model_of_the_paper_is_refused_with_the_known():
    with pytest.raises(GatedError, match=r"'gelu-1l'; give one of gemma-7b, pythia-2\.8b"):
        parity([entry()], "gelu-1l")


def test_an_sae_stands_beside_the_papers_of_its_site_and_layer_and_nearest_l0():
    (row,) = parity([entry()], "gemma-7b")
    assert row.sae_id == "resid_post/layer_20/width_131k/l0_67"
    assert row.ours == Figures(
        l1=pytest.approx(0.0003), l0=67.0, loss_recovered=pytest.approx(99.2),
        alive=pytest.approx(99.11), gamma=1.003, width=131072, tokens=1_228_800_000,
    )  # fmt: skip
    assert row.gated == Figures(0.0003, 67.3, 99.30, 99.33, 1.013, 131072, 1_228_800_000)
    assert row.difference == Figures(
        l1=pytest.approx(0), l0=pytest.approx(-0.3), loss_recovered=pytest.approx(-0.1),
        alive=pytest.approx(-0.22), gamma=pytest.approx(-0.01), width=0, tokens=0,
    )  # fmt: skip
    assert row.baseline is None


def test_the_baseline_of_the_nearest_l0_stands_beside_where_there_is_one():
    (row,) = parity([entry(**MLP)], "gemma-7b")
    assert row.gated is not None and row.baseline is not None
    assert (row.gated.l0, row.baseline.l0, row.baseline.gamma) == (40.8, 38.3, 0.889)


@pytest.mark.parametrize(
    ("model", "name", "hook", "l0"),
    [
        ("pythia-2.8b", "EleutherAI/pythia-2.8b", "blocks.16.attn.hook_z", 57.8),
        ("pythia-2.8b", "pythia-2.8b", "blocks.28.hook_resid_post", 46.6),
        ("gemma-7b", "google/gemma-7b", "blocks.6.hook_mlp_out", 45.2),
    ],
)
def test_sites_and_models_are_matched_by_their_names(model, name, hook, l0):
    (row,) = parity([entry(model=name, hook=hook, l0=50.0)], model)
    assert row.gated is not None and row.gated.l0 == l0
    assert row.gated.tokens == {"gemma-7b": 300_000, "pythia-2.8b": 400_000}[model] * 4096


@pytest.mark.parametrize(
    "hook",
    ["blocks.21.hook_resid_post", "blocks.20.hook_resid_pre", "blocks.20.mlp.hook_post", "x", None],
)
def test_where_the_paper_has_nothing_nothing_is_compared(hook):
    (row,) = parity([entry(hook=hook)], "gemma-7b")
    assert (row.gated, row.difference, row.baseline) == (None, None, None)
    assert row.ours.l0 == 67.0
    assert "no row of the paper" in table([row])


@pytest.mark.parametrize("model", ["gemma-7b-it", "alice/gemma-7b", "pythia-2.8b", None])
def test_an_sae_of_another_language_model_is_refused(model):
    with pytest.raises(GatedError, match="say nothing of it; leave out --paper") as refusal:
        parity([entry(), entry(model=model)], "gemma-7b")
    assert (model or "an unknown language model") in str(refusal.value)


def test_what_an_entry_does_not_say_is_not_compared():
    steered = entry(training__target_l0=60.0, alive=None, training__tokens=None)
    (row,) = parity([steered], "gemma-7b")
    assert (row.ours.l1, row.ours.alive, row.ours.tokens) == (None, None, None)
    assert row.difference is not None
    assert (row.difference.l1, row.difference.alive, row.difference.tokens) == (None, None, None)
    assert row.difference.l0 == pytest.approx(-0.3)


def test_the_table_is_aligned_and_has_a_line_per_sae_of_each_side():
    lines = table(parity([entry(), entry(**MLP)], "gemma-7b")).splitlines()
    assert [line.split("  ")[0] or line.split("  ")[1] for line in lines[1:]] == [
        "resid_post/layer_20/width_131k/l0_67", "paper", "difference",
        "mlp", "paper", "difference", "paper, baseline",
    ]  # fmt: skip
    ours, theirs = (re.sub(r" +", " ", line) for line in lines[1:3])
    assert ours.endswith("l0_67 0.0003 67.0 99.20 99.11 1.003 131,072 1,228,800,000")
    assert theirs == " paper 0.0003 67.3 99.30 99.33 1.013 131,072 1,228,800,000"
    assert lines[3].split()[2:7] == ["-0.3", "-0.10", "-0.22", "-0.010", "+0"]
    assert len({len(line) for line in lines}) == 1


def test_the_records_are_json():
    (record,) = json.loads(json.dumps(records(parity([entry()], "gemma-7b"))))
    assert record["sae_id"] == entry()["id"]
    assert record["gated"]["l0"] == 67.3
    assert record["difference"]["l0"] == pytest.approx(-0.3)
    assert record["baseline"] is None
