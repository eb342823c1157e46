"""A recipe file → SAELens' runner configuration, with every unknown key refused.

A recipe is SAELens' `LanguageModelSAERunnerConfig` written as YAML, by SAELens' own field names,
with `sae:` for the SAE's configuration and three sections of ours:

    name, description          what it is
    sae.paper_lambda           λ as the paper prints it; becomes l1_coefficient = λ · d_in
    evaluation                 held-out text (`EvaluationPlan`)
    publish                    licence and base model of the dictionary (`PublishPlan`)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import yaml

from gated_plugin.bundled import folder
from gated_plugin.errors import GatedError

if TYPE_CHECKING:
    from sae_lens.config import LanguageModelSAERunnerConfig

OF_OURS = "gated-hub sets it itself"
NO_USE = "SAELens' runner alone uses it"
REFUSED = {
    "checkpoint_path": OF_OURS,
    "resume_from_checkpoint": OF_OURS,
    "output_path": OF_OURS,
    "n_checkpoints": "give `gated-hub train --checkpoint-every STEPS`",
    "save_final_checkpoint": OF_OURS,
    "sae_lens_version": OF_OURS,
    "sae_lens_training_version": OF_OURS,
    "activations_mixing_fraction": "a seekable stream shuffles whole buffers; set n_batches_in_buffer",
    "prefetch_llm_batches": NO_USE,
    "use_cached_activations": NO_USE,
    "cached_activations_path": NO_USE,
    "n_eval_batches": "see the section `evaluation`",
    "eval_batch_size_prompts": "see the section `evaluation`",
    "hook_eval": "deprecated in SAELens",
    "dead_feature_threshold": "without effect in SAELens",
    "logger": NO_USE,
    "verbose": NO_USE,
}


@dataclass(frozen=True)
class EvaluationPlan:
    """Held-out text: a dataset that training does not touch."""

    dataset_path: str
    """A Hub dataset, a local folder, or an embedded one; tokenised or not, as for training."""
    split: str = "train"
    """Its split."""
    tokens: int = 1_000_000
    """Evaluate on about this many tokens, or on all where there are fewer."""
    batch_size_prompts: int = 32
    """Prompts in one forward pass of the language model."""


@dataclass(frozen=True)
class PublishPlan:
    """What a card must say that nobody can measure."""

    license: str = "mit"
    """Licence of the dictionary, by its Hub identifier."""
    base_model: str | None = None
    """Hub id of the language model; left out for a local model, which has none."""
    base_model_terms: str | None = None
    """Licence or terms of use of the language model, in one sentence."""
    datasets: tuple[str, ...] = ()
    """Hub ids of the training data."""


@dataclass(frozen=True)
class Recipe:
    """A validated recipe. `raw` is what the file and the overrides say, for writing it again."""

    name: str
    description: str
    runner: dict[str, Any]
    sae: dict[str, Any]
    evaluation: EvaluationPlan
    publish: PublishPlan
    raw: dict[str, Any] = field(repr=False)

    @classmethod
    def load(cls, source: str | Path, overrides: Iterable[str] = ()) -> Recipe:
        """Read a recipe by path, or by name from those that come with the package.

        Args:
            source: `runs/x/recipe.yaml`, `my.yaml`, or `quickstart`.
            overrides: `key=value` texts, such as `sae.l1_coefficient=4`; values are YAML.

        Raises:
            GatedError: missing file, broken YAML, unknown key, or a value of the wrong type.
        """
        path = find(source)
        raw = _read(path)
        for override in overrides:
            _apply_override(raw, override)
        return _Reader(str(path)).recipe(raw)

    @property
    def model_name(self) -> str:
        return self.runner["model_name"]

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
            **self.runner,
        )

    def to_yaml(self) -> str:
        """The text that `load` reads back to an equal recipe."""
        return yaml.safe_dump(self.raw, sort_keys=False, allow_unicode=True)


def find(source: str | Path) -> Path:
    """The file that a path or the name of a bundled recipe means."""
    path = Path(source)
    if path.is_file():
        return path
    bundled = {file.stem: file for file in sorted(folder("hub_configs").glob("*.yaml"))}
    if str(source) in bundled:
        return bundled[str(source)]
    raise GatedError(
        f"There is no recipe {str(source)!r}: neither a file of that path nor one of the bundled "
        f"recipes ({', '.join(bundled)})."
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GatedError(f"{path} is no valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(raw, dict):
        raise GatedError(f"{path} holds no recipe: expected `key: value` lines at its top.")
    return raw


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise GatedError(f"--set {override!r} is not of the form key=value.")
    *sections, last = key.split(".")
    holder = raw
    for section in sections:
        holder = holder.setdefault(section, {})
        if not isinstance(holder, dict):
            raise GatedError(f"--set {override!r}: {section!r} is a value, not a section.")
    try:
        holder[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise GatedError(f"--set {override!r}: the value is no valid YAML.") from None


@dataclass(frozen=True)
class _Reader:
    """Turns the mapping of one file into a `Recipe`; knows the file for its errors."""

    file: str

    def recipe(self, raw: dict[str, Any]) -> Recipe:
        from sae_lens.config import LanguageModelSAERunnerConfig

        runner = {key: value for key, value in raw.items() if key not in _SECTIONS}
        sae = self._sae(self._section(raw, "sae"))
        return Recipe(
            name=str(raw.get("name") or Path(self.file).stem),
            description=str(raw.get("description", "")).strip(),
            runner=self._checked(runner, LanguageModelSAERunnerConfig, "", _SECTIONS),
            sae=sae,
            evaluation=self._plan(raw, "evaluation", EvaluationPlan),
            publish=self._plan(raw, "publish", PublishPlan),
            raw=raw,
        )

    def _sae(self, section: dict[str, Any]) -> dict[str, Any]:
        from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY, get_sae_training_class

        section = dict(section)
        architecture = section.pop("architecture", "gated")
        if architecture not in SAE_TRAINING_CLASS_REGISTRY:
            self._refuse("sae.architecture", architecture, list(SAE_TRAINING_CLASS_REGISTRY))
        paper_lambda = section.pop("paper_lambda", None)
        config = get_sae_training_class(architecture)[1]
        checked = self._checked(section, config, "sae.", ("architecture", "paper_lambda"))
        if paper_lambda is not None:
            if "l1_coefficient" in checked:
                raise GatedError(
                    f"{self.file}: sae.paper_lambda and sae.l1_coefficient both state λ; keep one."
                )
            scale = _coerced(paper_lambda, float, self._where("sae.paper_lambda"))
            checked["l1_coefficient"] = scale * checked["d_in"]
        return {"architecture": architecture, **checked}

    def _plan(self, raw: dict[str, Any], name: str, plan: type[Any]) -> Any:
        return plan(**self._checked(self._section(raw, name), plan, f"{name}.", ()))

    def _section(self, raw: dict[str, Any], name: str) -> dict[str, Any]:
        section = raw.get(name, {})
        if not isinstance(section, dict):
            raise GatedError(f"{self.file}: {name} is a section; put its keys below it, indented.")
        return section

    def _checked(
        self, values: dict[str, Any], config: type[Any], prefix: str, also: Iterable[str]
    ) -> dict[str, Any]:
        """`values` with the types that the dataclass `config` declares."""
        hints = get_type_hints(config)
        valid = {f.name for f in fields(config)} - {"sae", "metadata"} - set(REFUSED)
        for key in values:
            if key in REFUSED and not prefix:
                raise GatedError(f"{self._where(key)} is not for a recipe: {REFUSED[key]}.")
            if key not in valid:
                self._refuse("", prefix + str(key), [prefix + name for name in (*valid, *also)])
        required = [f.name for f in fields(config) if _is_required(f) and f.name in valid]
        for key in required:
            if key not in values:
                raise GatedError(f"{self._where(prefix + key)} is missing; add it.")
        return {
            key: _coerced(value, hints[key], self._where(prefix + key))
            for key, value in values.items()
        }

    def _where(self, key: str) -> str:
        return f"{self.file}: {key}"

    def _refuse(self, key: str, given: str, choices: list[str]) -> None:
        near = get_close_matches(given, choices, n=1, cutoff=0.0)
        what = f"{key} {given!r}" if key else f"key {given!r}"
        raise GatedError(f"{self.file}: unknown {what}; the nearest valid one is {near[0]!r}.")


_SECTIONS = ("name", "description", "sae", "evaluation", "publish")


def _is_required(f: Any) -> bool:
    return f.default is MISSING and f.default_factory is MISSING


def _coerced(value: Any, hint: Any, where: str) -> Any:
    """`value` as the declared type: YAML reads 0 as an int and 1e-3 as a text."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    if isinstance(value, Mapping):
        return dict(value)
    try:
        config = ConfigDict(arbitrary_types_allowed=True)
        return TypeAdapter(hint, config=config).validate_python(value)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise GatedError(f"{where} is {value!r}: {problem}.") from None
