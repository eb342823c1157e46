"""`gated-hub sweep`: many λ, seeds and a baseline off one reading of the text.

sweeps/x/
  sweep.yaml      the recipe, with the λ, seeds and baseline of the sweep in it
  runs/           a run folder per SAE, as `gated-hub train` and `eval` make it
  table.csv       a line per SAE (`sweep_table.Row`)
  figure.png      loss recovered with the fronts, γ, and alive, each against L0
  summary.json    figures at fixed L0, and the ratio of L0 at equal loss recovered, over seeds
  activations/    what the language model made of the text, until the sweep is finished

The λ of one arm and one seed are a group (`group`): it is finished as a whole, and skipped when the
command is given again.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from gated_plugin.activation_cache import bytes_on_disk
from gated_plugin.errors import GatedError
from gated_plugin.progress import byte_size, clock
from gated_plugin.recipes import Recipe
from gated_plugin.runs import UNFINISHED, Run, beside, write_json
from gated_plugin.science.evaluation import evaluate_all
from gated_plugin.science.group import train_together
from gated_plugin.science.sweep_plots import draw_sweep
from gated_plugin.science.sweep_table import Row, row_of, summary, write_table
from gated_plugin.sweep_plan import SweepPlan
from gated_plugin.variants import put

BASELINE = "baseline"
BASELINE_WIDTH = 1.5
"""Times ours: equal compute, since a Gated SAE has two encoders' worth (section 4.1)."""


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep."""

    folder: Path
    rows: tuple[Row, ...]
    summary: dict[str, Any]
    """As in `summary.json`."""

    @property
    def table(self) -> Path:
        return self.folder / "table.csv"

    @property
    def figure(self) -> Path:
        return self.folder / "figure.png"


class Arm(NamedTuple):
    """One way of training, at several λ."""

    name: str
    raw: dict[str, Any]
    """Its recipe but for λ and seed."""
    lambdas: tuple[float, ...]

    def recipe(self, lambda_: float, seed: int) -> Recipe:
        """That of one SAE."""
        raw = deepcopy(self.raw)
        raw["seed"] = seed
        raw["sae"]["paper_lambda" if "paper_lambda" in raw["sae"] else "l1_coefficient"] = lambda_
        return Recipe.of(raw, self.name)


class Group(NamedTuple):
    """The SAEs of one arm and one seed."""

    arm: Arm
    seed: int
    runs: tuple[Run, ...]
    """One for each λ of the arm."""

    @property
    def recipes(self) -> list[Recipe]:
        return [self.arm.recipe(lambda_, self.seed) for lambda_ in self.arm.lambdas]

    @property
    def is_finished(self) -> bool:
        return all(run.is_trained and run.evaluation.exists() for run in self.runs)


def sweep(
    recipe: Recipe,
    out: Path,
    *,
    lambdas: Sequence[float] = (),
    seeds: Sequence[int] = (),
    baseline: bool = False,
    quiet: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> SweepResult:
    """Train and evaluate the SAEs of a sweep into `out`; go on with what is there.

    Args:
        lambdas, seeds: instead of those of `recipe.sweep`.
        baseline: train the baseline of `recipe.sweep` too, on the same text.
        report: takes a line about each group.

    Raises:
        GatedError: there is no λ, `out` holds something else or a sweep of another recipe, or a
            group fails (`group.train_together`, `evaluation.evaluate_all`).
        Interrupted: stopped by the user; groups that were finished stay.
    """
    plan = replace(
        recipe.sweep,
        lambdas=tuple(lambdas) or recipe.sweep.lambdas,
        seeds=tuple(seeds) or recipe.sweep.seeds or (recipe.runner_config().seed,),
    )
    arms = _arms(recipe, plan, baseline)
    groups = [
        Group(arm, seed, tuple(_run(out, arm, seed, lambda_) for lambda_ in arm.lambdas))
        for seed in plan.seeds
        for arm in arms
    ]
    for group in groups:
        group.recipes  # noqa: B018 # a recipe that is not valid is refused before the first is trained
    _begin(recipe, plan, out)
    _train(groups, out, quiet, report)
    return _finish([arm.name for arm in arms], out)


def _arms(recipe: Recipe, plan: SweepPlan, baseline: bool) -> list[Arm]:
    if recipe.synthetic:
        raise GatedError(
            f"The recipe {recipe.name} is of synthetic activations, and a sweep compares by the loss "
            "of a language model; give --set synthetic=false."
        )
    if not plan.lambdas:
        raise GatedError(
            f"The recipe {recipe.name} names no λ to sweep; give some, such as --lambda "
            "0.5,1,2, or write them below `sweep:` as `lambdas`."
        )
    if recipe.sae.get("target_l0") is not None:
        raise GatedError(
            f"The recipe {recipe.name} steers λ to an L0 of {recipe.sae['target_l0']:g}, so that "
            "every λ would end alike; give --set sae.target_l0=null."
        )
    raw = {key: deepcopy(value) for key, value in recipe.raw.items() if key != "sweep"}
    ours = Arm(str(recipe.sae["architecture"]), raw, plan.lambdas)
    if not baseline:
        return [ours]
    theirs = Arm(BASELINE, _baseline(recipe, plan), plan.baseline_lambdas or plan.lambdas)
    return [ours, theirs]


def _baseline(recipe: Recipe, plan: SweepPlan) -> dict[str, Any]:
    """The recipe with the baseline's own settings, less those of `sae` that only ours has."""
    from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class

    settings: dict[str, Any] = {
        "sae.architecture": "l1_baseline",
        "sae.d_sae": round(BASELINE_WIDTH * recipe.sae["d_sae"]),
        **_dotted(plan.baseline),
    }
    raw = {key: deepcopy(value) for key, value in recipe.raw.items() if key != "sweep"}
    if settings["sae.architecture"] in SAE_TRAINING_CLASS_REGISTRY:
        config = get_sae_training_class(settings["sae.architecture"])[1]
        known = {f.name for f in fields(config)} | {"paper_lambda"}
        raw["sae"] = {key: value for key, value in raw["sae"].items() if key in known}
    for key, value in settings.items():
        put(raw, key, value, "sweep.baseline")
    return raw


