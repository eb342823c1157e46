"""The language model and the token rows that a recipe names."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gated_plugin.errors import GatedError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from sae_lens.config import LanguageModelSAERunnerConfig
    from transformer_lens.HookedTransformer import HookedRootModule

EMBEDDED = "embedded/"
SAVED = ("state.json", "dataset_dict.json")
"""What `Dataset.save_to_disk` and `DatasetDict.save_to_disk` leave in a folder."""


def require_devices(cfg: LanguageModelSAERunnerConfig[Any]) -> None:
    """Raise `GatedError` unless every device that `cfg` names is here."""
    import torch

    for key in ("device", "llm_device", "act_store_device"):
        try:
            torch.empty(0, device=getattr(cfg, key))
        except (RuntimeError, AssertionError) as error:
            raise GatedError(
                f"This computer has no {key} {getattr(cfg, key)!r} ({_first_line(error)}); "
                "give another, such as --set device=cpu."
            ) from error


def language_model(cfg: LanguageModelSAERunnerConfig[Any]) -> HookedRootModule:
    """The model of `cfg.model_name`: the embedded one, or any that SAELens loads.

    Raises:
        GatedError: no such model, or it cannot be reached.
    """
    if cfg.model_name.startswith(EMBEDDED):
        from gated_plugin import quickstart

        if cfg.model_name != quickstart.MODEL_NAME:
            raise GatedError(
                f"There is no embedded language model {cfg.model_name!r}; "
                f"the one that comes with the package is {quickstart.MODEL_NAME!r}."
            )
        return quickstart.language_model(device=str(cfg.llm_device))
    from sae_lens.load_model import load_model

    try:
        with redirect_stdout(sys.stderr):  # TransformerLens prints what it has loaded
            return load_model(
                cfg.model_class_name,
                cfg.model_name,
                device=str(cfg.llm_device),
                model_from_pretrained_kwargs=cfg.model_from_pretrained_kwargs,
                hook_names=[cfg.hook_name],
            )
    except (OSError, ValueError) as error:
        raise GatedError(
            f"The language model {cfg.model_name!r} could not be loaded "
            f"({_first_line(error)}); check model_name and the network."
        ) from error


def token_rows(
    path: str, split: str = "train", *, streaming: bool = False
) -> Dataset | IterableDataset:
    """The dataset `path`: an embedded one, a folder that `datasets` saved, or one of the Hub.

    An embedded dataset, and a saved folder without splits, is its own only split.

    Raises:
        GatedError: no such dataset or split, or it cannot be reached.
    """
    if path.startswith(EMBEDDED):
        from gated_plugin import quickstart

        return quickstart.dataset(path)
    from datasets.exceptions import DatasetsError

    try:
        return _loaded(path, split, streaming)
    except (OSError, ValueError, KeyError, DatasetsError) as error:
        raise GatedError(
            f"The dataset {path!r} (split {split!r}) could not be loaded "
            f"({_first_line(error)}); check its name and the network."
        ) from error


def _loaded(path: str, split: str, streaming: bool) -> Dataset | IterableDataset:
    from datasets import DatasetDict, load_dataset, load_from_disk

    if any((Path(path) / name).exists() for name in SAVED):
        rows = load_from_disk(path)
        return rows[split] if isinstance(rows, DatasetDict) else rows
    return load_dataset(path, split=split, streaming=streaming)


def _first_line(error: Exception) -> str:
    return (str(error).strip().split("\n")[0] or type(error).__name__).rstrip(".")
