"""Our SAEs beside the paper's of the same language model, site and layer, and of the nearest L0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any

from gated_plugin.errors import GatedError
from gated_plugin.hub import naming
from gated_plugin.hub.cards import facts, paper
from gated_plugin.hub.cards.markdown import UNKNOWN
from gated_plugin.hub.index import Entry

NAMES = {
    "gemma-7b": {"gemma-7b", "google/gemma-7b"},
    "pythia-2.8b": {"pythia-2.8b", "EleutherAI/pythia-2.8b"},
}
"""What recipes call the paper's language models: by TransformerLens' name or by the Hub's."""
SITES = {"hook_resid_post": "resid", "hook_mlp_out": "mlp", "attn.hook_z": "attn"}
"""Hook points in a block, by the paper's name of the site."""


@dataclass(frozen=True)
class Figures:
    """What is compared; None where an entry does not say it."""

    l1: float | None
    """λ in the paper's convention: ours over d_in, as our squared error is summed. None for a λ
    that was steered."""
    l0: float | None
    loss_recovered: float | None
    """In percent."""
    alive: float | None
    """In percent."""
    gamma: float | None
    width: float | None
    tokens: float | None
    """Trained on."""


@dataclass(frozen=True)
class ParityRow:
    """One SAE of ours and what the paper has at its place."""

    sae_id: str
    ours: Figures
    gated: Figures | None
    """The paper's Gated SAE of the nearest L0; None where it has none at that site and layer."""
    difference: Figures | None
    """Ours less the paper's Gated SAE."""
    baseline: Figures | None
    """The paper's baseline SAE of the nearest L0, where there is one."""


def parity(entries: Sequence[Entry], model: str) -> list[ParityRow]:
    """A row for each of `entries`, in their order.

    Args:
        model: of the paper's tables, such as `gemma-7b`.

    Raises:
        GatedError: the paper has no such model, or an entry is of another one.
    """
    tables = paper.rows(model)
    for entry in entries:
        theirs = facts.text(entry, "model")
        if theirs not in NAMES[model]:
            read = facts.short(theirs) if theirs else "an unknown language model"
            raise GatedError(
                f"{facts.short(facts.sae_id(entry))} reads {read}, so that the paper's rows of "
                f"{model} say nothing of it; leave out --paper, or name its model."
            )
    return [_row(entry, tables) for entry in entries]


def table(rows: Sequence[ParityRow]) -> str:
    """The rows as aligned text for a terminal."""
    lines: list[tuple[str, ...]] = [
        ("", "λ", "L0", "recovered %", "alive %", "γ", "width", "tokens")
    ]
    for row in rows:
        lines.append((row.sae_id, *_cells(row.ours, "")))
        if row.gated is None or row.difference is None:
            lines.append(("  no row of the paper", *[""] * 7))
            continue
        lines.append(("  paper", *_cells(row.gated, "")))
        lines.append(("  difference", *_cells(row.difference, "+")))
        if row.baseline is not None:
            lines.append(("  paper, baseline", *_cells(row.baseline, "")))
    first, *others = (max(map(len, column)) for column in zip(*lines, strict=True))
    return "\n".join(
        "  ".join([line[0].ljust(first), *map(str.rjust, line[1:], others)]).rstrip()
        for line in lines
    )


def records(rows: Sequence[ParityRow]) -> list[dict[str, Any]]:
    """The rows as JSON takes them."""
    return [asdict(row) for row in rows]


def _row(entry: Entry, tables: list[paper.PaperRow]) -> ParityRow:
    ours = _ours(entry)
    block = naming.IN_BLOCK.fullmatch(facts.text(entry, "hook") or "")
    place = (SITES.get(block[2]), block[1]) if block else None
    here = [row for row in tables if (row.site, str(row.layer)) == place]
    gated, baseline = (_nearest(here, arch, ours.l0) for arch in ("gated", "baseline"))
    difference = gated and Figures(*map(_less, astuple(ours), astuple(gated)))
    return ParityRow(facts.sae_id(entry), ours, gated, difference, baseline)


def _ours(entry: Entry) -> Figures:
    steered = facts.number(entry, "training.target_l0") is not None
    d_in = facts.count(entry, "weights.d_in")
    weight = None if steered or not d_in else facts.number(entry, "training.l1_coefficient")
    return Figures(
        l1=None if weight is None or not d_in else weight / d_in,
        l0=facts.number(entry, "l0"),
        loss_recovered=_percent(facts.number(entry, "loss_recovered")),
        alive=_percent(facts.number(entry, "alive")),
        gamma=facts.number(entry, "gamma"),
        width=facts.count(entry, "width"),
        tokens=facts.count(entry, "training.tokens"),
    )


def _nearest(rows: list[paper.PaperRow], arch: str, l0: float | None) -> Figures | None:
    of_arch = [row for row in rows if row.arch == arch]
    if not of_arch or l0 is None:
        return None
    row = min(of_arch, key=lambda row: abs(row.l0 - l0))
    return Figures(row.l1, row.l0, row.loss_recovered, row.alive, row.gamma, row.width, row.tokens)


def _less(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or theirs is None else ours - theirs


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _cells(figures: Figures, sign: str) -> list[str]:
    formats = (".2g", ".1f", ".2f", ".2f", ".3f", ",.0f", ",.0f")
    return [
        UNKNOWN if value is None else format(value, sign + form)
        for value, form in zip(astuple(figures), formats, strict=True)
    ]
