"""The whole path at the size of a 7B model's dictionaries, on synthetic activations: `make scale`.

    python -m benchmarks.scale                   # 131072 x 3072 where 20 GB of memory and 40 of disk are
    python -m benchmarks.scale --d-sae 32768 --json scale.json --report scale.md

Trains by the recipe `gemma-7b` with `--synthetic`, kills the training (SIGKILL) after a checkpoint,
resumes it, evaluates, pushes to a local hub, pulls, verifies, and loads, each with the command that
a user would give, in a process of its own. Wall time and peak memory of each are written down.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

from benchmarks import machine, scale_report
from benchmarks.arguments import device, new_file, require_device
from benchmarks.watch import Part, run
from gated_plugin.hub.local import LocalHub
from gated_plugin.runs import Run, read_json, write_json

RECIPE = "gemma-7b/resid-20-lambda-0.0005"
REPOSITORY = "local/scale"
WIDEST, NARROWEST = 131072, 1024
MEMORY, DISK = 20e9, 40e9
"""Bytes that the widest needs."""
SETTINGS = {
    "lr": "3e-4",
    "lr_warm_up_steps": "4",
    "sae.paper_lambda": "0.003",
    "sae.resampling": "off",
    "sae.resample_steps": "[]",
    "publish.license": "mit",
}
"""A short run's: half of the gates are open at first, one in fifty after some 20 steps, so that dense
and sparse steps are both taken. λ is six times that of the variant, which takes thousands of steps."""
HUB = (sys.executable, "-c", "from gated_plugin.cli import main; main()")
LOAD = """
import json, resource, sys, torch, sae_lens, {module}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
sae = {load}(sys.argv[1], sys.argv[2])
after = peak()
with torch.no_grad():
    sae(torch.randn(64, sae.cfg.d_in))
print(json.dumps([type(sae).__module__, before, after]))
"""
LOADERS = {
    "gated_plugin.load": ("gated_plugin", "gated_plugin.load", "1"),
    "SAE.from_pretrained": ("sae_lens", "sae_lens.SAE.from_pretrained", "0"),
}
"""Module, function, and whether the plugin registers itself."""


class Path7B:
    """The commands, one after another, in the folder `scratch`."""

    def __init__(self, scratch: Path, arguments: argparse.Namespace, hub: LocalHub) -> None:
        self.scratch, self.arguments = scratch, arguments
        self.run = Run(scratch / "run")
        self.parts: list[Part] = []
        self.environment = {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": hub.token,
            "HF_HOME": str(scratch / "home"),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def all(self) -> dict[str, Any]:
        """Every part; what came out beside times and memory."""
        interruption = self.train()
        self.command("eval", str(self.run.path), "--set", f"device={self.arguments.device}")
        push = ("push", str(self.run.path), "--repo", REPOSITORY)
        self.command(*push)
        self.command(*push, name="push again, nothing to send")
        self.command("card", REPOSITORY, "--out", str(self.scratch / "card.md"))
        self.command("pull", REPOSITORY, "--out", str(self.scratch / "pulled"))
        self.command("verify", REPOSITORY)
        listed = self.command("list", REPOSITORY, "--json", captured=True)
        (entry,) = json.loads(listed.printed)["saes"]
        loaded = {name: self.load(name, entry["id"]) for name in LOADERS}
        return {
            "sae_id": entry["id"],
            "bytes": entry["weights"]["bytes"],
            "interruption": interruption,
            "evaluation": read_json(self.run.evaluation),
            "loaded": loaded,
        }

    def train(self) -> dict[str, int]:
        """Until it is killed, a step or more after a checkpoint; then from there to the end."""
        every = max(1, self.arguments.steps // 3)
        command = ("train", RECIPE, "--synthetic", *self.settings(), "--out", str(self.run.path))
        command = (*command, "--checkpoint-every", str(every))
        print(f"$ gated-hub {' '.join(command)}", flush=True)
        killed = run(
            "train, killed",
            (*HUB, *command),
            self.environment,
            kill_when=lambda: bool(self.checkpoints()) and self.step() > self.checkpoints()[-1],
        )
        if not killed.killed:
            sys.exit("The training ended before it could be killed; give more --steps.")
        self.parts.append(killed)
        interruption = {"killed_at_step": self.step(), "checkpoint": self.checkpoints()[-1]}
        self.note(killed)
        self.command(*command, "--resume", name="train, resumed")
        return {**interruption, "steps": self.step()}

    def settings(self) -> list[str]:
        """The recipe's changes."""
        asked = self.arguments
        settings = {
            **SETTINGS,
            "device": asked.device,
            "sae.d_in": asked.d_in,
            "sae.d_sae": asked.d_sae,
            "train_batch_size_tokens": asked.batch,
            "training_tokens": asked.batch * asked.steps,
            "evaluation.tokens": asked.eval_tokens,
        }
        return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]

    def checkpoints(self) -> list[int]:
        """Steps of the finished ones."""
        return sorted(int(each.name[5:]) for each in self.run.checkpoints.glob("step_*"))

    def step(self) -> int:
        """The last one that was logged."""
        if not self.run.training_log.exists():
            return 0
        lines = self.run.training_log.read_text(encoding="utf-8").splitlines()
        return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=0)

    def command(self, *arguments: str, name: str | None = None, captured: bool = False) -> Part:
        """One `gated-hub` command."""
        print(f"\n$ gated-hub {' '.join(arguments)}", flush=True)
        part = run(name or arguments[0], (*HUB, *arguments), self.environment, captured=captured)
        if not captured:
            self.parts.append(part)
            self.note(part)
        return part

    def load(self, name: str, sae_id: str) -> dict[str, Any]:
        """Load the SAE from the hub's cache, and reconstruct 64 activations."""
        module, function, registers = LOADERS[name]
        script = LOAD.format(module=module, load=function)
        environment = {**self.environment, "GATED_PLUGIN_AUTOLOAD": registers}
        command = (sys.executable, "-c", script, REPOSITORY, sae_id)
        part = run(name, command, environment, captured=True)
        self.parts.append(part)
        self.note(part)
        of_class, imports, loading = json.loads(part.printed.strip().splitlines()[-1])
        return {"class": of_class, "imports_mb": imports, "loading_peak_mb": loading}

    def note(self, part: Part) -> None:
        print(f"  {part.name}: {part.seconds:.1f} s, peak MB {part.peak_mb}", flush=True)


