"""A person's words in a README.md are kept, or the push is refused; never are they lost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gated_plugin.errors import GatedError
from gated_plugin.hub.cards.notes import BEGIN, END, Kept, kept, kept_section

BILLION = "a0: &a0 [x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
WHERE = "README.md of alice/books"


def card(notes: str) -> str:
    return f"---\nlicense: mit\n---\n# Books\n\n{BEGIN}\n\n{notes}\n\n{END}\n\n## Citation\n"


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r")))
def test_what_stands_between_the_comments_is_kept_word_for_word(notes: str) -> None:
    section = kept_section(card(notes))
    assert section is not None
    assert section.strip("\n") == (notes.strip("\n") if notes.strip() else "")
    assert kept_section(card(section)) == section


def test_line_ends_of_another_system_and_shorter_comments_do() -> None:
    text = card("one\ntwo").replace("\n", "\r\n").replace(BEGIN, "<!--gated-hub:notes-->")
    assert kept_section(text) == "one\ntwo"


def test_a_text_without_comments_has_no_section() -> None:
    assert kept_section("# Mine\n<!-- notes -->\n") is None


@pytest.mark.parametrize(
    "damaged",
    [
        card("x").replace(BEGIN, ""),
        card("x").replace(END, ""),
        card("x").replace(END, "<!-- gated-hub:end-of-notes"),
        card("x").replace(BEGIN, BEGIN.replace(" -->", "")),
        card("x").replace(END, "<!-- gated-hub:end-of-note -->"),
        card(f"x {BEGIN} y"),
        card(f"x {END} y"),
        card(card("nested")),
        f"{END}\nx\n{BEGIN}\n",
        card("x") + card("y"),
    ],
)
def test_damaged_comments_are_refused(damaged: str) -> None:
    for read in (kept_section, kept):
        with pytest.raises(GatedError, match=f"Which words of the {WHERE} are to be kept") as error:
            read(damaged, WHERE)
        assert "\n" not in str(error.value)


def test_a_card_made_by_hand_is_not_overwritten_and_the_refusal_says_how_to_keep_it() -> None:
    text = "---\nlicense: mit\n---\n# My dictionaries\n"
    with pytest.raises(GatedError, match=f"The {WHERE} was not written by gated-hub") as refusal:
        kept(text, WHERE)
    begin, end = str(refusal.value).split("`")[1:4:2]
    head, body = text.split("# My", 1)
    assert kept(f"{head}{begin}\n# My{body}{end}\n", WHERE).notes == "# My dictionaries"


@pytest.mark.parametrize(
    ("text", "metadata"),
    [
        (None, {}),
        ("", {}),
        ("---\nlicense: mit\nextra_gated_prompt: Agree?\n---\n\n", None),
    ],
)
def test_a_file_without_words_may_be_replaced(text, metadata) -> None:
    expected = {"license": "mit", "extra_gated_prompt": "Agree?"} if metadata is None else metadata
    assert kept(text, WHERE) == Kept("", expected)


def test_notes_and_front_matter_are_both_kept() -> None:
    assert kept(card("x"), WHERE) == Kept("x", {"license": "mit"})


@pytest.mark.parametrize(
    "block", ["a: [", "- a", "just words", "a: 2020-13-45", "[" * 2000 + "]" * 2000, BILLION]
)
def test_front_matter_that_cannot_be_read_is_refused(block: str) -> None:
    with pytest.raises(GatedError, match=r"The YAML at the head of the README\.md"):
        kept(f"---\n{block}\n---\n{BEGIN}\n{END}\n", WHERE)
