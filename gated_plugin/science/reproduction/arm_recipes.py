"""The recipe of an arm: at a site, with a seed, and one value of its knob."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from gated_plugin.recipe_files import find, parted, read
from gated_plugin.recipes import Recipe
from gated_plugin.runs import Run
from gated_plugin.science.reproduction.design import Arm, Design, Share, Site
from gated_plugin.variants import chosen

SAE_OF_A_SITE = (
    "d_in",
    "d_sae",
    "dtype",
    "apply_b_dec_to_input",
    "normalize_activations",
    "reshape_activations",
)
"""Keys of `sae` that every architecture has; the others are for arms to set."""
OF_ARMS = (
    "lr",
    "lr_end",
    "lr_scheduler_name",
    "lr_warm_up_steps",
    "lr_decay_steps",
    "n_restart_cycles",
    "adam_beta1",
    "adam_beta2",
)
"""Other keys that arms set, or leave at SAELens' defaults."""


def site_recipe(design: Design, site: Site) -> Recipe:
    """Data and shape of a site, with the overrides of the whole reproduction, and nothing of what
    arms decide.

    Raises:
        GatedError: as `Recipe.load`.
    """
    return _loaded(site.recipe, (*_texts(site.settings), *design.overrides))


def batch_size(design: Design, site: Site) -> int:
    """Tokens of one training step."""
    size: int = site_recipe(design, site).runner_config().train_batch_size_tokens
    return size


def steps_of(design: Design, arm: Arm) -> int:
    """Training steps of an arm; the most of them where a clock says how many fit."""
    return max(1, round(design.scale.steps * arm.tokens))


def arm_recipe(
    design: Design,
    site: Site,
    arm: Arm,
    *,
    seed: int,
    steps: int,
    value: float,
    start: Run | None = None,
) -> Recipe:
    """An arm at one value of its knob.

    Args:
        start: whose SAE is the start, if the arm starts from another; the knob is then that one's.

    Raises:
        GatedError: the arm's settings do not fit the site's recipe.
    """
    own: dict[str, Any] = {arm.knob: value}
    if start is not None:
        own = {"from_pretrained_path": str(start.sae)}
    settings = {
        **site.settings,
        "name": f"{site.name}-{arm.name}-seed-{seed}",
        "seed": seed,
        "training_tokens": steps * batch_size(design, site),
        "sae.d_sae": round(site_recipe(design, site).sae["d_sae"] * arm.width),
        "evaluation.tokens": design.scale.evaluation_tokens,
        **_resolved(arm.settings, steps),
        **own,
    }
    return _loaded(site.recipe, (*_texts(settings), *_but_width(design.overrides)))


@lru_cache
def _loaded(source: str, overrides: tuple[str, ...]) -> Recipe:
    return Recipe.load(source, (*_without_an_arm(source), *overrides))


def _without_an_arm(source: str) -> list[str]:
    """Overrides that take away what the recipe says of architecture and optimizer."""
    from sae_lens.config import LanguageModelSAERunnerConfig

    called, variant = parted(source)
    raw = chosen(read(find(called)), variant, called)
    defaults = {f.name: f.default for f in fields(LanguageModelSAERunnerConfig)}
    settings = {key: defaults[key] for key in OF_ARMS if key in raw}
    if isinstance(raw.get("sae"), dict):
        settings["sae"] = {key: raw["sae"][key] for key in SAE_OF_A_SITE if key in raw["sae"]}
    return _texts(settings)


def _but_width(overrides: Sequence[str]) -> list[str]:
    """The width is the site's; an arm has its multiple of it."""
    return [text for text in overrides if not text.startswith("sae.d_sae=")]


def _resolved(settings: Any, steps: int) -> Any:
    """With every `Share` as a number of steps."""
    if isinstance(settings, Share):
        return settings.steps(steps)
    if isinstance(settings, dict):
        return {key: _resolved(value, steps) for key, value in settings.items()}
    if isinstance(settings, list):
        return [_resolved(value, steps) for value in settings]
    return settings


def _texts(settings: Any) -> list[str]:
    """`key=value`, as `Recipe.load` takes overrides."""
    return [f"{key}={_yaml(value)}" for key, value in settings.items()]


def _yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"))
    return text.strip().removesuffix("...").strip()


def relative(path: Path, to: Path) -> str:
    """For tables that leave this machine."""
    return path.resolve().relative_to(to.resolve()).as_posix()
