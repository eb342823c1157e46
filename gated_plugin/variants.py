"""The variants of a recipe: SAEs that share all settings but some, each by its name.

    variants:
      resid-20-lambda-0.0005:
        {source: "Tables 3-4, …", hook_name: blocks.20.hook_resid_post, sae.paper_lambda: 0.0005}

A variant is a mapping of keys, dotted as after `--set`, to the values that replace the recipe's own.
`RECIPE/VARIANT` names it, such as `gemma-7b/resid-20-lambda-0.0005`.
"""

from __future__ import annotations

from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from gated_plugin.errors import GatedError

VARIANTS = "variants"

OTHER_LAMBDA = {"sae.l1_coefficient": "paper_lambda", "sae.paper_lambda": "l1_coefficient"}


def names(raw: dict[str, Any], file: str) -> list[str]:
    """The variants of the recipe `raw`, in its order.

    Raises:
        GatedError: `variants` is no mapping of names to mappings.
    """
    variants = raw.get(VARIANTS, {})
    if not isinstance(variants, dict) or not all(map(_is_named, variants.items())):
        raise GatedError(
            f"{file}: {VARIANTS} is no list of settings by name; write lines such as "
            "`wide: {sae.d_sae: 4096}` below it, indented, without a slash in the name."
        )
    return list(variants)


def chosen(raw: dict[str, Any], variant: str | None, file: str) -> dict[str, Any]:
    """The recipe `raw` with the settings of `variant`, which joins its name, and no variants.

    Args:
        variant: its name; None for a recipe that has no variants.
        file: what the recipe is called, for the errors and for a recipe without a name.

    Raises:
        GatedError: the recipe has variants and none is given, has not that one, or has none.
    """
    there = names(raw, file)
    rest = {key: deepcopy(value) for key, value in raw.items() if key != VARIANTS}
    if variant is None:
        if there:
            raise GatedError(
                f"{file} has {len(there)} variants; choose one, such as {file}/{there[0]}: "
                f"`gated-hub plan {file}` lists them."
            )
        return rest
    if not there:
        raise GatedError(f"{file} has no variants; leave out /{variant}.")
    if variant not in there:
        near = get_close_matches(variant, there, n=3, cutoff=0.0)
        raise GatedError(
            f"{file} has no variant {variant!r}; the nearest are {', '.join(near)}: "
            f"`gated-hub plan {file}` lists all."
        )
    for key, value in raw[VARIANTS][variant].items():
        put(rest, key, value, f"{file}/{variant}")
    return {**rest, "name": f"{raw.get('name', Path(file).stem)}-{variant}"}


def put(raw: dict[str, Any], key: str, value: Any, where: str) -> None:
    """Set the dotted `key` of a recipe, making the sections that it names; λ in one unit takes the
    place of λ in the other.

    Raises:
        GatedError: what should be a section is a value.
    """
    *sections, last = key.split(".")
    holder = raw
    for section in sections:
        holder = holder.setdefault(section, {})
        if not isinstance(holder, dict):
            raise GatedError(f"{where}: {section!r} is a value, not a section; mend the key {key}.")
    holder.pop(OTHER_LAMBDA.get(key, ""), None)
    holder[last] = value


def _is_named(variant: tuple[Any, Any]) -> bool:
    name, settings = variant
    return (
        isinstance(name, str)
        and "/" not in name
        and isinstance(settings, dict)
        and all(isinstance(key, str) for key in settings)
    )