def available_memory() -> float | None:
    """Bytes that a process can have without swapping; None where nobody tells."""
    found = []
    meminfo, limit = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
    if meminfo.exists():
        found += [1024 * int(s) for s in re.findall(r"MemAvailable:\s+(\d+)", meminfo.read_text())]
    if limit.exists() and (text := limit.read_text().strip()).isdecimal():
        found.append(int(text))
    return min(found, default=None)


def width(memory: float | None, disk: float) -> int:
    """The widest power of two that fits, up to `WIDEST`."""
    share = min(1.0, disk / DISK, 1.0 if memory is None else memory / MEMORY)
    return max(NARROWEST, WIDEST >> math.ceil(-math.log2(share))) if share > 0 else NARROWEST


def parsed(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--d-sae", type=int, help="Features; the widest that fits by default.")
    parser.add_argument("--d-in", type=int, default=3072)
    parser.add_argument("--batch", type=int, default=512, help="Tokens in a step.")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--eval-tokens", type=int, default=8192)
    parser.add_argument("--device", type=device, help="A GPU where there is one, by default.")
    parser.add_argument("--dir", type=Path, default=Path("runs"), help="For the big files.")
    parser.add_argument("--keep", action="store_true", help="Leave the big files there.")
    parser.add_argument("--json", type=new_file, help="Write the figures there.")
    parser.add_argument("--report", type=new_file, help="Write the report there.")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    arguments = parsed(given)
    arguments.dir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(arguments.dir).free
    arguments.d_sae = arguments.d_sae or width(available_memory(), free)
    arguments.device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    require_device(arguments.device)
    about = {"machine": machine.facts(arguments.device), "idle_check": machine.idle_check()}
    scratch = Path(mkdtemp(prefix="scale-", dir=arguments.dir))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("Stopped."))
    try:
        with LocalHub(scratch / "hub") as hub:
            path = Path7B(scratch, arguments, hub)
            found = path.all()
    finally:
        if not arguments.keep:
            shutil.rmtree(scratch)
    asked = {name: getattr(arguments, name) for name in ("d_in", "d_sae", "batch", "steps")}
    parts = [_figures(part) for part in path.parts]
    result = {**asked, "device": arguments.device, **found, "parts": parts, **about}
    if arguments.json:
        write_json(arguments.json, result)
    if arguments.report:
        arguments.report.write_text(scale_report.markdown(result), encoding="utf-8")


def _figures(part: Part) -> dict[str, Any]:
    return {k: v for k, v in asdict(part).items() if k not in ("printed", "killed")}


if __name__ == "__main__":
    machine.restart_with_passive_threads()
    main()
