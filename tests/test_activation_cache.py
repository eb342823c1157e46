"""Activations kept on disk: the same batches, apart by what shapes them, never half written."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gated_plugin import quickstart
from gated_plugin.activation_cache import ActivationCache, bytes_on_disk
from gated_plugin.activations import TextStream
from gated_plugin.errors import GatedError
from gated_plugin.recipes import Recipe

pytestmark = pytest.mark.usefixtures("unpacked_once")

Streams = Callable[..., TextStream]
ROWS = 10


@pytest.fixture(scope="module")
def language_model() -> Any:
    return quickstart.language_model()


@pytest.fixture
def streams(tiny: Path, language_model: Any, tmp_path: Path) -> Streams:
    def stream(*overrides: str, cached: bool = True) -> TextStream:
        cfg = Recipe.load(tiny, overrides).runner_config()
        rows = quickstart.dataset("embedded/books").select(range(ROWS))
        cache = ActivationCache(tmp_path / "cache", cfg) if cached else None
        return TextStream(language_model, rows, cfg, cache)

    return stream


def equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


def batches(stream: TextStream, count: int = 20) -> list[Tensor]:
    return list(islice(stream, count))


@pytest.mark.parametrize("overrides", [(), ("exclude_special_tokens=true", "seqpos_slice=[3, -2]")])
def test_batches_are_the_same_without_written_and_read(
    streams: Streams, overrides: tuple[str, ...]
) -> None:
    expected = batches(streams(*overrides, cached=False))
    written, read = batches(streams(*overrides)), batches(streams(*overrides))
    assert all(map(equal, written, expected))
    assert all(map(equal, read, expected))


def test_another_seed_and_batch_size_share_the_file_and_shuffle_for_themselves(
    streams: Streams, tmp_path: Path
) -> None:
    expected = batches(streams("seed=5", "train_batch_size_tokens=128", cached=False))
    batches(streams())
    files = set((tmp_path / "cache").rglob("*"))
    other = streams("seed=5", "train_batch_size_tokens=128")
    other.store.get_filtered_llm_batch = None  # so that the language model cannot run
    assert all(map(equal, batches(other, 8), expected))
    assert set((tmp_path / "cache").rglob("*")) == files


@pytest.mark.parametrize(
    "override",
    [
        "hook_name=blocks.0.hook_mlp_out",
        "context_size=64",
        "store_batch_size_prompts=4",
        "n_batches_in_buffer=4",
        "seqpos_slice=[3, -2]",
        "exclude_special_tokens=true",
        "dataset_path=embedded/books-heldout",
        "prepend_bos=false",
    ],
)
def test_what_shapes_the_activations_keeps_them_apart(
    streams: Streams, override: str, tmp_path: Path
) -> None:
    assert streams().cache.folder != streams(override).cache.folder


def test_a_stream_goes_on_where_the_files_end(streams: Streams) -> None:
    expected = batches(streams(cached=False), 40)
    batches(streams(), 12)
    assert all(map(equal, batches(streams(), 40), expected))


def test_a_file_in_the_middle_may_be_missing(streams: Streams) -> None:
    expected = batches(streams(cached=False), 24)
    stream = streams()
    batches(stream, 24)
    (stream.cache.folder / "chunk_000001.safetensors").unlink()
    assert all(map(equal, batches(streams(), 24), expected))


def test_a_damaged_file_is_one_sentence(streams: Streams) -> None:
    stream = streams()
    next(stream)
    (file,) = stream.cache.folder.iterdir()
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(GatedError, match=r"chunk_000000.safetensors is damaged .*; delete it and"):
        next(streams())


def test_a_full_disk_is_one_sentence_and_leaves_no_file(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: Any, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gated_plugin.activation_cache.save_file", full)
    stream = streams()
    with pytest.raises(GatedError, match=r"left on device\); make room, all of them take"):
        next(stream)
    assert list(stream.cache.folder.iterdir()) == []


def test_the_room_that_is_told_is_the_room_that_is_taken(streams: Streams) -> None:
    stream = streams("training_tokens=2560")
    told = bytes_on_disk(stream.cfg)
    batches(stream, stream.cfg.total_training_steps)
    taken = sum(file.stat().st_size for file in stream.cache.folder.iterdir())
    assert told == 5 * 512 * 256 * 4
    assert 0 <= taken - told < 5 * 200
