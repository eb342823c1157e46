"""What each Triton kernel needs of a GPU, without one: python -m benchmarks.kernels

Compiles every kernel for a chip, in the types and blocks that the engine gives it at d_in 3072,
and prints registers a thread, spilled bytes, shared memory a program, and whether the product is
one of the tensor cores' (wgmma on 9.0, mma before). A spill would be a slow kernel, too much
shared memory one that cannot be started.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from argparse import ArgumentParser
from collections.abc import Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

D_IN = 3072
SHARED_BYTES = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}
"""What one program can have, by compute capability."""

FLOAT, HALF, LONG = "*fp32", "*bf16", "*i64"
ITEM_BYTES = {FLOAT: 4, HALF: 2}


class Compiled(NamedTuple):
    """One kernel for one chip."""

    kernel: str
    weights: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    product: str


def main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__.split("\n")[0])
    parser.add_argument("--capability", type=int, choices=SHARED_BYTES, default=90)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    os.environ.pop("TRITON_INTERPRET", None)
    found = list(compiled(asked.capability))
    print(f"{'kernel':24}{'W':6}{'registers':>10}{'spilled':>9}{'shared':>8}  product")
    for row in found:
        print(
            f"{row.kernel:24}{row.weights:6}{row.registers:10}{row.spilled_bytes:9}"
            f"{row.shared_bytes:8}  {row.product}"
        )
    if asked.json:
        asked.json.write_text(json.dumps([row._asdict() for row in found], indent=1) + "\n")


def compiled(capability: int) -> Iterator[Compiled]:
    """Every kernel in every type of weights that it is called with."""
    from gated_plugin.engine import gpu, gpu_weights
    from gated_plugin.engine.triton_kernels import gathers, search, weight_rows

    stages = {"num_stages": gpu.stages_in(SHARED_BYTES[capability])}
    rows = gpu_weights.blocks_of(D_IN)
    for name, W in (("fp32", FLOAT), ("bf16", HALF)):
        panel = {"BLOCK_N": gpu.PANEL_BYTES // ITEM_BYTES[W]}
        gathered, sampled = gpu.GATHERED | panel, gpu.SAMPLED | panel
        gather = [LONG, LONG, FLOAT, W, W, W]
        yield _compile(gathers.sum_gathered, name, capability, gather, gathered)
        twice = [LONG, LONG, FLOAT, FLOAT, W, W, W, FLOAT, FLOAT, FLOAT]
        yield _compile(gathers.decode_twice, name, capability, twice, gathered)
        yield _compile(gathers.sample, name, capability, [LONG, LONG, W, W, FLOAT], sampled)
        twice = [LONG, LONG, FLOAT, FLOAT, W, FLOAT, FLOAT]
        yield _compile(gathers.sample_twice, name, capability, twice, sampled)
        yield _compile(weight_rows.remove_parallel_rows, name, capability, [W, W], rows)
        yield _compile(weight_rows.normalise_rows, name, capability, [W], rows)
        for first in (False, True):
            blocks = rows | {"HAS_FIRST": first}
            yield _compile(weight_rows.adam_rows, name, capability, [W, W, W, W, LONG], blocks)
        yield _compile(weight_rows.decay_rows, name, capability, [W, LONG], rows)
        tile = gpu.SEARCH if W == HALF else gpu.SEARCH_FLOAT32
        blocks = {"WIDEN": False, **tile, **stages}
        operands = [W, W, *[FLOAT] * 6, "*i32"]
        yield _compile(search.mark_candidates, name, capability, operands, blocks)
    rounding = [FLOAT, "*i16", FLOAT, FLOAT]
    yield _compile(search.round_rows, "fp32", capability, rounding, gpu.ROUNDED)
    totals = [LONG, LONG, FLOAT, FLOAT]
    yield _compile(gathers.total_gathered, "–", capability, totals, gpu.TOTALLED)
    yield _compile(search.count_marks, "–", capability, ["*i32", LONG], gpu.MARKS)
    yield _compile(search.list_marks, "–", capability, ["*i32", LONG, LONG], gpu.MARKS)


def _compile(
    kernel: Any, weights: str, capability: int, pointers: list[str], blocks: dict[str, Any]
) -> Compiled:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    constants = {name: value for name, value in blocks.items() if name in kernel.arg_names}
    options = {name: value for name, value in blocks.items() if name not in constants}
    kinds = iter(pointers)
    signature, attributes = {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        else:
            signature[name] = next(kinds, None) or SCALARS.get(name, "fp32")
            if signature[name] != "fp32":  # torch's memory, and sizes of real models
                attributes[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled = _resources(made.asm["cubin"])
    ptx = made.asm["ptx"]
    product = next((kind for kind in ("wgmma", "mma.sync") if kind in ptx), "–")
    name = kernel.__name__ + ("+m" if blocks.get("HAS_FIRST") else "")
    return Compiled(name, weights, registers, spilled, made.metadata.shared, product)


SCALARS = dict.fromkeys(("B", "M", "N", "K", "words", "step"), "i32")


def _resources(cubin: bytes) -> tuple[int, int]:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"])


if __name__ == "__main__":
    main()
