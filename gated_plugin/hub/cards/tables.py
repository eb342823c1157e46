"""The tables of a card: a row per SAE, and what all SAEs share said once.

Every cell is Markdown that cannot end its table; what an entry does not say is `–`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from math import inf
from pathlib import PurePosixPath
from typing import NamedTuple

from gated_plugin.errors import GatedError
from gated_plugin.hub import naming
from gated_plugin.hub.cards import facts
from gated_plugin.hub.cards.markdown import UNKNOWN, address, code
from gated_plugin.hub.index import Entry

FOLDED = ("expected_average_only_in", "covariance_whitening")
"""Normalisations that are in the weights of a published SAE."""


class Settings(NamedTuple):
    """How the SAEs were made: once where it is the same for all, else in a table."""

    shared: list[tuple[str, str]]
    """What it is, and how it was set."""
    differing: list[str]
    """The other settings, as columns."""
    rows: list[list[str]]
    """The id and those settings of each SAE; empty where nothing differs."""


class Compared(NamedTuple):
    """How far plain SAELens and the plugin were apart before the SAEs were published."""

    rows: int | None
    """Activations on which each SAE was compared; None unless it is the same for all."""
    float64: str
    """Largest absolute difference over all SAEs, in float64."""
    float32: str
    """Largest difference over the largest value, over all SAEs, in float32."""
    unknown: list[str]
    """Ids of the SAEs of which nothing is recorded."""


def in_order(entries: Sequence[Entry]) -> list[Entry]:
    """By site, layer, width and L0.

    Raises:
        GatedError: there is none.
    """
    if not entries:
        raise GatedError("The index lists no SAE; push one with `gated-hub push`.")

    def key(entry: Entry) -> tuple[str, int, int, float, str]:
        hook = facts.text(entry, "hook") or ""
        block = naming.IN_BLOCK.fullmatch(hook)
        site, layer = (block[2], int(block[1][:9])) if block else (hook, -1)
        width, l0 = facts.count(entry, "width") or 0, facts.number(entry, "l0")
        return site, layer, width, inf if l0 is None else l0, facts.sae_id(entry)

    return sorted(entries, key=key)


def figures(entry: Entry) -> list[str]:
    """A row of the first table."""
    return [
        code(facts.sae_id(entry)),
        code(facts.text(entry, "hook")),
        _count(entry, "width"),
        _number(entry, "training.l1_coefficient", "{:g}") + ("*" if steered([entry]) else ""),
        _number(entry, "l0", "{:.2f}"),
        *(_number(entry, name, "{:.4f}") for name in ("ce_clean", "ce_sae", "ce_zero")),
        _number(entry, "loss_recovered", "{:.4f}"),
        _number(entry, "fvu", "{:.4f}"),
        _percent(facts.number(entry, "alive")),
        _number(entry, "gamma", "{:.4f}"),
    ]


def steered(entries: Sequence[Entry]) -> bool:
    """Whether any λ was steered towards a target L0, so that the recorded one is where it began."""
    return any(facts.number(entry, "training.target_l0") is not None for entry in entries)


def settings(entries: Sequence[Entry]) -> Settings:
    """Training, weights and evaluation of the SAEs."""
    shared, differing = [], {}
    for name, value_of in _SETTINGS.items():
        values = [value_of(entry) for entry in entries]
        if len(set(values)) > 1:
            differing[name] = values
        elif values[0]:
            shared.append((name, values[0]))
    columns = zip(*differing.values(), strict=True)
    rows = [
        [code(facts.sae_id(entry)), *(cell or UNKNOWN for cell in cells)]
        for entry, cells in zip(entries, columns, strict=False)
    ]
    return Settings(shared, list(differing), rows)


def files(entry: Entry) -> list[str]:
    """A row of the table of weight files: id, dtype, bytes, sha256."""
    return [
        code(facts.sae_id(entry)),
        code(facts.text(entry, "weights.dtype")),
        _count(entry, "weights.bytes"),
        code(facts.text(entry, "weights.sha256")),
    ]


def plots(entry: Entry) -> list[tuple[str, str]]:
    """What each plot is called, and where it lies in the repository."""
    folder = facts.sae_id(entry)
    return [
        (re.sub(r"[^\w -]", " ", PurePosixPath(name).stem), address(folder, "plots", name))
        for name in facts.texts(entry, "weights.plots")
    ]


def compared(entries: Sequence[Entry]) -> Compared | None:
    """The largest differences that were found before publishing; None where none is recorded."""
    wide, narrow, unknown, rows = [], [], [], set()
    for entry in entries:
        float64 = facts.number(entry, "compared.float64")
        float32 = facts.number(entry, "compared.float32_relative")
        if float64 is None or float32 is None:
            unknown.append(code(facts.sae_id(entry)))
        else:
            wide.append(float64)
            narrow.append(float32)
            rows.add(facts.count(entry, "compared.rows"))
    if not wide:
        return None
    same = rows.pop() if len(rows) == 1 else None
    return Compared(same, f"{max(wide):.1e}", f"{max(narrow):.1e}", unknown)


def change_of_loss(entries: Sequence[Entry]) -> str | None:
    """By how much the SAEs change the language model's cross-entropy: a figure or a range."""
    pairs = [(facts.number(entry, "ce_sae"), facts.number(entry, "ce_clean")) for entry in entries]
    changes = [sae - clean for sae, clean in pairs if sae is not None and clean is not None]
    if not changes:
        return None
    ends = sorted({f"{end:+.4f}" for end in (min(changes), max(changes))}, key=float)
    return " to ".join(ends)


