"""Sweeps: what is trained, what is skipped, and what the table says."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from run_results import fingerprint
from scipy.stats import t

from gated_plugin.errors import GatedError
from gated_plugin.recipes import Recipe
from gated_plugin.runs import Run
from gated_plugin.science import sweep as module
from gated_plugin.science.sweep import SweepResult, sweep
from gated_plugin.science.sweep_table import Row, summary

pytestmark = pytest.mark.usefixtures("unpacked_once", "one_thread")

PLAN = (
    "sweep.lambdas=[0.2, 2]",
    "sweep.seeds=[1, 2]",
    "sweep.baseline.lr=0.002",  # nested, as --set makes it
    "sweep.baseline_lambdas=[0.5, 1, 3]",
)
RUNS = [
    *(f"gated-seed{seed}-lambda{value}" for seed in (1, 2) for value in ("0.2", "2")),
    *(f"baseline-seed{seed}-lambda{value}" for seed in (1, 2) for value in ("0.5", "1", "3")),
]


@pytest.fixture(scope="module")
def recipe(tiny: Path) -> Recipe:
    return Recipe.load(tiny, PLAN)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Leaves out the picture, which takes longer than a tiny sweep."""
    monkeypatch.setattr(module, "draw_sweep", lambda rows, path: path)
    return monkeypatch


@pytest.fixture(scope="module")
def swept(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepResult, list]:
    lines: list[str] = []
    out = tmp_path_factory.mktemp("swept") / "x"
    return sweep(recipe, out, baseline=True, quiet=True, report=lines.append), lines


def test_every_arm_seed_and_lambda_is_an_ordinary_evaluated_run(
    swept: tuple[SweepResult, list],
) -> None:
    result, lines = swept
    assert sorted(folder.name for folder in (result.folder / "runs").iterdir()) == sorted(RUNS)
    settings = {}
    for name in RUNS:
        run = Run.open(result.folder / "runs" / name)
        run.require_evaluated()
        settings[name] = Recipe.load(run.recipe).settings
    ours, theirs = settings["gated-seed2-lambda0.2"], settings["baseline-seed2-lambda3"]
    assert (ours["sae.l1_coefficient"], ours["seed"], ours["lr"]) == (0.2, 2, 0.001)
    assert (theirs["sae.l1_coefficient"], theirs["seed"], theirs["lr"]) == (3, 2, 0.002)
    assert (theirs["sae.architecture"], theirs["sae.d_sae"]) == ("l1_baseline", 96)
    assert theirs["training_tokens"] == ours["training_tokens"]
    assert len(lines) == 5
    assert lines[0].startswith("Activations of the text stay in")
    assert lines[1] == "Group 1 of 4: gated, seed 1, λ 0.2, 2"


def test_the_table_has_a_tidy_line_for_each(swept: tuple[SweepResult, list]) -> None:
    result, _ = swept
    with result.table.open() as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["run"] for row in rows) == sorted(f"runs/{name}" for name in RUNS)
    for row in rows:
        found = json.loads((result.folder / row["run"] / "evaluation.json").read_text())
        assert float(row["l0"]) == found["l0"]
        assert [float(row["l0_low"]), float(row["l0_high"])] == found["l0_interval"]
        assert float(row["loss_recovered"]) == found["loss_recovered"]
        assert int(row["tokens"]) == 1280
        assert float(row["training_seconds"]) > 0
        arm, seed, value = row["run"].removeprefix("runs/").split("-")
        assert (arm, f"seed{row['seed']}", f"lambda{float(row['lambda']):g}") == (arm, seed, value)
    assert result.figure.read_bytes().startswith(b"\x89PNG")
    assert json.loads((result.folder / "summary.json").read_text()) == json.loads(
        json.dumps(result.summary)
    )


def test_nothing_is_left_of_the_activations(swept: tuple[SweepResult, list]) -> None:
    assert sorted(file.name for file in swept[0].folder.iterdir()) == [
        "figure.png",
        "runs",
        "summary.json",
        "sweep.yaml",
        "table.csv",
    ]


def test_the_same_command_trains_nothing_again(
    swept: tuple[SweepResult, list], recipe: Recipe, undrawn: pytest.MonkeyPatch
) -> None:
    result, _ = swept
    undrawn.setattr(module, "train_together", None)
    undrawn.setattr(module, "evaluate_all", None)
    again = sweep(recipe, result.folder, baseline=True, quiet=True)
    assert again == result
    kept = Recipe.load(result.folder / "sweep.yaml")  # the flags are in it
    assert sweep(kept, result.folder, baseline=True, quiet=True) == result


