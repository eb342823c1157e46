"""A stream of shuffled activations that can be sought to any place, for exact resumption.

SAELens' own store restores a place in the dataset, but neither its shuffle buffer nor its random
state, so that a resumed run sees other batches. Here the activations of a fixed number of prompts
(a chunk) are permuted by a generator that is seeded with the chunk's number: batch k of chunk c is
a function of (dataset, seed, c, k) alone. What a chunk has left over is dropped.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

import torch
from sae_lens.config import LanguageModelSAERunnerConfig
from sae_lens.training.activations_store import ActivationsStore
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor

from gated_plugin.activation_cache import ActivationCache
from gated_plugin.errors import GatedError

CHUNK_STRIDE = 1_000_003  # seed + stride · chunk: chunks of neighbouring seeds do not coincide


def open_store(
    model: Any, dataset: Any, cfg: LanguageModelSAERunnerConfig[Any]
) -> ActivationsStore:
    """SAELens' store of tokens and activations.

    Raises:
        GatedError: the dataset's rows or the hook point do not fit `cfg`.
    """
    width = _hook_width(model, cfg)
    if width != cfg.sae.d_in:
        raise GatedError(
            f"{cfg.hook_name} of {cfg.model_name} has {width} dimensions, but the recipe says "
            f"sae.d_in = {cfg.sae.d_in}; give --set sae.d_in={width}, or another hook_name."
        )
    if next(iter(dataset), None) is None:
        raise GatedError(f"{cfg.dataset_path} has no rows; give another dataset_path.")
    try:
        return ActivationsStore.from_config(model, cfg, override_dataset=dataset)
    except ValueError as error:
        sentence = " ".join(str(error).split()).rstrip(".")
        raise GatedError(f"{cfg.dataset_path} does not fit the recipe: {sentence}.") from error


@torch.no_grad()
def _hook_width(model: Any, cfg: LanguageModelSAERunnerConfig[Any]) -> int:
    """Dimensions of an activation at the hook point, its heads concatenated or one chosen."""
    name, head = cfg.hook_name, cfg.hook_head_index
    if name not in model.hook_dict:
        near = get_close_matches(name, list(model.hook_dict), n=1, cutoff=0.0)
        raise GatedError(
            f"{cfg.model_name} has no hook point {name!r}; the nearest is {near[0]!r}: "
            f"give --set hook_name={near[0]}."
        )
    shape = model.run_with_cache(
        torch.zeros(1, 1, dtype=torch.long, device=cfg.llm_device),
        names_filter=[name],
        stop_at_layer=extract_stop_at_layer_from_tlens_hook_name(name),
        prepend_bos=False,
        **cfg.model_kwargs,
    )[1][name].shape[2:]
    if head is not None and not (len(shape) == 2 and 0 <= head < shape[0]):
        raise GatedError(
            f"{name} of {cfg.model_name} has no head {head}: its activations have the shape "
            f"{tuple(shape)}; give another hook_head_index, or none."
        )
    return shape.numel() if head is None else shape[1]


class ActivationStream(Iterator[Tensor]):
    """Batches [train_batch_size_tokens, d_in]; each depends on its place and `cfg` alone."""

    def __init__(self, cfg: LanguageModelSAERunnerConfig[Any]) -> None:
        self.cfg = cfg
        self.chunk = 0
        self.served = 0

    @abstractmethod
    def __next__(self) -> Tensor: ...

    def position(self) -> dict[str, int]:
        """The place after the last batch, for `seek`."""
        return {"chunk": self.chunk, "served": self.served}

    def seek(self, chunk: int, served: int) -> None:
        """Continue with batch `served` of chunk `chunk`; skips tokens, not forward passes."""
        self.chunk, self.served = chunk, served


class TextStream(ActivationStream):
    """Batches of what a language model makes of a text at a hook point, float32.

    Args:
        model: a TransformerLens model.
        dataset: rows of text or of tokens, as SAELens takes them.
        cfg: of it are used what shapes the activations, `seed`, and `n_batches_in_buffer`
            (batches of `store_batch_size_prompts` prompts in a chunk).
        cache: keeps what the language model made of each chunk, for streams that come later; the
            batches are the same bit for bit.

    Raises:
        GatedError: model, dataset and `cfg` do not fit each other; from `next`, also activations
            that are not finite.
    """

    def __init__(
        self,
        model: Any,
        dataset: Any,
        cfg: LanguageModelSAERunnerConfig[Any],
        cache: ActivationCache | None = None,
    ) -> None:
        super().__init__(cfg)
        self.cache = cache
        self.store = open_store(model, dataset, cfg)
        self._batches: tuple[Tensor, ...] = ()
        self._loaded = -1
        """The chunk that `_batches` are of."""
        self._coming = 0
        """The chunk whose prompts the store gives next."""

    def __next__(self) -> Tensor:
        while True:
            if self._loaded != self.chunk:
                self._load_chunk()
            if self.served < len(self._batches):
                self.served += 1
                return self._batches[self.served - 1]
            self.chunk, self.served = self.chunk + 1, 0

    def _load_chunk(self) -> None:
        """Shuffles the activations of `self.chunk`."""
        acts = self._activations()
        generator = torch.Generator().manual_seed(self.cfg.seed + CHUNK_STRIDE * self.chunk)
        order = torch.randperm(len(acts), generator=generator).to(acts.device)
        size = self.cfg.train_batch_size_tokens
        whole = len(acts) // size * size
        if not whole:
            raise GatedError(
                f"One buffer of activations ({self.cfg.n_batches_in_buffer} × "
                f"{self.cfg.store_batch_size_prompts} prompts) holds less than a batch of "
                f"{size} tokens; raise n_batches_in_buffer."
            )
        self._batches = acts[order[:whole]].split(size)
        self._loaded = self.chunk

    def _activations(self) -> Tensor:
        """What the language model makes of the prompts of `self.chunk` [tokens, d_in]."""
        kept = None if self.cache is None else self.cache.read(self.chunk)
        if kept is not None:
            return kept
        try:
            self._skip_to(self.chunk)
            acts = torch.cat(
                [self.store.get_filtered_llm_batch() for _ in range(self.cfg.n_batches_in_buffer)]
            )
        except StopIteration:
            raise GatedError(
                f"{self.cfg.dataset_path} has no text of context_size = {self.cfg.context_size} "
                "tokens; lower context_size or give another dataset_path."
            ) from None
        self._coming = self.chunk + 1
        self._require_finite(acts)
        if self.cache is not None:
            self.cache.write(self.chunk, acts)
        return acts

    def _require_finite(self, acts: Tensor) -> None:
        bad = (~acts.isfinite().all(-1)).sum().item()
        if bad:
            prompts = self.cfg.n_batches_in_buffer * self.cfg.store_batch_size_prompts
            raise GatedError(
                f"{bad} of the {len(acts)} activations of {self.cfg.hook_name} in prompts "
                f"{self.chunk * prompts} to {(self.chunk + 1) * prompts - 1} hold NaN or infinity; "
                "mend the model or the dataset, then continue with --resume."
            )

    def _skip_to(self, chunk: int) -> None:
        if chunk < self._coming:
            self.store.iterable_sequences = self.store._iterate_tokenized_sequences()
            self._coming = 0
        for _ in range(self._coming, chunk):
            for _ in range(self.cfg.n_batches_in_buffer):
                self.store.get_batch_tokens()
