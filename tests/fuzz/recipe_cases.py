"""Mutated recipes: every setting is what a person reads in the file, or the recipe is refused."""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import Path
from random import Random

from hostile_yaml import mutated_yaml
from mutations import blindly

from gated_plugin.bundled import folder
from gated_plugin.recipe_files import read
from gated_plugin.recipes import Recipe
from gated_plugin.variants import names

SOUND = [path.read_text(encoding="utf-8") for path in sorted(folder("hub_configs").glob("*.yaml"))]
NUMBER = re.compile(r"(\s*)(\w+): *([+-]?[\d_.:]+(?:e[+-]?\d+)?) *", re.IGNORECASE)
"""A line that a person takes for a setting with a number."""


def recipe(random: Random) -> None:
    """A mutated recipe file."""
    text = random.choice(SOUND)
    data = mutated_yaml(random, text).encode(errors="surrogatepass")
    if random.random() < 0.4:
        data = blindly(random, data, random.choice(SOUND).encode())
    path = Path("mutated.yaml")
    path.write_bytes(data)
    raw = read(path)
    variants = names(raw, str(path))
    variant = random.choice(variants) if variants else None
    loaded = Recipe.load(f"{path}/{variant}" if variant else path)
    assert not Path("touched").exists()
    _require_what_is_written(loaded, data.decode(), raw["variants"][variant] if variant else {})
    Path("again.yaml").write_text(loaded.to_yaml(), encoding="utf-8")
    again = Recipe.load("again.yaml")
    assert repr((again.settings, again.raw)) == repr((loaded.settings, loaded.raw))


def _require_what_is_written(loaded: Recipe, text: str, replaced: Container[str]) -> None:
    section = ""
    for line in text.split("\n"):
        section = line.strip(" :") if re.fullmatch(r"\w+: *", line) else section
        found = NUMBER.fullmatch(line)
        key = f"{section}.{found[2]}" if found and found[1] else found[2] if found else None
        if found and key in loaded.settings and key not in replaced:
            value = loaded.settings[key]
            assert isinstance(value, str) or float(found[3].replace("_", "")) == value, line
