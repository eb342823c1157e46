"""Recipes that would train something else than they say, or stop a process that reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from gated_plugin.errors import GatedError
from gated_plugin.recipes import Recipe


def refusal(tiny: Path, tmp_path: Path, before: str, after: str, *overrides: str) -> str:
    """What a recipe with one changed line is refused with."""
    text = tiny.read_text()
    assert before in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(before, after))
    with pytest.raises(GatedError) as caught:
        Recipe.load(path, overrides)
    said = str(caught.value).replace(str(path), "mine.yaml")
    assert said.startswith(("mine.yaml", "--set"))
    assert said.isprintable()
    assert said.endswith(".")
    assert len(said) < 400
    return said


@pytest.mark.parametrize("key", ["model_name", "hook_name", "dataset_path"])
def test_what_is_trained_on_is_never_saelens_default(tiny: Path, tmp_path: Path, key: str) -> None:
    line = next(line for line in tiny.read_text().splitlines() if line.startswith(key))
    assert refusal(tiny, tmp_path, f"{line}\n", "") == f"mine.yaml: {key} is missing; add it."


@pytest.mark.parametrize(
    ("after", "part"),
    [
        ("lr: 0100", "is no valid YAML (line 14: 0100 is octal or of base 60 in YAML); mend it."),
        ("lr: 1:30", "1:30 is octal or of base 60"),
        ("lr: 0.001\nlr: 0.002", "lr occurs twice"),
        ("lr: 2020-13-45", "is no valid YAML (a value is not what its tag says"),
        ("lr: &a [*a]", "its aliases stand for more than"),
        ("lr: 1e400", "lr is '1e400'; mend it (Input should be a finite number)."),
        ("lr: " + "9" * 5000, "a number has 5,000 characters"),
        ('lr: "\\n\\e[2J' + "x" * 5000 + '"', "lr is '\\n\\x1b[2Jxxx"),
        ("lr: {" + ", ".join(f"a{n}: 1" for n in range(500)) + "}", "lr is {'a0': 1, 'a1': 1"),
        ("x" * 1000 + ": 1", "unknown key 'xxx"),
        ('"\\e[2J": 1', "unknown key '\\x1b[2J'"),
        ("context_size_: 1", "the nearest valid one is 'context_size'"),
    ],
)
def test_a_hostile_value_is_refused_in_a_short_sentence(
    tiny: Path, tmp_path: Path, after: str, part: str
) -> None:
    assert part in refusal(tiny, tmp_path, "lr: 0.001", after)


def test_a_context_that_saelens_would_list_one_by_one_is_refused(
    tiny: Path, tmp_path: Path
) -> None:
    said = refusal(tiny, tmp_path, "context_size: 128", "context_size: 9000000000")
    assert "context_size is 9000000000; give at most 1048576." in said


def test_a_paper_lambda_that_overflows_is_refused(tiny: Path, tmp_path: Path) -> None:
    said = refusal(tiny, tmp_path, "l1_coefficient: 0.8", "paper_lambda: 1.0e+307")
    assert "sae.paper_lambda · d_in is inf; mend it (Input should be a finite number)." in said


@pytest.mark.parametrize("value", ["0100", "1:30", "2020-13-45", "!!bool maybe", "&a [*a]"])
def test_an_override_is_read_as_strictly_as_a_file(tiny: Path, tmp_path: Path, value: str) -> None:
    said = refusal(tiny, tmp_path, "lr", "lr", f"lr={value}")
    assert said.startswith(f"--set 'lr={value}': the value is no valid YAML (")
