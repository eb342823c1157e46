"""A recipe file → SAELens' runner configuration, with every unknown key refused.

A recipe is SAELens' `LanguageModelSAERunnerConfig` written as YAML, by SAELens' own field names,
with `sae:` for the SAE's configuration and these of ours:

    name, description, source  what it is, and where its settings are from
    variants                   settings by name, of which one is chosen (`variants`)
    synthetic                  true: activations of `synthetic_stream` in place of the language model's
    sae.paper_lambda           λ as the paper prints it; becomes l1_coefficient = λ · d_in
    evaluation                 held-out text (`EvaluationPlan`)
    publish                    licence and base model of the dictionary (`PublishPlan`)
    engine                     how the sparse engine may choose (`engine.options.Options`)
    sweep                      what `gated-hub sweep` trains (`SweepPlan`)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gated_plugin.engine.options import Options
from gated_plugin.errors import GatedError
from gated_plugin.recipe_files import find, parted, read
from gated_plugin.recipe_keys import Keys, coerced
from gated_plugin.sources import EMBEDDED
from gated_plugin.strict_yaml import strict_yaml
from gated_plugin.sweep_plan import SweepPlan
from gated_plugin.variants import VARIANTS, chosen, put

if TYPE_CHECKING:
    from sae_lens.config import LanguageModelSAERunnerConfig


DTYPES = ("float32", "bfloat16", "float64")
"""What an SAE can be trained in; in float16 Adam overflows at the second step."""


SYNTHETIC = "synthetic activations"
"""What stands in figures and cards for the names of a language model and of datasets."""


@dataclass(frozen=True)
class EvaluationPlan:
    """Held-out text: a dataset that training does not touch."""

    dataset_path: str
    """A Hub dataset, a local folder, or an embedded one; tokenised or not, as for training."""
    split: str = "train"
    """Its split."""
    tokens: int = 1_000_000
    """Evaluate on about this many tokens, or on all whole batches where there are fewer."""
    batch_size_prompts: int = 32
    """Prompts in one forward pass of the language model."""


@dataclass(frozen=True)
class PublishPlan:
    """What a card must say that nobody can measure."""

    license: str | None = None
    """Licence of the dictionary, by its Hub identifier, such as `mit`; `other` needs the next two.
    It must be stated before anything is published (`hub.cards.licensing`)."""
    license_name: str | None = None
    """Name of a licence that the Hub has no identifier for, such as `my-license-1.0`."""
    license_link: str | None = None
    """Where that licence can be read: an https address."""
    base_model: str | None = None
    """Hub id of the language model; only the embedded one, which has none, may do without."""
    base_model_terms: str | None = None
    """Licence or terms of use of the language model, in one sentence; a model that the Hub gives
    out only to those who accept its terms needs them."""
    datasets: tuple[str, ...] = ()
    """Hub ids of the training data."""


@dataclass(frozen=True)
class Recipe:
    """A validated recipe. `raw` is what the file and the overrides say, for writing it again."""

    name: str
    description: str
    source: str
    synthetic: bool
    """Whether no language model or text is read; model_name, hook_name and dataset_path then say
    only whose shape the run has."""
    runner: dict[str, Any]
    sae: dict[str, Any]
    evaluation: EvaluationPlan
    publish: PublishPlan
    engine: Options
    sweep: SweepPlan
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def load(cls, source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
        """Read a recipe by path, or by name from those that come with the package.

        Args:
            source: `runs/x/recipe.yaml`, `my.yaml`, or `quickstart`; of a recipe with variants one
                of them, such as `gemma-7b/resid-20-lambda-0.0005` or `my.yaml/wide`.
            overrides: `key=value` texts, such as `sae.l1_coefficient=4`; values are YAML.

        Raises:
            GatedError: missing file, broken YAML, no such variant, unknown key, a value of the
                wrong type, or values that cannot go together.
        """
        called, variant = parted(source)
        path = find(called)
        raw = chosen(read(path), variant, called)
        for override in overrides:
            _apply_override(raw, override)
        return _Reader(str(path)).recipe(raw)

    @classmethod
    def of(cls, raw: dict[str, Any], file: str) -> Recipe:
        """The recipe that `raw` says, called `file` in errors; raises as `load`."""
        return _Reader(file).recipe(raw)

    @property
    def model_name(self) -> str:
        return self.runner["model_name"]

    @property
    def is_embedded(self) -> bool:
        """Whether the language model comes with the package."""
        return self.model_name.startswith(EMBEDDED)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by its dotted key."""
        return {
            "synthetic": self.synthetic,
            **self.runner,
            **{f"sae.{key}": value for key, value in self.sae.items()},
            **{f"evaluation.{key}": value for key, value in asdict(self.evaluation).items()},
            **{f"publish.{key}": value for key, value in asdict(self.publish).items()},
            **{f"engine.{key}": value for key, value in asdict(self.engine).items()},
        }

    def runner_config(self) -> LanguageModelSAERunnerConfig[Any]:
        """SAELens' configuration, without W&B and without files of its own."""
        from sae_lens.config import LanguageModelSAERunnerConfig, LoggingConfig
        from sae_lens.saes.sae import TrainingSAEConfig

        return LanguageModelSAERunnerConfig(
            sae=TrainingSAEConfig.from_dict(self.sae),
            logger=LoggingConfig(log_to_wandb=False),
            checkpoint_path=None,
            output_path=None,
            verbose=False,
            dtype=self.sae.get("dtype", DTYPES[0]),
            **({"model_from_pretrained_kwargs": {}} if self.is_embedded else {}),
            **self.runner,
        )

    def to_yaml(self) -> str:
        """The text that `load` reads back to an equal recipe."""
        return yaml.safe_dump(self.raw, sort_keys=False, allow_unicode=True)


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise GatedError(f"--set {override!r} is not of the form key=value.")
    try:
        value = strict_yaml(text)
    except ValueError as error:
        raise GatedError(f"--set {override!r}: the value is no valid YAML ({error}).") from None
    put(raw, key, value, f"--set {override!r}")


