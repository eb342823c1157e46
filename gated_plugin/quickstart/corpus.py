"""The text that the embedded language model is made from: documents and their provenance."""

from __future__ import annotations

import json
import lzma
from typing import Any, NamedTuple

import numpy as np

from gated_plugin.errors import GatedError
from gated_plugin.quickstart import BOS, DATA, DATASETS, stream, tokenizer


class Document(NamedTuple):
    """One chapter of a work."""

    split: str
    """ "train" or "heldout"."""
    source: str
    """Repository that the text was taken from."""
    title: str
    author: str
    text: str


def read_corpus(path: str) -> list[Document]:
    """The corpus' documents in order: JSON lines under xz with split A or B, source, title,
    author and text; "bundled" takes them from the token files of the package.

    Raises GatedError when there is no such file or it holds something else.
    """
    if path == "bundled":
        return _bundled_corpus()
    splits = {"A": "train", "B": "heldout"}
    try:
        with lzma.open(path, "rt", encoding="utf-8") as lines:
            chapters = [json.loads(line) for line in lines]
        return [
            Document(splits[c["split"]], c["source"], c["title"], c["author"], c["text"])
            for c in chapters
        ]
    except (OSError, EOFError, lzma.LZMAError, ValueError, LookupError, TypeError) as error:
        raise GatedError(
            f"{path} is no corpus of JSON lines under xz ({type(error).__name__}: {error}); "
            "use the package's own text with `--corpus bundled`."
        ) from error


def _bundled_corpus() -> list[Document]:
    listed = json.loads((DATA / "training.json").read_text("utf-8"))["works"]
    documents = []
    for name, split in DATASETS.items():
        text, _ = stream(name)
        ends = np.flatnonzero(text == BOS)
        ids = [part[part != BOS].tolist() for part in np.split(text, ends[:-1])]
        texts = tokenizer().backend_tokenizer.decode_batch(ids)
        of_split = [work for work in listed if work["split"] == split]
        labels = [work for work in of_split for _ in range(work["documents"])]
        documents += [
            Document(split, work["source"], work["title"], work["author"], text)
            for work, text in zip(labels, texts, strict=True)
        ]
    return documents


def works(documents: list[Document]) -> list[dict[str, Any]]:
    """Provenance: each work's split, source, title, author, number of documents and bytes."""
    listed: dict[str, dict[str, Any]] = {}
    for doc in documents:
        label = doc._asdict()
        n_bytes = len(label.pop("text").encode())
        work = listed.setdefault(doc.source, {**label, "documents": 0, "bytes": 0})
        work["documents"] += 1
        work["bytes"] += n_bytes
    return list(listed.values())
