"""Entries of an index, as they come from config.json."""

from __future__ import annotations

import copy
from typing import Any

HOSTILE = (
    'x"|`</code>\n---\n# y\n```\n| a | b |\n<script>[z](http://q) \\" \'{{ 7*7 }}{% raw %}&*_é😀'
)
"""Tries to break out of a table, a code span, a fence, a link, front matter and a Python literal."""

ENTRY: dict[str, Any] = {
    "id": "resid_post/layer_20/width_131k/l0_67",
    "architecture": "gated",
    "model": "gemma-7b",
    "hook": "blocks.20.hook_resid_post",
    "width": 131072,
    "l0": 67.0,
    "loss_recovered": 0.992,
    "gamma": 1.003,
    "alive": 0.9911,
    "fvu": 0.2345,
    "ce_clean": 2.5426,
    "ce_sae": 2.6789,
    "ce_zero": 19.5891,
    "training": {
        "dataset": "monology/pile-uncopyrighted",
        "datasets": ["monology/pile-uncopyrighted"],
        "tokens": 1_228_800_000,
        "context_size": 1024,
        "prepend_bos": True,
        "exclude_special_tokens": False,
        "l1_coefficient": 0.9216,
        "target_l0": None,
        "lr": 3e-4,
        "adam_beta1": 0.0,
        "batch": 4096,
        "normalize_activations": "expected_average_only_in",
        "dtype": "float32",
        "seed": 42,
    },
    "evaluation": {
        "dataset": "monology/pile-uncopyrighted",
        "tokens": 1_048_576,
        "context_size": 1024,
    },
    "weights": {
        "d_in": 3072,
        "dtype": "float32",
        "bytes": 3_222_814_720,
        "sha256": "ab" * 32,
        "plots": ["training.png"],
    },
    "compared": {"rows": 64, "float64": 3e-9, "float32_relative": 4e-7},
}


def entry(**changes: Any) -> dict[str, Any]:
    """A copy of `ENTRY`; `training__lr=1.0` changes a key of a section."""
    made = copy.deepcopy(ENTRY)
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        (made[section] if section else made)[key] = value
    return made