class _Reader(Keys):
    """Turns the mapping of one file into a `Recipe`."""

    def recipe(self, raw: dict[str, Any]) -> Recipe:
        from sae_lens.config import LanguageModelSAERunnerConfig

        runner = {key: value for key, value in raw.items() if key not in _SECTIONS}
        if VARIANTS in raw:
            raise GatedError(f"{self.where(VARIANTS)} cannot be set; write them into the file.")
        raw = {"name": Path(self.file).stem, "description": "", **raw}
        recipe = Recipe(
            name=coerced(raw["name"], str, self.where("name")),
            description=coerced(raw["description"], str, self.where("description")).strip(),
            source=coerced(raw.get("source", ""), str, self.where("source")).strip(),
            synthetic=coerced(raw.get("synthetic", False), bool, self.where("synthetic")),
            runner=self.checked(runner, LanguageModelSAERunnerConfig, "", _SECTIONS),
            sae=self._sae(self._section(raw, "sae")),
            evaluation=self._plan(raw, "evaluation", EvaluationPlan),
            publish=self._plan(raw, "publish", PublishPlan),
            engine=self._plan(raw, "engine", Options),
            sweep=self._plan(raw, "sweep", SweepPlan),
            raw=raw,
        )
        self._require_consistent(recipe)
        return recipe

    def _require_consistent(self, recipe: Recipe) -> None:
        for key in _NEVER_DEFAULT:
            if key not in recipe.runner:
                raise GatedError(f"{self.where(key)} is missing; add it.")
        for key in _OF_A_LOADED_MODEL & recipe.runner.keys():
            if recipe.is_embedded:
                raise GatedError(
                    f"{self.where(key)} says how to load a model, but {recipe.model_name} comes "
                    "with the package; leave it out."
                )
        try:
            cfg = recipe.runner_config()
        except (ValueError, GatedError) as error:
            raise GatedError(f"{self.file}: {error}") from None
        steps = cfg.total_training_steps
        if steps == 0:
            raise GatedError(
                f"{self.where('training_tokens')} is {cfg.training_tokens}, less than one batch "
                f"of train_batch_size_tokens = {cfg.train_batch_size_tokens}; raise it."
            )
        if cfg.lr_warm_up_steps + cfg.lr_decay_steps > steps:
            raise GatedError(
                f"{self.file}: lr_warm_up_steps + lr_decay_steps is "
                f"{cfg.lr_warm_up_steps + cfg.lr_decay_steps}, but the run has {steps} steps; "
                "lower them."
            )
        resampled = getattr(cfg.sae, "resample_steps", [])
        if resampled and resampled[-1] > steps:
            raise GatedError(
                f"{self.file}: sae.resample_steps ends at {resampled[-1]}, but the run has {steps} "
                "steps; leave out what lies beyond."
            )

    def _sae(self, section: dict[str, Any]) -> dict[str, Any]:
        from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class

        section = dict(section)
        architecture = str(section.pop("architecture", "gated"))
        if architecture not in SAE_TRAINING_CLASS_REGISTRY:
            self.refuse("sae.architecture", architecture, list(SAE_TRAINING_CLASS_REGISTRY))
        dtype = section.get("dtype", DTYPES[0])
        if dtype not in DTYPES:
            self.refuse("sae.dtype", str(dtype), list(DTYPES))
        paper_lambda = section.pop("paper_lambda", None)
        config = get_sae_training_class(architecture)[1]
        checked = self.checked(section, config, "sae.", ("architecture", "paper_lambda"))
        if paper_lambda is not None:
            if "l1_coefficient" in checked:
                raise GatedError(
                    f"{self.file}: sae.paper_lambda and sae.l1_coefficient both state λ; keep one."
                )
            if "l1_coefficient" not in {f.name for f in fields(config)}:
                raise GatedError(
                    f"{self.file}: sae.paper_lambda weighs an L1 norm, which the architecture "
                    f"{architecture!r} does not have; leave it out."
                )
            scale = coerced(paper_lambda, float, self.where("sae.paper_lambda"))
            product = scale * checked["d_in"]
            checked["l1_coefficient"] = coerced(
                product, float, self.where("sae.paper_lambda · d_in")
            )
        return {"architecture": architecture, **checked}

    def _plan(self, raw: dict[str, Any], name: str, plan: type[Any]) -> Any:
        return plan(**self.checked(self._section(raw, name), plan, f"{name}.", ()))

    def _section(self, raw: dict[str, Any], name: str) -> dict[str, Any]:
        section = raw.get(name, {})
        if not isinstance(section, dict):
            raise GatedError(f"{self.file}: {name} is a section; put its keys below it, indented.")
        return section


_OF_A_LOADED_MODEL = frozenset({"model_class_name", "model_from_pretrained_kwargs"})
_NEVER_DEFAULT = ("model_name", "hook_name", "dataset_path")
"""SAELens would train on some layer of a small model of its own choice."""
_SECTIONS = (
    "name",
    "description",
    "source",
    "synthetic",
    VARIANTS,
    "sae",
    "evaluation",
    "publish",
    "engine",
    "sweep",
)
