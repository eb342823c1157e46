"""The plan of one run, and of all variants of a recipe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from gated_plugin.plan.devices import Device, device
from gated_plugin.plan.language_models import LanguageModel, language_model
from gated_plugin.plan.needs import Need, disk, memory
from gated_plugin.plan.shape import Shape, shape
from gated_plugin.plan.work import (
    BANDWIDTH_USE,
    LANGUAGE_MODEL_USE,
    SAE_USE,
    SEARCH_USE,
    Work,
    evaluation_work,
    training_work,
)
from gated_plugin.recipe_files import find, parted, read
from gated_plugin.recipes import Recipe
from gated_plugin.variants import names

DEFAULT_GPU = "H100"


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What one run needs. Bytes, operations and seconds are estimates; `how` says from what."""

    name: str
    recipe: str
    """What to type for it, such as `gemma-7b/resid-20-lambda-0.0005`."""
    source: str
    """Where the recipe's settings are from."""
    device: str
    rate: str
    """What the times are from."""
    parameters: int
    """Of the SAE."""
    tokens: int
    """Trained on."""
    steps: int
    memory: list[Need]
    memory_total: int
    """Peak in training, bytes, on all devices."""
    memory_on_device: int
    """Of it, what lies where the SAE does."""
    memory_of_device: float | None
    """What that device has; None where it is not known."""
    disk: list[Need]
    disk_total: int
    published: int
    """Bytes of the published weights."""
    work: list[Work]
    flops_total: float
    seconds: float
    """Of training and one evaluation."""


def plan(
    source: str,
    overrides: Iterable[str] = (),
    *,
    gpu: str | None = None,
    tokens_per_second: float | None = None,
    model_parameters: int | None = None,
) -> RunPlan:
    """What the run of a recipe needs.

    Args:
        source, overrides: as `Recipe.load` takes them.
        gpu: one of `devices.CHOICES`; by default the CPU for a recipe that trains on one, else H100.
        tokens_per_second: of training, where it was measured; replaces the estimate.
        model_parameters: of a language model whose size is not known here.

    Raises:
        GatedError: no such recipe or device, or a language model of unknown size.
    """
    recipe = Recipe.load(source, overrides)
    model = _model(recipe, model_parameters)
    return _plan(source, recipe, shape(recipe, model, _device(recipe, gpu)), tokens_per_second)


def plan_all(
    source: str,
    overrides: Iterable[str] = (),
    *,
    gpu: str | None = None,
    tokens_per_second: float | None = None,
    model_parameters: int | None = None,
) -> list[RunPlan]:
    """The plans of all variants of a recipe, in its order; of a recipe without any, its own.

    Args and Raises: as `plan`.
    """
    called, variant = parted(source)
    there = names(read(find(called)), called) if variant is None else []
    sources = [f"{called}/{name}" for name in there] or [source]
    overrides = list(overrides)
    recipes = [Recipe.load(one, overrides) for one in sources]
    on = _device(recipes[0], gpu)
    return [
        _plan(
            one,
            recipe,
            shape(recipe, _model(recipe, model_parameters), on),
            tokens_per_second,
        )
        for one, recipe in zip(sources, recipes, strict=True)
    ]


def _model(recipe: Recipe, parameters: int | None) -> LanguageModel:
    """Of synthetic activations none is loaded, so that its size need not be known."""
    return language_model(recipe.model_name, 0 if recipe.synthetic else parameters)


def _device(recipe: Recipe, gpu: str | None) -> Device:
    on_cpu = recipe.runner.get("device", "cpu") == "cpu"
    return device(gpu or ("cpu" if on_cpu else DEFAULT_GPU))


def _plan(source: str, recipe: Recipe, sizes: Shape, tokens_per_second: float | None) -> RunPlan:
    parts, files, jobs = memory(sizes), disk(sizes), training_work(sizes)
    tokens, evaluation = sizes.steps * sizes.batch, evaluation_work(sizes)
    seconds = sum(job.seconds or 0 for job in jobs)
    if tokens_per_second is not None:
        seconds = tokens / tokens_per_second
        jobs = [replace(job, seconds=None) for job in jobs]
    return RunPlan(
        name=recipe.name,
        recipe=source,
        source=recipe.source,
        device=sizes.device.name,
        rate=_rate(sizes.device, tokens_per_second),
        parameters=sizes.sae_parameters,
        tokens=tokens,
        steps=sizes.steps,
        memory=parts,
        memory_total=_total(parts),
        memory_on_device=_total([part for part in parts if part.place == sizes.cfg.device]),
        memory_of_device=sizes.device.memory,
        disk=files,
        disk_total=_total(files),
        published=sizes.sae_parameters * sizes.sae_itemsize,
        work=[*jobs, evaluation],
        flops_total=sum(job.flops for job in (*jobs, evaluation) if job.counts),
        seconds=seconds + (evaluation.seconds or 0),
    )


def _total(parts: list[Need]) -> int:
    return sum(part.bytes for part in parts if part.counts)


def _rate(on: Device, tokens_per_second: float | None) -> str:
    peaks = f"{on.float32 / 1e12:.3g} TFLOP/s in float32, {on.bfloat16 / 1e12:.3g} in bfloat16"
    if on.measured:
        peaks += f", measured now; the language model at {LANGUAGE_MODEL_USE:.0%} of it"
    else:
        peaks = f"peaks of {peaks}, and {on.bandwidth / 1e12:.3g} TB/s, counted, not measured: "
        peaks += f"the language model is taken to reach {LANGUAGE_MODEL_USE:.0%}, dense steps "
        peaks += f"{SAE_USE:.0%}, the search {SEARCH_USE:.0%}, what moves bytes {BANDWIDTH_USE:.0%}"
    if tokens_per_second is None:
        return peaks
    return f"{tokens_per_second:g} tokens a second in training, as given; else {peaks}"