def _dotted(settings: dict[str, Any]) -> dict[str, Any]:
    """`--set sweep.baseline.sae.d_sae=…` makes sections; here they are dotted keys again."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{below}": v for below, v in _dotted(value).items()}
        else:
            flat[key] = value
    return flat


RUN = re.compile(r"(?P<arm>.+)-seed(?P<seed>\d+)-lambda(?P<lambda_>\d[\d.]*(e[+-]\d+)?)")
"""The name of a run folder, as `_run` makes it."""


def _run(out: Path, arm: Arm, seed: int, lambda_: float) -> Run:
    return Run(out / "runs" / f"{arm.name}-seed{seed}-lambda{lambda_:.15g}")


def _begin(recipe: Recipe, plan: SweepPlan, out: Path) -> None:
    """Writes `sweep.yaml`, unless the folder is another's."""
    file = out / "sweep.yaml"
    if file.exists():
        _require_same(recipe, Recipe.load(file), file)
    elif out.exists() and any(not each.name.endswith(UNFINISHED) for each in out.iterdir()):
        raise GatedError(f"{out} is not empty and no sweep; give another --out.")
    whole = Recipe.of({**recipe.raw, "sweep": _listed(asdict(plan))}, recipe.name)
    with beside(file) as unfinished:
        unfinished.write_text(whole.to_yaml(), encoding="utf-8")


def _require_same(given: Recipe, there: Recipe, file: Path) -> None:
    ours = {**given.settings, "sweep.baseline": given.sweep.baseline}
    theirs = {**there.settings, "sweep.baseline": there.sweep.baseline}
    for key in sorted(ours.keys() | theirs.keys()):
        if ours.get(key) != theirs.get(key):
            raise GatedError(
                f"{file.parent} was started with {key} = {theirs.get(key)!r}, not "
                f"{ours.get(key)!r}; go on with `gated-hub sweep {file} --out {file.parent}`, or "
                "give another --out."
            )


def _listed(values: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists, which YAML has."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def _train(groups: Sequence[Group], out: Path, quiet: bool, report: Callable[[str], None]) -> None:
    missing = [group for group in groups if not group.is_finished]
    cache = _cache(missing, out, report)
    started = time.monotonic()
    for done, group in enumerate(missing):
        left = (time.monotonic() - started) / done * (len(missing) - done) if done else None
        report(
            f"Group {len(groups) - len(missing) + done + 1} of {len(groups)}: {group.arm.name}, "
            f"seed {group.seed}, λ {', '.join(f'{value:g}' for value in group.arm.lambdas)}"
            + ("" if left is None else f" (all groups: about {clock(left)} left)")
        )
        recipes = group.recipes
        train_together(recipes, [run.path for run in group.runs], cache=cache, quiet=quiet)
        new = [run for run in group.runs if not run.evaluation.exists()]
        evaluate_all(new, recipes[0], quiet=quiet)


def _cache(missing: Sequence[Group], out: Path, report: Callable[[str], None]) -> Path | None:
    """Where activations are kept, if later groups have use for them and the disk has room."""
    folder = out / "activations"
    if len(missing) < 2:
        return folder if folder.exists() else None
    needed = bytes_on_disk(missing[0].recipes[0].runner_config())
    free = shutil.disk_usage(out).free
    if needed > free and not folder.exists():
        report(
            f"The activations of the text ({byte_size(needed)}) do not fit on the disk "
            f"({byte_size(free)} free): the language model reads it anew for each group."
        )
        return None
    report(f"Activations of the text stay in {folder} until the end: {byte_size(needed)}")
    return folder


def _finish(first: Sequence[str], out: Path) -> SweepResult:
    """Table, figure and summary of all that is finished in the folder, by this call or before it.

    Args:
        first: arms in the order in which they are told; others come after them.
    """
    rows = []
    for folder in (out / "runs").iterdir():
        named, run = RUN.fullmatch(folder.name), Run(folder)
        if named and run.is_trained and run.evaluation.exists():
            seed, lambda_ = int(named["seed"]), float(named["lambda_"])
            rows.append(row_of(run, out, arm=named["arm"], seed=seed, lambda_=lambda_))
    arms = [*first, *sorted({row.arm for row in rows} - set(first))]
    rows.sort(key=lambda row: (arms.index(row.arm), row.seed, row.lambda_))
    lambdas = {arm: sorted({row.lambda_ for row in rows if row.arm == arm}) for arm in arms}
    result = SweepResult(out, tuple(rows), summary(rows, lambdas))
    write_table(rows, result.table)
    draw_sweep(rows, result.figure)
    write_json(out / "summary.json", result.summary)
    shutil.rmtree(out / "activations", ignore_errors=True)
    return result
