"""What a training step costs, ours and others': python -m benchmarks.step

Prints multiples of mm, one dense float32 encoder product of the shape (rows × d_in @ d_in × d_sae
into memory that is already there), timed in the same process just before whatever it divides:
`step` is the trainer's own update; `forward`, `backward` and `optimizer` (clipping, Adam, decoder
norm) are its parts, called apart; `encode`, `decode` and both run without gradients on the batch;
`peak MB` is memory above weights, gradients and optimizer state (`benchmarks/memory.py`).
`gated_plugin:NAME` is ours forced to one engine, `gated_plugin:encode_sparse` ours with sparse
codes. The state is that of `benchmarks/workload.py`; peers have thresholds or a k of the same L0.
Below: what the device can do, measured in the same run, and how far above the least possible time
ours is (`benchmarks/roofline.py`); on a GPU, whether the targets are met.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from sys import stderr
from typing import Any, NamedTuple

from benchmarks import machine
from benchmarks.arguments import Shape, add_protocol, positive, shape
from benchmarks.implementations import OURS, PEERS, why_not
from benchmarks.table import render


class Defaults(NamedTuple):
    """What is measured unless told otherwise."""

    shapes: list[Shape]
    l0s: list[int]
    against: list[str]


CPU = Defaults([(1024, 768, 12288)], [64], ["saelens", "dictionary_learning", "sparsify"])
CUDA = Defaults(
    [(4096, 3072, 131072), (4096, 3072, 32768)],
    [16, 64, 256],
    ["saelens", "saelens[tf32]", "saelens[autocast]", "dictionary_learning", "sparsify"],
)


def peers(text: str) -> list[str]:
    """A comma-separated list of names in `PEERS`."""
    names = [name for name in text.split(",") if name]
    for name in names:
        if name not in PEERS:
            raise ArgumentTypeError(f"unknown peer {name!r}; choose among {', '.join(PEERS)}")
    return names


def arguments() -> Namespace:
    """The command line; refuses an L0 that does not fit a shape."""
    parser = ArgumentParser(prog="python -m benchmarks.step", description=__doc__.split("\n")[0])
    parser.add_argument("--shape", type=shape, action="append", help="ROWSxD_INxD_SAE; repeatable")
    parser.add_argument("--l0", type=positive, action="append", help="repeatable")
    parser.add_argument("--against", type=peers, help=", ".join(PEERS))
    add_protocol(parser)
    asked = parser.parse_args()
    defaults = CPU if asked.device == "cpu" else CUDA
    asked.shape, asked.l0 = asked.shape or defaults.shapes, asked.l0 or defaults.l0s
    asked.against = defaults.against if asked.against is None else asked.against
    narrowest = min(d_sae for _, _, d_sae in asked.shape)
    if max(asked.l0) >= narrowest:
        parser.error(f"--l0 {max(asked.l0)} must be below d_sae, which is {narrowest}")
    return asked


def main() -> None:
    asked = arguments()
    machine.restart_with_passive_threads()
    idle_before = machine.idle_check()
    if idle_before["idle"] is False:
        print("Other processes keep this machine busy; run this again when it is idle.")
    reasons = {name: why_not(name, asked.device) for name in (*asked.against, *OURS)}
    skipped = {name: reason for name, reason in reasons.items() if reason}
    for reason in skipped.values():
        print(reason)
    cases = measure(asked, [name for name in reasons if name not in skipped])
    report = {
        "unit": "mm: one dense float32 encoder product of the case's shape, into its own memory",
        "useful_flops": "one dense product, and 7 products on the support: 2BNM + 14 B L0 N",
        "protocol": machine.facts(asked.device) | {"repeats": asked.repeats},
        "idle_check": {"before": idle_before, "after": machine.idle_check()},
        "skipped": skipped,
        "cases": cases,
    }
    for case in cases:
        print("", render(case), sep="\n")
    if asked.json:
        asked.json.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")


def measure(asked: Namespace, names: list[str]) -> list[dict[str, Any]]:
    """Memory of all cases first: it forks, which it cannot once torch has started its threads."""
    import torch  # which `main` may only load once restarted

    from benchmarks import measurement
    from benchmarks.workload import Case

    if asked.device != "cpu" and not torch.cuda.is_available():
        print(f"--device {asked.device}: torch finds no GPU here; take --device cpu.", file=stderr)
        raise SystemExit(2)
    cases = [
        Case(rows=B, d_in=N, d_sae=M, l0=l0, beta1=asked.beta1, device=asked.device)
        for B, N, M in asked.shape
        for l0 in asked.l0
    ]
    memory = [measurement.memory(case, names, asked.threads) for case in cases]
    return [
        measurement.times(case, names, used, asked.threads, asked.repeats)
        for case, used in zip(cases, memory, strict=True)
    ]


if __name__ == "__main__":
    main()
