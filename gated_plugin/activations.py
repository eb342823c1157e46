"""A stream of shuffled activations that can be sought to any place, for exact resumption.

SAELens' own store restores a place in the dataset, but neither its shuffle buffer nor its random
state, so that a resumed run sees other batches. Here the activations of a fixed number of prompts
(a chunk) are permuted by a generator that is seeded with the chunk's number: batch k of chunk c is
a function of (dataset, seed, c, k) alone. What a chunk has left over is dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.training.activations_store import ActivationsStore
from torch import Tensor

from gated_plugin.errors import GatedError

CHUNK_STRIDE = 1_000_003  # seed + stride · chunk: chunks of neighbouring seeds do not coincide


class ActivationStream(Iterator[Tensor]):
    """Batches [train_batch_size_tokens, d_in] of a hook point's activations, float32.

    Args:
        model: a TransformerLens model.
        dataset: rows of text or of tokens, as SAELens takes them.
        cfg: of it are used what shapes the activations, `seed`, and `n_batches_in_buffer`
            (batches of `store_batch_size_prompts` prompts in a chunk).
    """

    def __init__(self, model: Any, dataset: Any, cfg: LanguageModelSAERunnerConfig[Any]) -> None:
        self.cfg = cfg
        self.store = ActivationsStore.from_config(model, cfg, override_dataset=dataset)
        self.chunk = 0
        self.served = 0
        self._batches: tuple[Tensor, ...] = ()
        self._loaded = -1

    def __next__(self) -> Tensor:
        while True:
            if self._loaded != self.chunk:
                self._load_chunk()
            if self.served < len(self._batches):
                self.served += 1
                return self._batches[self.served - 1]
            if not self._batches:
                raise GatedError(
                    f"One buffer of activations ({self.cfg.n_batches_in_buffer} × "
                    f"{self.cfg.store_batch_size_prompts} prompts) holds less than a batch of "
                    f"{self.cfg.train_batch_size_tokens} tokens; raise n_batches_in_buffer."
                )
            self.chunk, self.served = self.chunk + 1, 0

    def position(self) -> dict[str, int]:
        """The place after the last batch, for `seek`."""
        return {"chunk": self.chunk, "served": self.served}

    def seek(self, chunk: int, served: int) -> None:
        """Continue with batch `served` of chunk `chunk`; skips tokens, not forward passes."""
        if chunk < self._loaded or self._loaded == -1:
            self.store.iterable_sequences = self.store._iterate_tokenized_sequences()
            self._loaded = -1
        for _ in range(self._loaded + 1, chunk):
            for _ in range(self.cfg.n_batches_in_buffer):
                self.store.get_batch_tokens()
            self._loaded += 1
        self.chunk, self.served = chunk, served

    def _load_chunk(self) -> None:
        """Runs the language model over the next prompts; they are those of `self.chunk`."""
        acts = torch.cat(
            [self.store.get_filtered_llm_batch() for _ in range(self.cfg.n_batches_in_buffer)]
        )
        generator = torch.Generator().manual_seed(self.cfg.seed + CHUNK_STRIDE * self.chunk)
        order = torch.randperm(len(acts), generator=generator).to(acts.device)
        size = self.cfg.train_batch_size_tokens
        whole = len(acts) // size * size
        self._batches = acts[order[:whole]].split(size) if whole else ()
        self._loaded = self.chunk
