"""What others wrote stays text: in tables, code spans, summaries, links and Python."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from gated_plugin.hub.cards.markdown import UNKNOWN, address, code, html, literal, plain

# Without characters that HTML has no reference for: they are shown as a box.
LETTERS = st.characters(exclude_categories=["C"])
TEXTS = st.text(LETTERS, max_size=30) | st.text("|`<>&*_[]()!\\#~$\"' \n-a1.:/", max_size=30)


@given(TEXTS)
def test_any_text_is_one_cell_that_reads_as_it_was_written(text: str) -> None:
    cell = code(text)
    assert "|" not in cell and "\n" not in cell
    shown = "".join(
        token.content
        for token in MarkdownIt().parseInline(cell)[0].children or []
        if token.type != "html_inline"
    )
    assert shown == (" ".join(text.split()) or UNKNOWN)


@given(TEXTS)
def test_any_text_is_no_markup_in_a_sentence(text: str) -> None:
    (inline,) = MarkdownIt("commonmark", {"html": True}).parseInline(f"Terms: {plain(text)}")
    kinds = {token.type for token in inline.children or []}
    # An underscore in an address must remain one; emphasis is the worst that it does.
    assert kinds <= {"text", "text_special", "em_open", "em_close", "strong_open", "strong_close"}
    if "_" not in text:
        shown = "".join(token.content for token in inline.children or [])
        assert shown.strip() == f"Terms: {' '.join(text.split())}".strip()


@given(TEXTS)
def test_any_text_is_a_python_literal(text: str) -> None:
    assert "\n" not in literal(text)
    assert ast.literal_eval(literal(text)) == text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("resid_post/layer_20/l0_67", "`resid_post/layer_20/l0_67`"),
        ("a|b", "<code>a&#124;b</code>"),
        ("_a_", "`_a_`"),
        ("*_a_", "<code>&#42;&#95;a&#95;</code>"),
        ("a\nb", "`a b`"),
        ("", UNKNOWN),
        (None, UNKNOWN),
    ],
)
def test_a_name_is_set_in_the_font_of_code(value: str | None, shown: str) -> None:
    assert code(value) == shown


def test_an_address_in_a_sentence_remains_one() -> None:
    assert plain("See https://e.org/my_terms#x") == "See https://e.org/my_terms#x"
    assert plain("a|b <c>\n[d](e)") == "a&#124;b &#60;c&#62; &#91;d&#93;(e)"


def test_a_summary_holds_no_tags_of_others() -> None:
    assert html("a_b</code>\n<b>") == "<code>a_b&lt;/code&gt; &lt;b&gt;</code>"


def test_a_path_leads_to_no_other_host_and_ends_no_link() -> None:
    assert address("//e.org", "plots", "a (b).png") == "e.org/plots/a%20%28b%29.png"
    assert address("javascript:x", "y") == "javascript%3Ax/y"