def test_a_killed_sweep_goes_on_with_the_group_that_was_cut(
    swept: tuple[SweepResult, list], recipe: Recipe, tmp_path: Path, undrawn: pytest.MonkeyPatch
) -> None:
    whole, _ = swept
    genuine, groups = module.evaluate_all, iter(range(1))
    undrawn.setattr(module, "evaluate_all", lambda *a, **k: (next(groups), genuine(*a, **k))[1])
    with pytest.raises(StopIteration):
        sweep(recipe, tmp_path / "x", quiet=True)
    assert (tmp_path / "x" / "activations").exists()
    undrawn.setattr(module, "evaluate_all", genuine)
    lines: list[str] = []
    sweep(recipe, tmp_path / "x", quiet=True, report=lines.append)
    assert lines == ["Group 2 of 2: gated, seed 2, λ 0.2, 2"]
    assert not (tmp_path / "x" / "activations").exists()
    for name in RUNS[:4]:
        ours, theirs = (of / "runs" / name for of in (tmp_path / "x", whole.folder))
        assert without_seconds(ours) == without_seconds(theirs)


def without_seconds(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = fingerprint(path)
    for line in found["log"]:
        del line["training_seconds"]
    return found


def test_flags_go_before_the_recipe_and_more_lambdas_add_runs(
    recipe: Recipe, tmp_path: Path, undrawn: pytest.MonkeyPatch
) -> None:
    one = sweep(recipe, tmp_path / "x", lambdas=[0.7], seeds=[5], quiet=True)
    assert [row.run for row in one.rows] == ["runs/gated-seed5-lambda0.7"]
    more = sweep(recipe, tmp_path / "x", lambdas=[0.7, 1.1], seeds=[5], quiet=True)
    assert more.rows[0] == one.rows[0]
    assert more.rows[1].lambda_ == 1.1
    again = sweep(recipe, tmp_path / "x", lambdas=[0.7], seeds=[5], quiet=True)
    assert again.rows == more.rows
    assert again.summary["arms"]["gated"]["lambdas"] == [0.7, 1.1]


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a sweep would train, group by group; nothing is."""
    given: list[dict[str, Any]] = []
    monkeypatch.setattr(
        module,
        "train_together",
        lambda recipes, folders, **k: given.append({"recipes": recipes, **k}),
    )
    monkeypatch.setattr(module, "evaluate_all", lambda *a, **k: [])
    monkeypatch.setattr(module, "_finish", lambda *a: None)
    return given


def test_the_papers_lambda_is_swept_where_the_recipe_states_that(
    tiny: Path, tmp_path: Path, groups: list[dict[str, Any]]
) -> None:
    text = tiny.read_text().replace("l1_coefficient: 0.8", "paper_lambda: 0.003125")
    (tmp_path / "paper.yaml").write_text(text)
    recipe = Recipe.load(tmp_path / "paper.yaml")
    sweep(recipe, tmp_path / "x", lambdas=[0.01, 0.02], baseline=True, quiet=True)
    found = [[recipe.sae["l1_coefficient"] for recipe in group["recipes"]] for group in groups]
    assert found == [[2.56, 5.12], [2.56, 5.12]]


def test_the_baseline_keeps_what_its_architecture_has_and_no_more(
    tiny: Path, tmp_path: Path, groups: list[dict[str, Any]]
) -> None:
    overrides = ["sae.l1_warm_up_steps=3", "sae.encoder_init_norm=0.2", "sweep.lambdas=[1]"]
    overrides += ["sweep.baseline={sae.architecture: standard, adam_beta1: 0.9}"]
    overrides += ["sweep.baseline.sae.d_sae=80"]
    sweep(Recipe.load(tiny, overrides), tmp_path / "x", baseline=True, quiet=True)
    (theirs,) = groups[1]["recipes"]
    assert theirs.sae == {
        "architecture": "standard",
        "d_in": 256,
        "d_sae": 80,
        "l1_coefficient": 1.0,
        "l1_warm_up_steps": 3,
        "normalize_activations": "expected_average_only_in",
    }
    assert theirs.runner["adam_beta1"] == 0.9
    (ours,) = groups[0]["recipes"]
    assert ours.sae["encoder_init_norm"] == 0.2


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ((), "names no λ to sweep; give some, such as --lambda 0.5,1,2, or write them"),
        (("sweep.lambdas=[1]", "sae.target_l0=20"), "give --set sae.target_l0=null."),
        (("sweep.lambdas=[1, 0]",), "sweep.lambdas has 0.0; give λ above 0."),
        (("sweep.seeds=[1, 1]",), "sweep.seeds has 1 more than once; give each value once."),
        (("sweep.lamdas=[1]",), "the nearest valid one is 'sweep.lambdas'"),
        (("sweep.lambdas=[1]", "sweep.baseline={learning_rate: 1}"), "learning_rate"),
        (
            ("sweep.lambdas=[1]", "sweep.baseline={sae.architecture: l1}"),
            "unknown sae.architecture",
        ),
    ],
)
def test_a_sweep_that_cannot_be_is_one_sentence_before_anything_is_trained(
    overrides: tuple[str, ...], sentence: str, tiny: Path, tmp_path: Path
) -> None:
    with pytest.raises(GatedError) as caught:
        sweep(Recipe.load(tiny, overrides), tmp_path / "x", baseline=True, quiet=True)
    assert sentence in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_a_folder_of_something_else_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(GatedError, match="is not empty and no sweep; give another --out"):
        sweep(recipe, tmp_path, quiet=True)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_sweep_of_another_recipe_is_refused(swept: tuple[SweepResult, list], tiny: Path) -> None:
    other = Recipe.load(tiny, [*PLAN, "lr=0.002"])
    with pytest.raises(GatedError, match=r"was started with lr = 0.001, not 0.002; go on with"):
        sweep(other, swept[0].folder, quiet=True)


def test_without_room_the_language_model_reads_the_text_for_each_group(
    recipe: Recipe,
    tmp_path: Path,
    groups: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage._replace(free=1000))
    lines: list[str] = []
    sweep(recipe, tmp_path / "x", lambdas=[1], quiet=True, report=lines.append)
    assert [group["cache"] for group in groups] == [None, None]
    assert "do not fit on the disk (1.0 kB free): the language model reads it anew" in lines[0]


def made_up(arm: str, seed: int, l0: float, needs: float, gamma: float | None = 1.0) -> Row:
    """An SAE on the curve 0.5 + 0.1 log(L0 / needs)."""
    ends = dict.fromkeys(
        f"{name}_{end}"
        for name in ("l0", "loss_recovered", "gamma", "fvu")
        for end in ("low", "high")
    )
    return Row(
        arm=arm, seed=seed, lambda_=1 / max(l0, 1), l0=l0, gamma=gamma, fvu=0.1, alive=0.5, n_dead=1,
        n_dense=0, tokens=10, training_seconds=1.0, run="", **ends,
        loss_recovered=0.5 + 0.1 * math.log(max(l0, 1) / needs),
    )  # fmt: skip


def test_the_summary_has_means_and_students_intervals_over_seeds() -> None:
    needs = {1: 2.0, 2: 2.5, 3: 4.0}
    rows = [made_up("gated", s, l0, 1.0) for s in needs for l0 in (8, 20, 90)]
    rows += [made_up("baseline", s, l0, k) for s, k in needs.items() for l0 in (10, 40, 200)]
    rows += [made_up("gated", 1, 0, 1.0, gamma=None)]  # never fires
    found = summary(rows, {"gated": [1], "baseline": [1, 2]})
    ratio = found["l0_ratio"]
    ratios = [1 / k for k in needs.values()]
    assert list(ratio["seeds"].values()) == pytest.approx(ratios)
    mean = sum(ratios) / 3
    half = t.ppf(0.975, 2) * math.sqrt(sum((r - mean) ** 2 for r in ratios) / 2) / math.sqrt(3)
    assert ratio["mean"] == pytest.approx(mean)
    assert ratio["interval"] == pytest.approx((mean - half, mean + half))
    at_32 = found["arms"]["baseline"]["at_l0"]["32"]["loss_recovered"]
    assert at_32["seeds"]["3"] == pytest.approx(0.5 + 0.1 * math.log(32 / 4))
    assert found["arms"]["gated"]["at_l0"]["64"]["gamma"]["mean"] == pytest.approx(1.0)


def test_one_seed_has_no_interval_and_one_arm_no_ratio() -> None:
    found = summary([made_up("gated", 1, l0, 1.0) for l0 in (8, 20)], {"gated": [1]})
    assert "l0_ratio" not in found
    at = found["arms"]["gated"]["at_l0"]
    assert at["16"]["loss_recovered"]["interval"] is None
    assert at["64"]["loss_recovered"] == {"mean": None, "interval": None, "seeds": {"1": None}}
