"""The stream of activations: batch k is the same however it is reached."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch import Tensor

from gated_plugin import quickstart
from gated_plugin.activations import TextStream
from gated_plugin.errors import GatedError
from gated_plugin.recipes import Recipe

pytestmark = pytest.mark.usefixtures("unpacked_once")

Streams = Callable[..., TextStream]

# Ten rows, of which a buffer takes four: batches of the 3rd buffer are from two epochs.
ROWS = 10
BATCHES = 40


@pytest.fixture(scope="module")
def language_model() -> object:
    return quickstart.language_model()


@pytest.fixture
def streams(tiny: Path, language_model: object) -> Streams:
    def stream(*overrides: str, rows: Dataset | None = None) -> TextStream:
        rows = quickstart.dataset("embedded/books").select(range(ROWS)) if rows is None else rows
        cfg = Recipe.load(tiny, overrides).runner_config()
        return TextStream(language_model, rows, cfg)

    return stream


def equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


@pytest.mark.parametrize("overrides", [(), ("exclude_special_tokens=true", "seqpos_slice=[3, -2]")])
def test_a_batch_is_the_same_reached_by_iterating_or_by_seeking(
    streams: Streams, overrides: tuple[str, ...]
) -> None:
    first = streams(*overrides)
    places, batches = [], []
    for _ in range(BATCHES):
        places.append(first.position())
        batches.append(next(first))
    fresh = [5, 39, 0, 38, 17, 18, 39, 16]
    for k in fresh:
        other = streams(*overrides)
        other.seek(**places[k])
        assert all(map(equal, islice(other, 3), batches[k:])), k
    wandering = streams(*overrides)
    for k in [*fresh, *reversed(range(0, BATCHES, 3))]:
        wandering.seek(**places[k])
        assert equal(next(wandering), batches[k]), k


def test_two_seeks_without_a_batch_between_them_end_at_the_second(streams: Streams) -> None:
    stream, straight = streams(), streams()
    next(stream)
    stream.seek(chunk=4, served=0)
    stream.seek(chunk=3, served=0)
    straight.seek(chunk=3, served=0)
    assert equal(next(stream), next(straight))


def test_an_epoch_later_the_order_is_another(streams: Streams) -> None:
    rows = quickstart.dataset("embedded/books").select(range(4))
    stream = streams(rows=rows)
    one, two = (torch.cat(list(islice(stream, 8))) for _ in range(2))
    assert not equal(one, two)
    assert equal(one.sort(0).values, two.sort(0).values)


def test_two_seeds_differ_and_the_same_seed_does_not(streams: Streams) -> None:
    one, same, other = (next(streams(f"seed={seed}")) for seed in (1, 1, 2))
    assert equal(one, same)
    assert not equal(one, other)


def test_neighbouring_seeds_do_not_share_the_order_of_later_chunks(streams: Streams) -> None:
    rows = quickstart.dataset("embedded/books").select(range(4))
    one, other = streams("seed=1", rows=rows), streams("seed=2", rows=rows)
    one.seek(chunk=1, served=0)
    assert not equal(next(one), next(other))


def test_batches_are_the_activations_of_the_hook_point(
    streams: Streams, language_model: object
) -> None:
    rows = quickstart.dataset("embedded/books").select(range(4))
    tokens = torch.tensor(rows["input_ids"])
    expected = language_model.run_with_cache(tokens)[1]["blocks.0.hook_resid_post"]
    served = torch.cat(list(islice(streams(rows=rows), 8)))
    assert served.shape == (512, 256)
    difference = served.sort(0).values - expected.reshape(-1, 256).sort(0).values
    assert difference.abs().max() < 1e-4


def test_special_tokens_are_left_out(streams: Streams, language_model: object) -> None:
    rows = quickstart.dataset("embedded/books").select(range(4))
    acts = language_model.run_with_cache(torch.tensor([[quickstart.BOS]]))[1]
    bos = acts["blocks.0.hook_resid_post"][0]

    def nearest(stream: TextStream) -> float:
        return torch.cdist(torch.cat(list(islice(stream, 7))), bos).min().item()

    assert nearest(streams(rows=rows)) < 1e-3
    assert nearest(streams("exclude_special_tokens=true", rows=rows)) > 1


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train_batch_size_tokens=513", "holds less than a batch of 513 tokens; raise n_batches"),
        (
            "sae.d_in=128",
            "has 256 dimensions, but the recipe says sae.d_in = 128; give --set sae.d",
        ),
        ("hook_name=blocks.0.hook_resid", "nearest is 'blocks.0.hook_resid_p"),
        ("hook_name=blocks.0.attn.hook_z", None),
        ("hook_head_index=0", "has no head 0"),
        ("context_size=200", "embedded/books does not fit the recipe: pretokenized"),
    ],
)
def test_what_does_not_fit_is_one_sentence(
    streams: Streams, override: str, sentence: str | None
) -> None:
    if sentence is None:
        assert next(streams(override)).shape == (64, 256)
        return
    with pytest.raises(GatedError) as caught:
        next(streams(override))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("head", [1, 8])
def test_one_head_of_a_hook_point_has_its_own_width(streams: Streams, head: int) -> None:
    overrides = ["hook_name=blocks.0.attn.hook_z", f"hook_head_index={head}", "sae.d_in=32"]
    if head == 1:
        assert next(streams(*overrides)).shape == (64, 32)
        return
    with pytest.raises(GatedError, match="has no head 8: its activations have the shape"):
        streams(*overrides)


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ({"text": ["too short"]}, "has no text of context_size = 128 tokens; lower context_size"),
        ({"input_ids": []}, "embedded/books has no rows"),
        ({"words": ["a"]}, "Dataset must have a"),
    ],
)
def test_a_dataset_without_use_is_one_sentence(
    streams: Streams, rows: dict[str, list[str]], sentence: str
) -> None:
    with pytest.raises(GatedError) as caught:
        next(streams("disable_concat_sequences=true", rows=Dataset.from_dict(rows)))
    assert sentence in str(caught.value)


def test_activations_that_are_not_finite_are_refused_with_their_prompts(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = streams()
    list(islice(stream, 8))
    get = stream.store.get_filtered_llm_batch
    monkeypatch.setattr(stream.store, "get_filtered_llm_batch", lambda: get() * float("inf"))
    with pytest.raises(
        GatedError, match=r"512 of the 512 activations of .* in prompts 4 to 7 hold"
    ):
        next(stream)
    assert stream.position() == {"chunk": 1, "served": 0}
