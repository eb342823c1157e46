"""What a reproduction is made of: sites, arms, parts, and how much of each.

An arm is one way of training a dictionary, trained at several values of its knob, for every seed.
The arms themselves are in `arms`, all else in `settings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gated_plugin.errors import GatedError

BEFORE = "before"
"""Stands for the arm before, in `Part.compared_with`."""

OF_A_RUN = ("name", "seed", "training_tokens", "from_pretrained_path")
"""Recipe keys that differ between the runs of one arm, or between scales."""


@dataclass(frozen=True)
class Share:
    """A number of steps, given as a share of the run's."""

    of_run: float

    def steps(self, total: int) -> int:
        """At least 1, so that a short run has every phase of a long one."""
        return max(1, round(self.of_run * total))


@dataclass(frozen=True)
class Knobs:
    """Values of an arm's knob; an empty tuple leaves the arm out."""

    full: tuple[float, ...]
    quick: tuple[float, ...]

    def of(self, scale: str) -> tuple[float, ...]:
        """Those of the scale `full` or `quick`."""
        values: tuple[float, ...] = getattr(self, scale)
        return values


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of the search for an arm's learning rate: one seed, at the site `resid`."""

    lr: float
    l0: float
    loss_recovered: float
    note: str = ""
    """What else was different, if anything."""
    taken: bool = False
    """Whether the arm has its settings."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of training a dictionary."""

    name: str
    title: str
    """As tables and legends print it."""
    settings: Mapping[str, Any]
    """Recipe keys over the site's recipe; a `Share` becomes steps."""
    knob: str
    """The recipe key that moves L0."""
    values: Mapping[str, Knobs]
    """By site."""
    cost: float
    """Seconds of one core for a step of 1024 tokens at 256 → 2048 (`arms.STEP_COSTS`)."""
    width: float = 1.0
    """Times the width of the site's recipe."""
    tokens: float = 1.0
    """Times the tokens of the scale."""
    starts_from: str | None = None
    """An arm whose SAE of the same site, seed and knob is the start."""
    as_long_as: tuple[str, ...] = ()
    """Arms whose cheapest, in seconds, says how many tokens fit (`clock`)."""
    search: tuple[Trial, ...] = ()
    """How its learning rate was found."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A hook point of a language model."""

    name: str
    title: str
    recipe: str
    """A recipe file, or the name of a bundled one: data and shape, and what all arms share. What
    arms decide is not taken from it (`arm_recipes`)."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Recipe keys over it."""
    cost: float = 1.0
    """Times an arm's cost: a wider site takes longer."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A question, and the arms that answer it."""

    name: str
    title: str
    arms: Mapping[str, tuple[str, ...]]
    """Names of arms, by site; all of them are trained."""
    also: str = ""
    """What is done beside: `pursuit` over those dictionaries, or `synthetic` models."""
    about: str = ""
    """A paragraph below its heading."""
    compared_with: str = ""
    """An arm, or `BEFORE`: what the difference of every arm is to."""
    pictured: bool = False
    """Whether its sites become figures."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of everything: `full` or `quick`."""

    name: str
    steps: int
    """Training steps of an SAE, of `train_batch_size_tokens` tokens each."""
    seeds: tuple[int, ...]
    l0: tuple[float, ...]
    """Where arms are compared."""
    evaluation_tokens: int
    synthetic_l0: float
    """Where SAEs on the synthetic model are compared."""
    synthetic_samples: int
    """Training samples of an SAE on a synthetic model."""
    pursuit_tokens: int
    """Held-out tokens whose features are chosen by pursuit."""
    clock_steps: int
    """Steps of every arm whose seconds are measured side by side."""


@dataclass(frozen=True, kw_only=True)
class Design:
    """All of a reproduction."""

    scale: Scale
    sites: tuple[Site, ...]
    arms: tuple[Arm, ...]
    parts: tuple[Part, ...]
    searched: str = ""
    """How the arms' learning rates were found."""
    remarks: Mapping[str, str] = field(default_factory=dict)
    """By claim: what is known of why it came out so."""
    overrides: tuple[str, ...] = ()
    """`key=value` texts over every recipe, such as `device=cuda`."""
    options: tuple[str, ...] = ()
    """Of the command that runs it."""

    def site(self, name: str) -> Site:
        return next(site for site in self.sites if site.name == name)

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)

    def values(self, arm: Arm, site: str) -> tuple[float, ...]:
        """Of the arm's knob at the site, in this scale."""
        knobs = arm.values.get(site)
        return () if knobs is None else knobs.of(self.scale.name)

    def only(self, names: tuple[str, ...]) -> tuple[Part, ...]:
        """The parts of these names; all where there are none.

        Raises:
            GatedError: there is no part of that name.
        """
        known = [part.name for part in self.parts]
        for name in names:
            if name not in known:
                raise GatedError(
                    f"A reproduction has no part {name!r}; give --only one of {', '.join(known)}."
                )
        return tuple(part for part in self.parts if not names or part.name in names)

    def changed(
        self, *, seeds: Sequence[int], sites: Sequence[str], overrides: Sequence[str]
    ) -> Design:
        """For other seeds, data or models; what is known of the committed results then falls away.

        Args:
            seeds: in place of the scale's; none keep them.
            sites: `name=recipe` texts, which replace the recipes of sites.
            overrides: `key=value` texts over every recipe.

        Raises:
            GatedError: a text of another form, of a site that there is not, or an override of what
                differs between runs.
        """
        for text in overrides:
            key = text.partition("=")[0]
            if key in OF_A_RUN:
                raise GatedError(
                    f"--set {text!r}: the runs of a reproduction differ in {key}; leave it out, or "
                    "give --seeds for other seeds."
                )
        if not (seeds or sites or overrides):
            return self
        recipes = dict(map(self._site_recipe, sites))
        return replace(
            self,
            scale=replace(self.scale, seeds=tuple(seeds) or self.scale.seeds),
            sites=tuple(
                replace(site, recipe=recipes[site.name], settings={})
                if site.name in recipes
                else site
                for site in self.sites
            ),
            overrides=tuple(overrides),
            options=(
                *self.options,
                *(f"--seed {seed}" for seed in seeds),
                *(f"--site {text}" for text in sites),
                *(f"--set {text}" for text in overrides),
            ),
            remarks={},
        )

    def _site_recipe(self, text: str) -> tuple[str, str]:
        name, _, recipe = text.partition("=")
        names = [site.name for site in self.sites]
        if name not in names or not recipe:
            raise GatedError(
                f"--site {text!r} is not of the form NAME=RECIPE with one of {', '.join(names)}; "
                f"give it as --site {names[0]}=my.yaml."
            )
        return name, recipe
