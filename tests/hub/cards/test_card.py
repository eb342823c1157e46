"""The card says what was measured, in YAML that the Hub reads and Markdown that nothing breaks."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from entries import HOSTILE, entry
from markdown_it import MarkdownIt
from markdown_it.token import Token
from miniature import FIGURES

from gated_plugin.errors import GatedError
from gated_plugin.hub import client, index
from gated_plugin.hub.cards import card, notes
from gated_plugin.hub.cards.markdown import UNKNOWN
from gated_plugin.recipes import PublishPlan, Recipe
from gated_plugin.runs import Run

REPO = "alice/books"
GEMMA = PublishPlan(
    license="other",
    license_name="gemma",
    license_link="https://ai.google.dev/gemma/terms",
    base_model="google/gemma-7b",
    base_model_terms="Gemma Terms of Use, https://ai.google.dev/gemma/terms",
    datasets=("monology/pile-uncopyrighted",),
)
LOCAL = PublishPlan(license="mit")


def front_matter(text: str) -> dict[str, Any]:
    block = re.match(r"---\n(.*?\n)---\n", text, re.S)
    assert block
    data: dict[str, Any] = yaml.safe_load(block[1])
    return data


def tokens(text: str) -> Iterator[Token]:
    for token in MarkdownIt("commonmark").enable("table").parse(text.split("\n---\n", 1)[1]):
        yield token
        yield from token.children or []


def tables(text: str) -> list[list[int]]:
    """The cells of each row of each table: a parser would drop those that are too many."""
    return [
        [row.count("|") - 1 for row in table.strip().split("\n")]
        for table in re.findall(r"(?:^\|.*\n)+", text, re.M)
    ]


def python_blocks(text: str) -> list[str]:
    return [token.content for token in tokens(text) if token.info == "python"]


def test_the_front_matter_states_licence_models_data_and_tags():
    data = front_matter(card.render(REPO, [entry()], GEMMA))
    del data["model-index"]
    assert data == {
        "library_name": "saelens",
        "license": "other",
        "license_name": "gemma",
        "license_link": "https://ai.google.dev/gemma/terms",
        "base_model": "google/gemma-7b",
        "datasets": ["monology/pile-uncopyrighted"],
        "tags": list(card.TAGS),
    }


def test_a_plan_without_a_licence_is_not_rendered():
    with pytest.raises(GatedError, match="No licence is stated"):
        card.render(REPO, [entry()], PublishPlan())


def test_the_evaluation_survives_the_hubs_client_for_every_sae():
    from huggingface_hub import ModelCard

    text = card.render(REPO, [entry(), entry(id="other", l0=3.0)], GEMMA)
    read = {result.metric_name: result.metric_value for result in ModelCard(text).data.eval_results}
    assert len(read) == 2 * len(card.METRICS)
    assert read["L0 of other"] == 3.0
    assert read["Loss recovered of resid_post/layer_20/width_131k/l0_67"] == 0.992


@pytest.mark.parametrize(
    ("dataset", "kind"),
    [
        ("monology/pile", "monology/pile"),
        ("embedded/books-heldout", "books-heldout"),
        ("my data.v2", "my_data.v2"),
        ("a.b/c", "c"),
        ("a/b/c/", "unknown"),
        (None, "unknown"),
    ],
)
def test_the_evaluated_dataset_has_the_form_that_the_hub_asks_for(dataset, kind):
    text = card.render(REPO, [entry(evaluation__dataset=dataset)], GEMMA)
    ((result,),) = [model["results"] for model in front_matter(text)["model-index"]]
    assert result["dataset"]["type"] == kind
    assert re.fullmatch(r"(?:[\w-]+/)?[\w.-]+", kind)


def test_a_row_of_the_table_has_every_figure_and_rows_go_by_site_layer_width_and_l0():
    changes: list[dict[str, Any]] = [
        {"id": "e", "hook": "elsewhere"},
        {"id": "d", "hook": "blocks.9.hook_resid_post"},
        {"id": "c", "width": 262144},
        {"id": "b", "l0": 101.5},
        {"id": "a", "l0": 9.0},
        {"id": "0", "hook": "blocks.20.hook_mlp_out"},
    ]
    text = card.render(REPO, [entry(**change) for change in changes], GEMMA)

    table = text.split("| γ |", 1)[1].split("\n\n", 1)[0]
    assert re.findall(r"^\| `(\w)`", table, re.M) == ["e", "0", "d", "a", "b", "c"]
    assert (
        "| `b` | `blocks.20.hook_resid_post` | 131,072 | 0.9216 | 101.50 | 2.5426 | 2.6789 | "
        "19.5891 | 0.9920 | 0.2345 | 99.1 % | 1.0030 |"
    ) in table
    assert "6 Gated sparse autoencoders" in text


def test_the_text_names_training_files_check_limits_terms_and_citation():
    text = card.render(REPO, [entry()], GEMMA)
    for fact in (
        "1,228,800,000 tokens of `monology/pile-uncopyrighted`",
        "1,024 tokens, BOS prepended",
        "learning rate 0.0003, β1 0, 4,096 tokens per batch",
        "`expected_average_only_in`, folded into the weights",
        f"| `float32` | 3,222,814,720 | `{'ab' * 32}` |",
        "1,048,576 tokens of",
        "of 64 recorded activations",
        "at most 3.0e-09 in float64",
        "4.0e-07 of the largest value",
        "gated-hub verify alice/books",
        "by +0.1363 nats per token",
        "0.9 % never fired",
        "BatchTopK and JumpReLU SAEs edge past",
        "arxiv.org/abs/2503.09532",
        "Its terms: Gemma Terms of Use, https://ai.google.dev/gemma/terms\n",
        "arXiv preprint arXiv:2404.16014",
        "](resid_post/layer_20/width_131k/l0_67/plots/training.png)",
        "[google/gemma-7b](https://huggingface.co/google/gemma-7b)",
    ):
        assert fact in text, fact
    assert "local language model" not in text


def test_what_our_own_index_says_leaves_nothing_open(run: Run):
    recipe = Recipe.load(run.recipe)
    ours = index.entry(recipe, FIGURES)
    ours |= {name: entry()[name] for name in ("id", "weights", "compared")}
    text = card.render(REPO, [ours], recipe.publish)
    assert text.count(UNKNOWN) == 1 and "–: not recorded" in text
    assert "`embedded/books-gelu-1l-256`, a local language model" in text
    assert "base_model" not in front_matter(text)
    assert "Its terms: The language model is MIT licensed.\n" in text


def test_what_was_not_recorded_is_neither_claimed_nor_invented():
    bare = {"id": "a", "model": None}
    text = card.render(REPO, [bare], LOCAL)
    row = next(line for line in text.splitlines() if line.startswith("| `a`"))
    assert row == "| `a` |" + " – |" * 11
    assert "model-index" not in front_matter(text)
    assert "No comparison with plain SAELens is recorded here." in text
    assert "Its terms are not stated here." in text
    for claim in ("nats per token.", "never fired", "certificate.json", "torch.randn", "Gated sp"):
        assert claim not in text


def test_one_sae_without_a_comparison_is_named():
    text = card.render(REPO, [entry(), entry(id="b", compared=None)], GEMMA)
    assert "No such comparison is recorded for `b`." in text
    text = card.render(REPO, [entry(), entry(id="b", compared__float64=1e-6)], GEMMA)
    assert "at most 1.0e-06 in float64" in text
    assert "No such comparison" not in text


def test_thirty_saes_share_one_text():
    saes = [entry(id=f"l0_{i}", l0=float(i), seed=i) for i in range(30)]
    for i, sae in enumerate(saes):
        sae["training"]["l1_coefficient"] = 30.0 - i
    one, thirty = (card.render(REPO, some, GEMMA) for some in (saes[:1], saes))

    body = thirty.split("\n---\n", 1)[1]
    assert "What differs" not in body
    assert body.count("monology/pile-uncopyrighted") == one.count("`monology/pile-uncopyrighted`")
    assert body.count("| optimizer |") == 1
    # A row of figures, one of the file, and a folded plot of seven lines.
    assert len(body.splitlines()) < 110 + 30 * 9
    assert body.count("</details>") == body.count("<details>") == 31


def test_settings_that_differ_are_a_table_and_those_shared_are_said_once():
    text = card.render(REPO, [entry(), entry(id="b", l0=99.0, training__lr=1e-3)], GEMMA)
    rows = re.search(r"What differs:\n\n(.*?)\n\n", text, re.S)
    assert rows and rows[1].splitlines() == [
        "| id | optimizer |",
        "|---|---|",
        "| `resid_post/layer_20/width_131k/l0_67` | Adam, learning rate 0.0003, β1 0, 4,096 tokens per batch |",
        "| `b` | Adam, learning rate 0.001, β1 0, 4,096 tokens per batch |",
    ]
    assert text.count("BOS prepended") == 1


def test_a_steered_lambda_is_not_passed_off_as_the_trained_one():
    text = card.render(REPO, [entry(training__target_l0=60.0)], GEMMA)
    assert "| 0.9216* | 67.00 |" in text
    assert "| λ steered towards | L0 60 |" in text
    assert "(* the value where it started" in text
    assert "(*" not in card.render(REPO, [entry()], GEMMA)


def test_a_hostile_index_breaks_neither_tables_nor_fences_nor_front_matter():
    names = ("id", "model", "hook", "architecture")  # an id has no line breaks
    nested = (
        "training__dataset", "training__normalize_activations", "training__dtype",
        "evaluation__dataset", "weights__dtype", "weights__sha256",
    )  # fmt: skip
    hostile = entry(**{name: f"{name}{HOSTILE}" for name in (*names, *nested)})
    hostile["id"] = hostile["id"].replace("\n", " ")
    hostile["weights"]["plots"] = [f"{HOSTILE}.png"]
    plan = PublishPlan(license="mit", base_model_terms=HOSTILE)
    saes = [entry(), hostile]
    text, tame = (card.render(REPO, some, plan) for some in (saes, [entry(), entry(id="b")]))

    assert front_matter(text).keys() == front_matter(tame).keys()
    differing = 6  # id, architecture, trained on, normalisation, trained in, evaluated on
    assert tables(text) == [[12] * 4, [2] * 7, [differing] * 4, [4] * 4]
    assert len([token for token in tokens(text) if token.type == "table_open"]) == 4
    html = [token.content for token in tokens(text) if token.type.startswith("html_")]
    assert not any("<script" in content for content in html)
    assert {content.strip() for content in html} >= {notes.BEGIN, notes.END}
    headings = [token.tag for token in tokens(text) if token.type == "heading_open"]
    assert headings == [token.tag for token in tokens(tame) if token.type == "heading_open"]
    links = {token.attrGet("href") for token in tokens(text) if token.type == "link_open"}
    assert "http://q" not in links
    assert "49" not in text
    assert len(python_blocks(text)) == len(python_blocks(tame)) == 2
    check_literals = card.render(REPO, [hostile], plan)
    for block in python_blocks(check_literals):
        calls = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Call)]
        strings = [arg.value for arg in calls[0].args if isinstance(arg, ast.Constant)]
        assert strings == [REPO, hostile["id"]]


@pytest.mark.parametrize(
    "damage",
    [
        {"l0": "67"},
        {"l0": float("nan")},
        {"l0": True},
        {"l0": 10**400},
        {"width": -1},
        {"width": 1.5},
        {"id": ""},
        {"id": 7},
        {"id": "a\nb"},
        {"id": "\x1b[2J"},
        {"id": "\ud800"},
        {"hook": ["blocks"]},
        {"training": "much"},
        {"training__prepend_bos": "no"},
        {"training__datasets": ["a b"]},
        {"training__datasets": "monology/pile"},
        {"weights": [1]},
        {"weights__plots": [None]},
        {"compared__float64": "small"},
    ],
    ids=str,
)
def test_a_malformed_fact_is_refused_by_name(damage):
    with pytest.raises(GatedError, match=r"^The index .*push") as refusal:
        card.render(REPO, [entry(**damage)], GEMMA)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_an_index_without_saes_has_no_card():
    with pytest.raises(GatedError, match="lists no SAE; push one"):
        card.render(REPO, [], GEMMA)


def test_an_absurd_layer_is_no_crash():
    card.render(REPO, [entry(hook=f"blocks.{'9' * 5000}.hook_mlp_out")], GEMMA)


def test_notes_and_a_persons_metadata_survive_rendering_again():
    first = card.render(REPO, [entry()], GEMMA)
    edited = first.replace(notes.BEGIN, f"{notes.BEGIN}\n## Mine\n\n{{{{ 7 }}}} | `x`")
    edited = edited.replace("license: other", "extra_gated_prompt: Agree?\nlicense: mit")
    edited = edited.replace("- saelens\n", "- saelens\n- mine\n")

    again = card.render(REPO, [entry()], GEMMA, notes.kept(edited, "README.md"))
    assert "## Mine\n\n{{ 7 }} | `x`" in again
    data = front_matter(again)
    assert data["extra_gated_prompt"] == "Agree?"
    assert data["license"] == "other"
    assert data["tags"] == [*card.TAGS, "mine"]
    assert card.render(REPO, [entry()], GEMMA, notes.kept(again, "README.md")) == again


def test_a_card_of_ours_without_notes_is_the_same_when_rendered_again():
    first = card.render(REPO, [entry()], GEMMA)
    assert card.render(REPO, [entry()], GEMMA, notes.kept(first, "README.md")) == first
    assert "## Notes" not in first


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    plots = tmp_path / entry()["id"] / "plots"
    plots.mkdir(parents=True)
    (plots / "training.png").touch()
    return tmp_path


def test_a_rendered_card_passes_its_check(staged):
    card.check_card(card.render(REPO, [entry()], GEMMA), staged)


def test_an_image_of_another_sae_may_be_on_the_hub_already(staged):
    text = card.render(REPO, [entry(), entry(id="b")], GEMMA)
    with pytest.raises(GatedError, match=r"it shows b/plots/training\.png, and there is no such"):
        card.check_card(text, staged)
    card.check_card(text, staged, {"b/plots/training.png"})


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("---\nlibrary_name", "library_name", "has no library_name"),
        ("license: other", "license: ''", "has no license"),
        ("license: other", "license: [", "cannot be read"),
        ("license: other", "eval_results: 1\nlicense: other", "changes when|cannot be read"),
        ("license: other", "model_name: 1\nlicense: other", "changes when"),
        ("- name: alice/books\n", "- nome: alice/books\n", "cannot be read"),
        ("](resid_post", "](elsewhere/resid_post", "it shows elsewhere/"),
    ],
)
def test_a_card_that_the_hub_would_refuse_does_not_pass(staged, old, new, says):
    text = card.render(REPO, [entry()], GEMMA)
    assert old in text
    with pytest.raises(GatedError, match=says) as refusal:
        card.check_card(text.replace(old, new, 1), staged)
    assert "\n" not in str(refusal.value)


def test_images_from_elsewhere_are_not_looked_for(staged):
    text = card.render(REPO, [entry()], GEMMA, notes.Kept("![x](https://e.org/x.png)", {}))
    card.check_card(text, staged)


def test_the_snippets_run_as_pasted(run: Run, hub, tmp_path: Path):
    """The first in plain SAELens, the second with the plugin."""
    import torch

    from gated_plugin import GatedSAE

    small = entry(id="mlp/l0_12", hook="blocks.0.mlp.hook_post", width=64, weights__d_in=16)
    api = client.connect()
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=run.sae, path_in_repo=small["id"])
    plain, ours = python_blocks(card.render(REPO, [small], LOCAL))

    program = f"{plain}\nassert type(sae).__module__.startswith('sae_lens.')\n"
    program += "print(tuple(features.shape), tuple(reconstructions.shape))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "GATED_PLUGIN_AUTOLOAD": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip().splitlines()[-1] == "(8, 64) (8, 16)"
    names: dict[str, Any] = {}
    exec(ours, names)
    assert isinstance(names["sae"], GatedSAE)
    assert names["sae"].encode(torch.zeros(1, 16)).shape == (1, 64)
