"""`gated-hub plan`: one table for a run, one line for each variant, one JSON object."""

from __future__ import annotations

import json
from collections.abc import Callable

from gated_hub_process import Ended

GatedHub = Callable[..., Ended]


def test_a_run_is_shown_part_by_part_with_totals(gated_hub: GatedHub) -> None:
    ended = gated_hub("plan", "gemma-7b/resid-20-lambda-0.0005", "--gpu", "H200")
    assert (ended.code, ended.stderr) == (0, "")
    said = ended.stdout
    assert "Tables 3-4: gated, resid 20, λ 0.0005" in said
    assert "805,702,656 parameters, 3.2 GB published" in said
    assert "1,228,800,000 tokens in 300,000 steps" in said
    for title in ("Memory", "Disk", "Work"):
        assert f"\n{title}\n" in said
    assert said.count("\ntotal ") == 3
    assert "counted, not measured: the language model is taken to reach 40%" in said


def test_what_does_not_fit_is_said_with_a_way_out(gated_hub: GatedHub) -> None:
    words = ("plan", "gemma-7b/resid-20-lambda-0.0005", "--gpu", "A100")
    words += ("--set", "n_batches_in_buffer=256")
    assert "which has 80.0 GB: too much; try --set act_store_device=cpu" in gated_hub(*words).stdout
    moved = gated_hub(*words, "--set", "act_store_device=cpu").stdout
    assert "which has 80.0 GB\n" in moved


def test_a_recipe_with_variants_is_a_price_list(gated_hub: GatedHub) -> None:
    lines = gated_hub("plan", "gelu-1l").stdout.splitlines()
    assert lines[0].split() == ["variant", "parameters", "memory", "FLOP", "time", "from"]
    assert [line.split()[0] for line in lines[1:4]] == ["l0-8", "l0-16", "l0-32"]
    assert "All 10 one after the other: " in lines[-2]
    assert lines[-1] == "One of them: gated-hub plan gelu-1l/l0-8"


def test_a_price_list_marks_what_does_not_fit(gated_hub: GatedHub) -> None:
    lines = gated_hub("plan", "gelu-1l", "--gpu", "A100", "--set", "sae.d_sae=16777216").stdout
    assert " GB *  " in lines
    assert "* More than one A100 has; try --set act_store_device=cpu" in lines


def test_json_is_one_object(gated_hub: GatedHub) -> None:
    one = json.loads(gated_hub("plan", "gelu-1l/l0-8", "--json").stdout)
    assert one["recipe"] == "gelu-1l/l0-8"
    assert one["memory_total"] == sum(part["bytes"] for part in one["memory"] if part["counts"])
    assert len(json.loads(gated_hub("plan", "gelu-1l", "--json").stdout)["plans"]) == 10


def test_a_mistake_is_one_sentence(gated_hub: GatedHub) -> None:
    ended = gated_hub("plan", "gelu-1l/l0-9")
    assert (ended.code, ended.stdout) == (1, "")
    assert ended.stderr.startswith("Error: gelu-1l has no variant 'l0-9'; the nearest are l0-8")
