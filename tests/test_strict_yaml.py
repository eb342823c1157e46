"""YAML: read as PyYAML reads it, but for what a person would read otherwise."""

from __future__ import annotations

import time
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gated_plugin.bundled import folder
from gated_plugin.strict_yaml import strict_yaml

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\x85"))
SCALARS = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats() | TEXTS
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=20
)
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 10)
)


def refusal(text: str) -> str:
    began = time.monotonic()
    with pytest.raises(ValueError, match=r".") as caught:
        strict_yaml(text)
    assert time.monotonic() - began < 5
    said = str(caught.value)
    assert said.isprintable()
    assert len(said) < 200
    return said


@given(TREES)
def test_what_pyyaml_writes_is_read_back(value: Any) -> None:
    text = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    assert repr(strict_yaml(text)) == repr(value)


@pytest.mark.parametrize("path", sorted(folder("hub_configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_bundled_recipes_read_as_pyyaml_reads_them(path: Any) -> None:
    text = path.read_text(encoding="utf-8")
    assert strict_yaml(text) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: 1_000", {"a": 1000}),
        ("a: 0x1F", {"a": 31}),
        ("a: 0", {"a": 0}),
        ("a: 0.50", {"a": 0.5}),
        ("a: '0100'", {"a": "0100"}),
        ("a: 08", {"a": "08"}),
        ("a: '1:30'", {"a": "1:30"}),
        ("a: &x {b: 1}\nc: {<<: *x, b: 2}", {"a": {"b": 1}, "c": {"b": 2}}),
        ("a: &x [1]\nb: [*x, *x]", {"a": [1], "b": [[1], [1]]}),
    ],
)
def test_what_nobody_misreads_is_read(text: str, value: Any) -> None:
    assert strict_yaml(text) == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\nb: 0100", "line 2: 0100 is octal or of base 60 in YAML"),
        ("a: -010_000", "line 1: -010_000 is octal"),
        ("a: 1:30", "line 1: 1:30 is octal or of base 60"),
        ("a: 1:30.5", "line 1: 1:30.5 is octal or of base 60"),
        ("a: [1, {b: 017}]", "line 1: 017 is octal"),
        ("a: 1\nb: 2\na: 3", "line 3: a occurs twice"),
        ("s: {a: 1, 'a': 2}", "line 1: a occurs twice"),
        ("a: " + "9" * 41, "line 1: a number has 41 characters"),
        ("a: 0x" + "f" * 9000, "line 1: a number has 9,002 characters"),
        (BOMB, "its aliases stand for more than 100,000 values"),
        (MERGES, "its aliases stand for more than 100,000 values"),
        ("a: &a [*a]", "its aliases stand for more than 100,000 values"),
        ("[" * 5000, "it is nested too deeply"),
        ("a: 2020-13-45", "a value is not what its tag says (month must be in 1..12)"),
        ("a: !!bool maybe", "a value is not what its tag says"),
        ("a: !!int ''", "a value is not what its tag says"),
        ("a: !!timestamp x", "a value is not what its tag says"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor for the tag"),
        ("a: !mine x", "could not determine a constructor for the tag '!mine'"),
        ('a: "\\ud800"', "line 1: a text holds a character that would be lost"),
        ('a: "\\0"', "line 1: a text holds a character that would be lost"),
        ('a: "x\\x85y"', "line 1: a text holds a character that would be lost"),
        ("a: \0", "it holds a character that YAML does not allow"),
        ("a: [", "line 1: "),
        ("a: *missing", "line 1: found undefined alias 'missing'"),
        ("a: *" + "x" * 5000, "line 1: found undefined alias"),
        ("a: 1\n---\nb: 1", "line 2: but found another document"),
        ("a: 1\n b: 2", "line 2: mapping values are not allowed here"),
    ],
)
def test_what_a_person_would_misread_or_a_machine_choke_on_is_refused(
    text: str, reason: str
) -> None:
    assert reason in refusal(text)


@pytest.mark.parametrize("word", ["on", "off", "yes", "No"])
def test_words_that_yaml_1_1_took_for_truth_are_texts(word):
    assert strict_yaml(f"{word}: {word}") == {word: word}
