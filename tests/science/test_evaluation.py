"""Evaluation on held-out text, against float64 on everything at once, and against SAELens."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sae_lens import SAE
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from gated_plugin import quickstart
from gated_plugin.errors import GatedError
from gated_plugin.recipes import Recipe
from gated_plugin.runner import train
from gated_plugin.runs import Run
from gated_plugin.science.evaluation import Evaluation, evaluate
from gated_plugin.science.intervals import Interval

pytestmark = pytest.mark.usefixtures("unpacked_once")

HOOK = "blocks.0.hook_resid_post"
ROWS = 16


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    """What the tiny recipe evaluates on."""
    rows = quickstart.dataset("embedded/books-heldout").select(range(ROWS))
    return torch.tensor(rows["input_ids"])


@pytest.fixture(scope="module")
def trained(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Recipe]:
    recipe = Recipe.load(tiny)
    return train(recipe, tmp_path_factory.mktemp("trained") / "run", quiet=True), recipe


Make = Callable[..., tuple[Run, Recipe]]


def identity(d_in: int = 256) -> dict[str, torch.Tensor]:
    """x = ReLU(x) − ReLU(−x), with 2 d_in features."""
    both = torch.cat([torch.eye(d_in), -torch.eye(d_in)])
    return {"W_enc": both.T.contiguous(), "W_dec": both}


def test_figures_are_those_of_all_tokens_at_once(
    trained: tuple[Run, Recipe], tokens: torch.Tensor, language_model: Any
) -> None:
    run, recipe = trained
    found = evaluate(run, recipe, quiet=True)
    sae = SAE.load_from_disk(run.sae)
    with torch.no_grad():
        x = language_model.run_with_cache(tokens)[1][HOOK].flatten(0, 1)
        features, x = sae.encode(x), x.double()
        x_hat = features.double() @ sae.W_dec.double() + sae.b_dec.double()
    assert found.tokens_evaluated == ROWS * 128
    assert found.tokens_trained == 1280
    assert found.l0 == pytest.approx((features > 0).sum(1).double().mean().item(), rel=1e-4)
    assert found.alive == (features > 0).any(0).double().mean().item()
    gamma = x_hat.square().sum() / (x_hat * x).sum()
    assert found.gamma == pytest.approx(gamma.item(), rel=1e-5)
    fvu = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    assert found.fvu == pytest.approx(fvu.item(), rel=1e-5)
    clean = language_model(tokens, return_type="loss").item()
    assert found.ce_clean == pytest.approx(clean, rel=1e-5)


def test_what_is_written_is_what_is_returned(trained: tuple[Run, Recipe]) -> None:
    run, recipe = trained
    found = evaluate(run, recipe, quiet=True)
    written = json.loads(run.evaluation.read_text())
    for name in ("l0", "loss_recovered", "gamma", "fvu"):
        low, high = written[f"{name}_interval"] = Interval(*written[f"{name}_interval"])
        assert low < written[name] < high
    assert Evaluation(**written) == found
    features = load_file(run.features)
    assert features["firing_rate"].sum().item() == pytest.approx(found.l0)
    assert (features["firing_rate"] > 0).float().mean().item() == pytest.approx(found.alive)
    assert (features["firing_rate"] == 0).sum() == found.n_dead
    assert (features["firing_rate"] > 0.1).sum() == found.n_dense
    assert load_file(run.activations)["activations"].shape == (256, 256)


def test_a_perfect_sae_recovers_the_whole_loss(made: Make) -> None:
    found = evaluate(*made("sae.d_sae=512", **identity()), quiet=True)
    assert found.loss_recovered == pytest.approx(1, abs=1e-6)
    assert found.gamma == pytest.approx(1, abs=1e-9)
    assert found.fvu == pytest.approx(0, abs=1e-9)
    assert found.l0 == pytest.approx(256, abs=0.01)


def test_a_dead_sae_recovers_nothing(made: Make) -> None:
    found = evaluate(*made(), quiet=True)
    assert (found.l0, found.alive, found.gamma) == (0, 0, None)
    assert found.loss_recovered == 0
    assert found.ce_sae == found.ce_zero > found.ce_clean


@pytest.mark.parametrize(
    ("given", "excluded", "start", "end"),
    [("true", [quickstart.BOS], None, None), ("[0, 12, 316]", [0, 12, 316], 4, -4)],
)
def test_masked_positions_are_neither_spliced_nor_counted(
    given: str,
    excluded: list[int],
    start: int | None,
    end: int | None,
    made: Make,
    tokens: torch.Tensor,
    language_model: Any,
) -> None:
    positions = f"seqpos_slice={json.dumps([start, end])}"
    found = evaluate(*made(f"exclude_special_tokens={given}", positions), quiet=True)
    mask = torch.zeros_like(tokens, dtype=torch.bool)
    mask[:, start:end] = True
    assert (tokens[mask] == excluded[-1]).any()
    mask &= ~torch.isin(tokens, torch.tensor(excluded))
    assert found.tokens_evaluated == mask.sum()

    def zero(x: torch.Tensor, hook: object) -> torch.Tensor:
        return x.masked_fill(mask[..., None], 0)

    for hooks, value in (([], found.ce_clean), ([(HOOK, zero)], found.ce_sae)):
        _, losses = language_model.run_with_hooks(
            tokens, return_type="both", loss_per_token=True, fwd_hooks=hooks
        )
        assert value == pytest.approx(losses[mask[:, :-1]].mean().item(), rel=1e-5)


def test_text_without_a_token_that_counts_is_refused(made: Make) -> None:
    everything = json.dumps(list(range(4096)))
    with pytest.raises(GatedError, match="no token that the SAE is for"):
        evaluate(*made(f"exclude_special_tokens={everything}"), quiet=True)


@pytest.mark.parametrize("reshape", ["none", "hook_z"])
def test_all_heads_of_hook_z_are_spliced_together(reshape: str, made: Make) -> None:
    overrides = ("hook_name=blocks.0.attn.hook_z", f"sae.reshape_activations={reshape}")
    found = evaluate(*made(*overrides, "sae.d_sae=512", **identity()), quiet=True)
    assert found.tokens_evaluated == ROWS * 128
    assert found.loss_recovered == pytest.approx(1, abs=1e-5)
    assert evaluate(*made(*overrides), quiet=True).loss_recovered == 0


def test_one_head_is_spliced_alone(made: Make, tokens: torch.Tensor, language_model: Any) -> None:
    overrides = ("hook_name=blocks.0.attn.hook_z", "hook_head_index=3", "sae.d_in=32")
    found = evaluate(*made(*overrides), quiet=True)

    def zero(z: torch.Tensor, hook: object) -> torch.Tensor:
        z[:, :, 3] = 0
        return z

    hooks = [("blocks.0.attn.hook_z", zero)]
    expected = language_model.run_with_hooks(tokens, return_type="loss", fwd_hooks=hooks)
    assert found.ce_sae == pytest.approx(expected.item(), rel=1e-5)
    assert found.ce_sae > found.ce_clean


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def foreign(path: Path) -> None:
    path.write_bytes(b"not an SAE")


@pytest.mark.parametrize("file", ["sae_weights.safetensors", "cfg.json"])
@pytest.mark.parametrize("damage", [truncate, foreign])
def test_damaged_files_are_one_sentence_and_nothing_is_written(
    file: str, damage: Callable[[Path], None], made: Make
) -> None:
    run, recipe = made()
    damage(run.sae / file)
    with pytest.raises(GatedError) as caught:
        evaluate(run, recipe, quiet=True)
    assert str(run.sae) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {path.name for path in run.path.iterdir()} == {"sae", ".lock"}


def test_weights_that_are_not_finite_write_nothing(made: Make) -> None:
    run, recipe = made(b_dec=torch.full((256,), float("nan")))
    with pytest.raises(GatedError, match="b_dec holds NaN or infinity"):
        evaluate(run, recipe, quiet=True)
    assert {path.name for path in run.path.iterdir()} == {"sae", ".lock"}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("evaluation.batch_size_prompts=100_000", "holds less than one batch of 100000 prompts"),
        ("evaluation.dataset_path=embedded/films", "no embedded dataset 'embedded/films'"),
        ("evaluation.dataset_path=./nowhere", "could not be loaded"),
        ("sae.d_in=128", "has 256 dimensions, but the recipe says sae.d_in = 128"),
    ],
)
def test_what_does_not_fit_is_one_sentence(override: str, said: str, made: Make) -> None:
    with pytest.raises(GatedError) as caught:
        evaluate(*made(override), quiet=True)
    assert said in str(caught.value)


def test_a_transformers_model_and_saved_text_in_local_folders(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=64, vocab_size=4096)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    quickstart.tokenizer().save_pretrained(tmp_path / "model")
    text = ["It was the best of times, it was the worst of times. " * 20] * 40
    Dataset.from_dict({"text": text}).save_to_disk(tmp_path / "text")
    recipe = Recipe.load(
        tiny,
        [
            "model_class_name=AutoModelForCausalLM",
            f"model_name={tmp_path / 'model'}",
            "hook_name=transformer.h.0",
            f"dataset_path={tmp_path / 'text'}",
            f"evaluation.dataset_path={tmp_path / 'text'}",
            "context_size=32",
            "sae.d_in=32",
            "is_dataset_tokenized=false",
        ],
    )
    run = train(recipe, tmp_path / "run", quiet=True)
    found = evaluate(run, recipe, quiet=True)
    assert found.tokens_evaluated == 2048
    assert found.ce_clean == pytest.approx(8.3, abs=0.5)  # log 4096, as untrained
