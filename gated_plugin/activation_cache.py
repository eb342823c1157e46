"""Activations on disk, so that the language model reads a text once for many trainings.

A folder holds one file per chunk of `TextStream`: the raw activations [tokens, d_in] in
float32, before they are shuffled, so that runs of other seeds share them too.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from sae_lens.config import LanguageModelSAERunnerConfig
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gated_plugin.environment import versions
from gated_plugin.errors import GatedError
from gated_plugin.progress import byte_size
from gated_plugin.runs import beside

SHAPES_THEM = (
    "model_name",
    "model_class_name",
    "model_from_pretrained_kwargs",
    "model_kwargs",
    "autocast_lm",
    "llm_device",
    "hook_name",
    "hook_head_index",
    "dataset_path",
    "streaming",
    "use_chat_formatting",
    "context_size",
    "seqpos_slice",
    "prepend_bos",
    "sequence_separator_token",
    "disable_concat_sequences",
    "exclude_special_tokens",
    "store_batch_size_prompts",
    "n_batches_in_buffer",
)
"""What of a runner's configuration shapes a chunk before it is shuffled."""
FLOAT32_BYTES = 4


def tokens_per_chunk(cfg: LanguageModelSAERunnerConfig[Any]) -> int:
    """Activations in a chunk, special tokens included."""
    places = len(range(cfg.context_size)[slice(*cfg.seqpos_slice)])
    return cfg.n_batches_in_buffer * cfg.store_batch_size_prompts * places


def bytes_on_disk(cfg: LanguageModelSAERunnerConfig[Any]) -> int:
    """What the activations of one training by `cfg` take; less where special tokens are left out."""
    tokens = tokens_per_chunk(cfg)
    batches = max(1, tokens // cfg.train_batch_size_tokens)
    chunks = -(-cfg.total_training_steps // batches)
    return chunks * tokens * cfg.sae.d_in * FLOAT32_BYTES


class ActivationCache:
    """Chunks of activations below `folder`, apart from those of any other text, model or hook point.

    Args:
        folder: may hold the chunks of many configurations; may be deleted at any time.
        cfg: what the activations are of.
    """

    def __init__(self, folder: Path, cfg: LanguageModelSAERunnerConfig[Any]) -> None:
        settings = cfg.to_dict()
        shaped = {key: settings.get(key) for key in SHAPES_THEM} | {"versions": versions()}
        name = hashlib.sha256(json.dumps(shaped, sort_keys=True, default=str).encode()).hexdigest()
        self.folder = folder / name[:16]
        self.device = str(cfg.act_store_device)
        self.bytes_needed = bytes_on_disk(cfg)

    def read(self, chunk: int) -> Tensor | None:
        """The activations [tokens, d_in] of a chunk; None where they are not there.

        Raises:
            GatedError: the file is damaged.
        """
        file = self._file(chunk)
        if not file.exists():
            return None
        try:
            return load_file(file, device=self.device)["activations"]
        except (SafetensorError, KeyError) as error:
            raise GatedError(
                f"{file} is damaged ({error}); delete it and give the same command again."
            ) from error

    def write(self, chunk: int, activations: Tensor) -> None:
        """Keep the activations [tokens, d_in] of a chunk.

        Raises:
            GatedError: there is no room for them.
        """
        try:
            with beside(self._file(chunk)) as unfinished:
                save_file({"activations": activations.contiguous()}, unfinished)
        except (OSError, SafetensorError) as error:
            raise GatedError(
                f"The activations of chunk {chunk} could not be written into {self.folder} "
                f"({' '.join(str(error).split())}); make room, all of them take up to "
                f"{byte_size(self.bytes_needed)}, then give the same command again."
            ) from error

    def _file(self, chunk: int) -> Path:
        return self.folder / f"chunk_{chunk:06d}.safetensors"
