"""What is published of a run on synthetic activations: it can be loaded, and claims no model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from entries import entry
from miniature import FIGURES, RECIPE

import gated_plugin
from gated_plugin.errors import GatedError
from gated_plugin.hub import index, verification
from gated_plugin.hub.cards import parity, saelens_entry
from gated_plugin.hub.catalogue import saes
from gated_plugin.hub.publish import publish
from gated_plugin.recipes import SYNTHETIC, PublishPlan
from gated_plugin.runs import Run

REPO = "alice/scale"
ID = "synthetic/width_64/l0_12"
CLAIMS = "publish: {license: mit, base_model: google/gemma-7b, datasets: [me/text]}"


@pytest.fixture
def synthetic(run: Run) -> Run:
    """The miniature run, as if it had read no language model, though its recipe names one."""
    text = re.sub(r"publish:.*", CLAIMS, RECIPE, flags=re.S)
    run.recipe.write_text(f"synthetic: true\n{text}\n")
    absent = dict.fromkeys(index.OF_LANGUAGE_MODEL)
    run.evaluation.write_text(json.dumps({**FIGURES, **absent, "dataset_path": SYNTHETIC}))
    cfg = json.loads((run.sae / "cfg.json").read_text())
    cfg["metadata"] = {"synthetic": True}
    (run.sae / "cfg.json").write_text(json.dumps(cfg))
    return run


def test_the_card_says_at_its_top_that_it_is_of_no_model(synthetic, hub, trusting):
    folder = Path(publish([synthetic], REPO, quiet=True).folder)
    _, block, text = (folder / "README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(block)
    assert "synthetic-activations" in front["tags"]
    assert not {"base_model", "datasets", "model-index"} & front.keys()
    heading, warning, rest = text.strip().split("\n\n", 2)
    assert heading == f"# {REPO}"
    assert warning.startswith("> **Trained on synthetic activations: this is no dictionary of any")
    assert "on synthetic activations,\nmade with" in rest
    assert "| – | – | – | – | 0.0813 |" in rest
    for word in ("gemma", "books", "held-out", "Language model\n", "cross-entropy of", "–:\n"):
        assert word not in text


def test_index_and_description_name_no_language_model(synthetic, hub, trusting):
    published = publish([synthetic], REPO, quiet=True)
    assert published.sae_ids == (ID,)
    (found,) = saes(REPO).saes
    assert (found["model"], found["hook"], found["loss_recovered"]) == (
        SYNTHETIC,
        "synthetic",
        None,
    )
    assert found["training"]["dataset"] == found["evaluation"]["dataset"] == SYNTHETIC
    assert found["l0"] == 12.34
    for name in ("config.json", f"{ID}/cfg.json"):
        text = (Path(published.folder) / name).read_text()
        assert "gemma" not in text and "books" not in text


def test_it_is_published_again_and_loads_with_and_without_the_plugin(synthetic, hub, trusting):
    first = publish([synthetic], REPO, quiet=True)
    assert publish([synthetic], REPO, quiet=True).revision == first.revision
    sae = gated_plugin.load(REPO, ID)
    folder = Path(first.folder) / ID
    agreement = verification.verify(sae, folder / "activations.safetensors", str(folder))
    assert agreement.is_close


def test_a_licence_is_needed_here_too(synthetic, hub, trusting):
    synthetic.recipe.write_text(synthetic.recipe.read_text().replace("license: mit, ", ""))
    with pytest.raises(GatedError, match="No licence is stated"):
        publish([synthetic], REPO, quiet=True)


@pytest.mark.parametrize("name", ["l0", "gamma", "fvu", "tokens_evaluated"])
def test_a_figure_that_could_be_measured_must_be_there(synthetic, hub, trusting, edit, name):
    edit(synthetic.evaluation, **{name: None})
    with pytest.raises(GatedError, match=f"has no finite {name}"):
        publish([synthetic], REPO, quiet=True)


def test_losses_may_be_missing_for_synthetic_activations_alone(run, hub, trusting, edit):
    edit(run.evaluation, ce_sae=None)
    with pytest.raises(GatedError, match="has no finite ce_sae"):
        publish([run], REPO, quiet=True)


def test_a_repository_holds_synthetic_or_real_saes_not_both(
    run, made_run, synthetic, hub, trusting
):
    publish([synthetic], REPO, quiet=True)
    real = Run(run.path.with_name("real"))
    shutil.copytree(made_run, real.path)
    with pytest.raises(
        GatedError, match=r"more than one language model \(.*, synthetic activations"
    ):
        publish([real], REPO, quiet=True)


def test_it_is_no_entry_of_saelens_directory_and_stands_beside_no_paper_row():
    made = entry(model=SYNTHETIC, hook="synthetic", loss_recovered=None)
    with pytest.raises(GatedError, match="SAEs of synthetic activations, and SAELens' directory"):
        saelens_entry.entry_yaml(REPO, [made], PublishPlan(license="mit"))
    with pytest.raises(GatedError, match="leave out --paper"):
        parity.parity([made], "gemma-7b")
