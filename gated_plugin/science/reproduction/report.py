"""The report: `reproduction.md`, its figures, and the measurements as CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from gated_plugin.environment import environment
from gated_plugin.runs import beside
from gated_plugin.science.reproduction.arm_recipes import batch_size, site_recipe
from gated_plugin.science.reproduction.arm_tables import part_section, searches
from gated_plugin.science.reproduction.claims import Claim, claims
from gated_plugin.science.reproduction.design import Design
from gated_plugin.science.reproduction.figures import draw
from gated_plugin.science.reproduction.findings import VERDICT_RULE, Finding, Verdict, verdict
from gated_plugin.science.reproduction.markdown import (
    LEFT,
    UNKNOWN,
    number_range,
    table,
    with_interval,
)
from gated_plugin.science.reproduction.results import Results, write_csv

REPORT = "reproduction.md"
MEASUREMENTS = {
    "rows": "reproduction.csv",
    "synthetic": "reproduction-synthetic.csv",
    "clock": "reproduction-clock.csv",
}


def write_report(
    design: Design,
    results: Results,
    found: Mapping[str, Sequence[Finding]],
    *,
    docs: Path,
    seconds: float,
) -> Path:
    """Write the report below `docs`.

    Args:
        found: what was found about each claim, by its name.
        seconds: that all jobs took.

    Returns:
        The path of `reproduction.md`.
    """
    written = []
    for name, file in MEASUREMENTS.items():
        rows = getattr(results, name)
        if rows:
            write_csv(docs / "measurements" / file, rows)
            written.append(file)
    images = draw(design, results, docs / "images")
    text = "\n\n".join(
        [
            "# The paper's claims, shown again",
            _preface(design, seconds),
            "## Claims",
            _verdicts(found, [claim for claim in claims() if claim.paper]),
            "## What this package promises",
            _verdicts(found, [claim for claim in claims() if not claim.paper]),
            VERDICT_RULE,
            *(f"![{title}](images/{path.name})" for title, path in images.items()),
            "## Each claim",
            *(_details(design, claim, found[claim.name]) for claim in claims()),
            *(part_section(design, results, part) for part in design.parts),
            searches(design),
            "## All rows",
            "One line an SAE, with 95 % intervals over sequences of the held-out text: "
            + ", ".join(f"[{file}](measurements/{file})" for file in written)
            + ".",
        ]
    )
    with beside(docs / REPORT) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")
    return docs / REPORT


def _preface(design: Design, seconds: float) -> str:
    scale, here = design.scale, environment()
    sites = []
    for site in design.sites:
        recipe = site_recipe(design, site)
        tokens = scale.steps * batch_size(design, site)
        sites.append(
            f"- `{site.name}`, {site.title}: `{recipe.runner['hook_name']}` of "
            f"`{recipe.model_name}`, {recipe.sae['d_in']} → {recipe.sae['d_sae']}; every SAE is "
            f"trained on {tokens:,} tokens of `{recipe.runner['dataset_path']}` unless its row says "
            f"otherwise, and evaluated on {scale.evaluation_tokens:,} of "
            f"`{recipe.evaluation.dataset_path}`, which training did not see."
        )
    versions = ", ".join(
        f"{name.replace('_', '-')} {here[name]}"
        for name in ("gated_plugin", "sae_lens", "torch", "transformer_lens")
    )
    return "\n".join(
        [
            f"Written by `{' '.join(['gated-hub reproduce', *design.options])}`: {seconds / 60:.0f} minutes on {here['threads']} of "
            f"{here['cpus']} cores ({here['gpu'] or here['platform']}), Python {here['python']}, "
            f"{versions}.",
            "",
            *sites,
            f"- Seeds: {', '.join(map(str, scale.seeds))}.",
            f"- Arms are compared at L0 {', '.join(f'{l0:g}' for l0 in scale.l0)}, interpolated in "
            "each seed's sweep, linearly in log L0, and never extrapolated.",
            "- Brackets are 95 % intervals over seeds (Student); one seed has none.",
        ]
    )


def _verdicts(found: Mapping[str, Sequence[Finding]], listed: Sequence[Claim]) -> str:
    rows = [
        [
            f"[{claim.says}](#{claim.name})",
            claim.paper or claim.rule,
            _summary(found[claim.name], claim.unit),
            f"**{verdict(found[claim.name]).value}**",
        ]
        for claim in listed
    ]
    paper = "the paper" if listed and listed[0].paper else "the bar"
    return table(["claim", paper, "here", "verdict"], rows, align=LEFT)


def _summary(findings: Sequence[Finding], unit: str) -> str:
    measured = [finding for finding in findings if finding.ours is not None]
    if not measured:
        return UNKNOWN
    ours = number_range([finding.ours for finding in measured])
    theirs = [finding.theirs for finding in measured if finding.theirs is not None]
    against = f", against {number_range(theirs)}" if theirs else ""
    return f"{unit} {ours}{against}"


def _details(design: Design, claim: Claim, findings: Sequence[Finding]) -> str:
    rows = [
        [
            finding.where,
            with_interval(finding.ours),
            with_interval(finding.theirs),
            _side(finding),
            finding.note,
        ]
        for finding in findings
    ]
    columns = ["where", "ours", "theirs", "side", ""]
    parts = [
        f'<a id="{claim.name}"></a>',
        f"### {claim.says}",
        f"Measured: {claim.unit}. On the claim's side if: {claim.rule}. "
        f"Verdict: **{verdict(findings).value}**.",
    ]
    if claim.name in design.remarks and verdict(findings) is not Verdict.unmeasured:
        parts.append(design.remarks[claim.name])
    if rows:
        parts.append(table(columns, rows, align=LEFT))
    return "\n\n".join(parts)


def _side(finding: Finding) -> str:
    if finding.ours is None:
        return "not measured"
    if not finding.right:
        return "no"
    return "yes" if finding.certain else "yes, but not for certain"