def never_fired(entries: Sequence[Entry]) -> str | None:
    """The share of features that never fired; the largest, where SAEs differ."""
    alive = [
        value for value in (facts.number(entry, "alive") for entry in entries) if value is not None
    ]
    if not alive or min(alive) >= 1:
        return None
    return ("up to " if len(set(alive)) > 1 else "") + _percent(1 - min(alive))


def _number(entry: Entry, name: str, form: str) -> str:
    value = facts.number(entry, name)
    return UNKNOWN if value is None else form.format(value)


def _count(entry: Entry, name: str) -> str:
    value = facts.count(entry, name)
    return UNKNOWN if value is None else f"{value:,}"


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.1f} %"


def _tokens(part: str) -> Callable[[Entry], str]:
    def said(entry: Entry) -> str:
        dataset = code(facts.text(entry, f"{part}.dataset"))
        return f"{_count(entry, f'{part}.tokens')} tokens of {dataset}"

    return said


def _context(entry: Entry) -> str:
    if facts.is_synthetic(entry):
        return ""
    prepended = facts.flag(entry, "training.prepend_bos")
    bos = {True: "BOS prepended", False: "no BOS prepended", None: "BOS: –"}[prepended]
    left_out = facts.flag(entry, "training.exclude_special_tokens")
    special = ", special tokens left out" if left_out else ""
    return f"{_count(entry, 'training.context_size')} tokens, {bos}{special}"


def _target(entry: Entry) -> str:
    return f"L0 {_number(entry, 'training.target_l0', '{:g}')}" if steered([entry]) else ""


def _optimizer(entry: Entry) -> str:
    return (
        f"Adam, learning rate {_number(entry, 'training.lr', '{:g}')}, "
        f"β1 {_number(entry, 'training.adam_beta1', '{:g}')}, "
        f"{_count(entry, 'training.batch')} tokens per batch"
    )


def _normalisation(entry: Entry) -> str:
    name = facts.text(entry, "training.normalize_activations")
    if name is None or name == "none":
        said = name or UNKNOWN
    else:
        said = f"{code(name)}, {'folded into the weights' if name in FOLDED else 'applied on every call'}"
    return f"{said}; decoder rows have norm 1"


# An empty text: the SAE has no such setting.
_SETTINGS: dict[str, Callable[[Entry], str]] = {
    "architecture": lambda entry: code(facts.text(entry, "architecture")),
    "ablations": lambda entry: ", ".join(map(code, facts.texts(entry, "training.ablations"))),
    "input dimensions": lambda entry: _count(entry, "weights.d_in"),
    "trained on": _tokens("training"),
    "context": _context,
    "λ steered towards": _target,
    "optimizer": _optimizer,
    "normalisation": _normalisation,
    "seed": lambda entry: _count(entry, "training.seed"),
    "trained in": lambda entry: code(facts.text(entry, "training.dtype")),
    "evaluated on": _tokens("evaluation"),
    "evaluation context": lambda entry: (
        "" if facts.is_synthetic(entry) else f"{_count(entry, 'evaluation.context_size')} tokens"
    ),
}
