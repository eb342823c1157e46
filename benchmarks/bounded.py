"""How much memory a training step takes, part by part: python -m benchmarks.bounded

One step at a time in this process, as SAELens' trainer takes it: at the start of training, where
half of the gates are open, and at an L0. `working` is the peak of a part above weights, gradients,
optimizer state, batch, and what Python and its libraries hold. Beside it what SAELens' own gated
SAE would hold: counted at a small size, not run.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, Namespace
from typing import Any

from benchmarks import machine
from benchmarks.arguments import add_conditions, positive, require_device, shape


def arguments() -> Namespace:
    """The command line."""
    parser = ArgumentParser(prog="python -m benchmarks.bounded", description=__doc__.split("\n")[0])
    parser.add_argument("--shape", type=shape, default=(4096, 3072, 131072), help="ROWSxD_INxD_SAE")
    parser.add_argument("--l0", type=positive, default=64)
    add_conditions(parser)
    asked = parser.parse_args()
    if asked.l0 >= asked.shape[2]:
        parser.error(f"--l0 {asked.l0} must be below d_sae, which is {asked.shape[2]}")
    return asked


def main() -> None:
    asked = arguments()
    machine.restart_with_passive_threads()
    require_device(asked.device)
    idle_before = machine.idle_check()
    from benchmarks import memory_by_part  # loads torch, which may only be done once restarted
    from benchmarks.workload import Case

    B, N, M = asked.shape
    case = Case(rows=B, d_in=N, d_sae=M, l0=asked.l0, beta1=asked.beta1, device=asked.device)
    report = {
        **case.facts(),
        **memory_by_part.measure(case, asked.threads),
        "protocol": machine.facts(asked.device),
        "idle_check": {"before": idle_before, "after": machine.idle_check()},
    }
    print(render(report))
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def render(report: dict[str, Any]) -> str:
    """What is held, then one line per part of every step."""
    held = ", ".join(f"{name} {_megabytes(size)}" for name, size in report["held_bytes"].items())
    lines = [
        f"{report['rows']}x{report['d_in']}x{report['d_sae']}, in MB: {held}",
        f"{'':28}{'working':>9}{'peak':>9}{'seconds':>9}",
    ]
    for step in report["steps"]:
        lines.append(f"{step['state']}, served by {step['served']}")
        for part in step["parts"]:
            sizes = f"{_megabytes(part['working_bytes']):>9}{_megabytes(part['peak_bytes']):>9}"
            lines.append(f"  {part['name']:26}{sizes}{part['seconds']:9.2f}")
    lines.append(
        f"Peak of the process {_megabytes(report['peak_bytes'])}, while it is set up "
        f"{_megabytes(report['set_up_peak_bytes'])}; "
        + ", ".join(
            f"{state}: {rate:.0f} tokens/s" for state, rate in report["tokens_per_second"].items()
        )
    )
    lines.append("SAELens' gated would keep from forward to backward, besides its weights:")
    for kept in report["saelens_keeps"]:
        lines.append(f"  {kept['tensors']} of {kept['shape']}: {_megabytes(kept['bytes'])}")
    arrays, array_bytes = report["saelens_peak_arrays"], 4 * report["rows"] * report["d_sae"]
    if arrays:
        lines.append(
            f"Its step peaks at {arrays} arrays [rows, d_sae]: {_megabytes(arrays * array_bytes)}"
        )
    return "\n".join(lines)


def _megabytes(size: float) -> str:
    return f"{size / 1e6:.0f}"


if __name__ == "__main__":
    main()
