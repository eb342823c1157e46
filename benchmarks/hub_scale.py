"""Push, pull, verify and load a dictionary of 7B size, and what each process needs for it.

    python -m benchmarks.hub_scale                         # 131072 x 3072, 3.2 GB: some minutes
    python -m benchmarks.hub_scale --shape 768x24576 --json docs/measurements/hub-scale.json

The weights are random and the figures on the card invented, so everything goes to a local hub in a
folder that is deleted afterwards. Twelve times the bytes of the dictionary must be free on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from gated_plugin.hub.local import LocalHub
from gated_plugin.runs import Run, write_json
from gated_plugin.tensor_files import Stream, whole, write_tensors

REPOSITORY = "local/scale"
RECIPE = """\
name: scale
description: Random weights; nothing was trained.
model_name: embedded/books-gelu-1l-256
hook_name: blocks.20.hook_resid_post
dataset_path: embedded/books
context_size: 128
sae: {{architecture: gated, d_in: {d_in}, d_sae: {d_sae}, l1_coefficient: 1.0}}
training_tokens: 100_000
train_batch_size_tokens: 4096
evaluation: {{dataset_path: embedded/books-heldout}}
publish: {{license: mit}}
"""
FIGURES = {
    **{"l0": 67.3, "loss_recovered": 0.99, "gamma": 1.0, "alive": 0.99, "fvu": 0.1},
    **{"ce_clean": 2.5, "ce_sae": 2.6, "ce_zero": 12.0, "tokens_evaluated": 1, "tokens_trained": 1},
    **{"dataset_path": "embedded/books-heldout", "context_size": 128},
}
LOAD = """
import resource, sys, torch, sae_lens, gated_plugin
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sae = gated_plugin.load(sys.argv[1], sys.argv[2])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
with torch.no_grad():
    sae(torch.randn(64, sae.cfg.d_in))
print(before // 1024, after // 1024)
"""


def make_run(path: Path, d_in: int, d_sae: int) -> Run:
    """A run folder with random weights, written in blocks."""
    run = Run(path)
    run.sae.mkdir(parents=True)
    run.recipe.write_text(RECIPE.format(d_in=d_in, d_sae=d_sae))
    write_json(run.evaluation, FIGURES)
    generator = torch.Generator().manual_seed(0)

    def rows(count: int, width: int, scale: float) -> Iterator[Tensor]:
        for start in range(0, count, 64):
            block = torch.randn(min(64, count - start), width, generator=generator)
            yield block * scale if scale else block / block.norm(dim=1, keepdim=True) * 1.5

    tensors = {
        "W_enc": Stream("F32", (d_in, d_sae), rows(d_in, d_sae, d_in**-0.5)),
        "W_dec": Stream("F32", (d_sae, d_in), rows(d_sae, d_in, 0)),
        "b_gate": whole(torch.full((d_sae,), -3.0)),
        "b_mag": whole(torch.zeros(d_sae)),
        "r_mag": whole(torch.zeros(d_sae)),
        "b_dec": whole(torch.zeros(d_in)),
    }
    write_tensors(run.sae / "sae_weights.safetensors", tensors)
    cfg = {"architecture": "gated", "d_in": d_in, "d_sae": d_sae, "dtype": "float32"}
    metadata = {"sae_lens_version": version("sae-lens")}
    write_json(run.sae / "cfg.json", {**cfg, "metadata": metadata})
    write_tensors(run.sae / "sparsity.safetensors", {"sparsity": whole(torch.full((d_sae,), -3.0))})
    write_tensors(run.activations, {"activations": whole(torch.randn(64, d_in))})
    return run


class Watch:
    """The peak memory of a process and of each of its descendants, by what they run."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.peaks: dict[str, int] = {}
        """MB by role."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while self.process.poll() is None:
            for pid in _family(self.process.pid):
                role, peak = _look_at(pid)
                if role:
                    self.peaks[role] = max(self.peaks.get(role, 0), peak)
            time.sleep(0.02)


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(each for child in children for each in _family(int(child)))]


def _look_at(pid: int) -> tuple[str, int]:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text()
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "", 0
    peak = next((line.split()[1] for line in status.splitlines() if "VmHWM" in line), "0")
    roles = {"plain_saelens": "plain SAELens", "hub.apart": "checks", "gated_plugin.load": "load"}
    role = next((name for part, name in roles.items() if part in command), "mover")
    return role, int(peak) // 1024


def step(name: str, *command: str) -> dict[str, Any]:
    """Run a command; its seconds, peak memory by role in MB, and the last line that it printed."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    watch = Watch(process)
    printed = process.communicate()[0]
    if process.returncode:
        sys.exit(f"{name} failed:\n{printed}")
    found = {"seconds": round(time.monotonic() - started, 1), "peak_mb": watch.peaks}
    print(f"{name:>12}: {found['seconds']:6.1f} s  {found['peak_mb']}", flush=True)
    return {**found, "answer": printed.strip().splitlines()[-1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="3072x131072", help="d_in x d_sae")
    parser.add_argument("--dir", type=Path, help="Where to put the files for the time.")
    parser.add_argument("--json", type=Path, help="Write the figures there.")
    arguments = parser.parse_args()
    d_in, d_sae = map(int, arguments.shape.split("x"))
    with TemporaryDirectory(dir=arguments.dir) as scratch, LocalHub(Path(scratch) / "hub") as hub:
        os.environ.update(
            HF_ENDPOINT=hub.url,
            HF_TOKEN=hub.token,
            HF_HOME=f"{scratch}/home",
            NO_PROXY="127.0.0.1",
        )
        run = make_run(Path(scratch) / "run", d_in, d_sae)
        size = (run.sae / "sae_weights.safetensors").stat().st_size
        print(f"{d_sae} x {d_in}: {size / 1e6:,.0f} MB", flush=True)
        found = measure(run, f"{scratch}/pulled")
    result = {"shape": [d_in, d_sae], "bytes": size, "torch": torch.__version__, **found}
    if arguments.json:
        write_json(arguments.json, result)


def measure(run: Run, out: str) -> dict[str, Any]:
    """Each command by itself, on the one dictionary."""
    hub = (sys.executable, "-c", "from gated_plugin.cli import main; main()")
    push = (*hub, "push", str(run.path), "--repo", REPOSITORY, "--json")
    found = {"push": step("push", *push)}
    (sae_id,) = json.loads(found["push"].pop("answer"))["sae_ids"]
    found["push again"] = step("push again", *push)
    found["pull"] = step("pull", *hub, "pull", REPOSITORY, "--out", out, "--json")
    found["verify"] = step("verify", *hub, "verify", REPOSITORY, "--json")
    for name in ("push again", "pull", "verify"):
        del found[name]["answer"]
    load = step("load", sys.executable, "-c", LOAD, REPOSITORY, sae_id)
    imports, loaded = map(int, load.pop("answer").split())
    print(
        f"{'':>12}  {imports} MB after the imports, at most {loaded} MB while loading", flush=True
    )
    found["load"] = {**load, "imports_mb": imports, "loading_peak_mb": loaded}
    return found


if __name__ == "__main__":
    main()
