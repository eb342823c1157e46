"""What every arm of a part came to."""

from __future__ import annotations

from collections.abc import Sequence

from gated_plugin.science.reproduction.design import BEFORE, Design, Part
from gated_plugin.science.reproduction.estimates import Estimate, estimate, gain, recovery
from gated_plugin.science.reproduction.markdown import table, with_interval
from gated_plugin.science.reproduction.results import OWN, PURSUIT, Results


def part_section(design: Design, results: Results, part: Part) -> str:
    """Heading and tables of a part."""
    paragraphs = [f"## {part.title}"]
    if part.about:
        paragraphs.append(part.about)
    for site in part.arms:
        arms = [name for name in part.arms[site] if results.of(site, name)]
        if arms:
            paragraphs.append(f"At `{site}`:")
            paragraphs.append(_arms(design, results, site, arms, part))
    if part.also == "pursuit":
        paragraphs.append("The same dictionaries with features chosen by gradient pursuit:")
        paragraphs += [
            _arms(design, results, site, arms, part, encoder=PURSUIT)
            for site, arms in part.arms.items()
        ]
    if part.also == "synthetic" and results.synthetic:
        paragraphs.append(_synthetic(results))
    if any(design.arm(name).as_long_as for arms in part.arms.values() for name in arms):
        paragraphs.append(_clock(design, results))
    return "\n\n".join(paragraphs)


def _arms(
    design: Design,
    results: Results,
    site: str,
    arms: Sequence[str],
    part: Part,
    *,
    encoder: str = OWN,
) -> str:
    columns = ["", *(f"loss recovered at L0 {l0:g}" for l0 in results.l0), "γ", "alive"]
    if part.compared_with:
        columns.append("loss recovered, difference")
    middle = results.l0[len(results.l0) // 2]
    rows = []
    for place, name in enumerate(arms):

        def at(l0: float, figure: str = "loss_recovered", name: str = name) -> Estimate | None:
            return estimate(results, site, name, l0, figure=figure, encoder=encoder)

        row = [design.arm(name).title, *(with_interval(at(l0)) for l0 in results.l0)]
        row += [with_interval(at(middle, "gamma")), with_interval(at(middle, "alive"))]
        if part.compared_with:
            other = arms[place - 1] if part.compared_with == BEFORE else part.compared_with
            first = part.compared_with == BEFORE and place == 0
            more = None if first or other == name else gain(results, site, name, other)
            row.append(with_interval(more, 4, sign=True))
        rows.append(row)
    return table(columns, rows)


def _synthetic(results: Results) -> str:
    def over(arm: str, figure: str) -> str:
        return with_interval(recovery(results, arm, figure), 1 if figure == "l0" else 3)

    figures = {"l0": "L0", "best_match": "mean best-match cosine", "mcc": "MCC", "f1": "F1"}
    figures["shrinkage"] = "‖x̂‖ / ‖x‖"
    arms = dict.fromkeys(row.arm for row in results.synthetic)
    cells = [[arm, *(over(arm, figure) for figure in figures)] for arm in arms]
    return table(["", *figures.values()], cells)


def _clock(design: Design, results: Results) -> str:
    rows = [
        [
            f"{row.site}: {design.arm(row.arm).title}",
            f"{row.seconds / row.steps * 1000:.1f}",
            f"{row.steps:,}",
            f"{row.seconds:.0f}",
        ]
        for row in results.clock
    ]
    return table(["", "milliseconds a step", "steps", "seconds of steps"], rows)


def searches(design: Design) -> str:
    """How learning rates were found."""
    rows = [
        [
            arm.title,
            f"{trial.lr:g}",
            trial.note,
            f"{trial.l0:.1f}",
            f"{trial.loss_recovered:.4f}",
            "taken" if trial.taken else "",
        ]
        for arm in design.arms
        for trial in arm.search
    ]
    columns = ["", "lr", "with", "L0", "loss recovered", ""]
    return f"## Searches\n\n{design.searched}\n\n{table(columns, rows)}"
