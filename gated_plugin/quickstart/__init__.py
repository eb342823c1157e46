"""The embedded language model: weights, tokenizer and text that ship with the package.

A one-layer GELU transformer trained on English books, with the tokens it was trained on and the
tokens of works held out, so that an SAE can be trained and evaluated without any download.
`data/SOURCES.md` lists works, licences and how it was made; `build` rebuilds it.
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gated_plugin.errors import GatedError

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from transformer_lens import HookedTransformer
    from transformers import PreTrainedTokenizerFast

MODEL_NAME = "embedded/books-gelu-1l-256"
DATASETS = {"embedded/books": "train", "embedded/books-heldout": "heldout"}
"""Dataset names and the split that each one is."""

BOS = 0
"""Id of `<|endoftext|>`: begins every row and parts the documents."""
WINDOW = 127
"""Tokens of text in a row, after its BOS."""
DATA = Path(__file__).parent / "data"

_BUFFERS = frozenset({"blocks.0.attn.mask", "blocks.0.attn.IGNORE"})


def language_model(device: str = "cpu", folder: Path = DATA) -> HookedTransformer:
    """The embedded model as a TransformerLens `HookedTransformer`: float32, eval mode, tokenizer
    attached, `cfg.model_name` set.

    `folder` is one that `gated_plugin.quickstart.build` wrote. Leaves every random state as it was.
    Raises GatedError when the weights are not exactly the model's.
    """
    from safetensors.torch import load_file
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    config = json.loads((folder / "config.json").read_text("utf-8"))
    model = HookedTransformer(
        HookedTransformerConfig.from_dict({**config, "device": str(device)}),
        tokenizer=tokenizer(folder),
    )
    weights = load_file(folder / "model.safetensors")
    # On disk float16 halves the package; the attention mask is made from the configuration.
    found = model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
    wrong = sorted({*found.missing_keys, *found.unexpected_keys} - _BUFFERS)
    if wrong:
        raise GatedError(
            f"The embedded model's weights lack or have too much: {', '.join(wrong)}; "
            "install it anew with `pip install --force-reinstall --no-deps gated-plugin`."
        )
    return model.eval()


def tokenizer(folder: Path = DATA) -> PreTrainedTokenizerFast:
    """The model's byte-level BPE tokenizer of 4096 tokens; it adds no BOS by itself."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")


def stream(dataset_name: str, folder: Path = DATA) -> tuple[np.ndarray, dict[str, Any]]:
    """A dataset's whole text in reading order, and what its file says about it.

    Returns uint16 [tokens], every document followed by `BOS`, and `{"shuffle_seed": int | None}`:
    the seed of the row order. Raises GatedError on an unknown name.
    """
    import numpy as np

    if dataset_name not in DATASETS:
        raise GatedError(
            f"There is no embedded dataset {dataset_name!r}; choose one of {', '.join(DATASETS)}."
        )
    packed = (folder / f"tokens_{DATASETS[dataset_name]}.xz").read_bytes()
    header, _, body = lzma.decompress(packed).partition(b"\n")
    return np.frombuffer(body, dtype="<u2"), json.loads(header)


def tokens(dataset_name: str, folder: Path = DATA) -> np.ndarray:
    """The dataset's rows, uint16 [rows, 128]: BOS and 127 tokens, documents joined by BOS.

    Training rows come in one fixed shuffled order, held-out rows in reading order; what is left
    of the text after the last whole row is not in them. Raises GatedError on an unknown name.
    """
    import numpy as np

    text, about = stream(dataset_name, folder)
    rows = cut(text)
    if about["shuffle_seed"] is None:
        return rows
    # RandomState's streams are frozen for all versions of numpy, a Generator's are not.
    return rows[np.random.RandomState(about["shuffle_seed"]).permutation(len(rows))]


def cut(text: np.ndarray) -> np.ndarray:
    """Rows of a token stream, uint16 [rows, 128]: BOS and 127 tokens each."""
    import numpy as np

    n_rows = len(text) // WINDOW
    rows = np.full((n_rows, 1 + WINDOW), BOS, dtype=np.uint16)
    rows[:, 1:] = text[: n_rows * WINDOW].reshape(n_rows, WINDOW)
    return rows


def dataset(dataset_name: str, folder: Path = DATA) -> Dataset:
    """The rows of `tokens` in a column "input_ids", as SAELens' `override_dataset` takes them.

    Every call makes a new Dataset, for ActivationsStore changes the format of the one it gets.
    Raises GatedError on an unknown name.
    """
    import pyarrow as pa
    from datasets import Dataset

    flat = pa.array(tokens(dataset_name, folder).astype("int32").reshape(-1))
    # Dataset.from_dict takes 20 times longer over the numpy array itself.
    column = pa.FixedSizeListArray.from_arrays(flat, 1 + WINDOW)
    return Dataset.from_dict({"input_ids": column})
