"""A recipe that trains in a second, and commands that run in processes of their own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

from gated_hub_process import Command, Ended, start_fork_server

from gated_plugin import quickstart

TINY = """\
name: tiny
model_name: embedded/books-gelu-1l-256
hook_name: blocks.0.hook_resid_post
dataset_path: embedded/books
context_size: 128
sae:
  architecture: gated
  d_in: 256
  d_sae: 64
  l1_coefficient: 0.8
  normalize_activations: expected_average_only_in
training_tokens: 1280
train_batch_size_tokens: 64
lr: 0.001
adam_beta1: 0.0
n_batches_in_buffer: 2
store_batch_size_prompts: 2
n_batches_for_norm_estimate: 2
feature_sampling_window: 15
evaluation:
  dataset_path: embedded/books-heldout
  tokens: 2048
  batch_size_prompts: 4
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file: 20 steps of 64 tokens, four to a buffer of activations."""
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="module")
def unpacked_once() -> Iterator[None]:
    """Unpacks the embedded text once for a module of tests, not a quarter of a second each time."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(quickstart, "tokens", cache(quickstart.tokens))
        yield


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """torch with one thread, so that sums are added in one order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Command]:
    """Starts `gated-hub ARGUMENT…` as a process."""
    start_fork_server()

    def start(*arguments: object, before: Callable[[], None] | None = None) -> Command:
        return Command([str(a) for a in arguments], tmp_path_factory.mktemp("printed"), before)

    return start


@pytest.fixture(scope="session")
def gated_hub(start: Callable[..., Command]) -> Callable[..., Ended]:
    """Runs `gated-hub ARGUMENT…` to its end."""
    return lambda *arguments: start(*arguments).wait()
