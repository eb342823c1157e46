"""Fails unless the demo's dictionary is a real one (the bounds that the README promises)."""

import json
import sys

BOUNDS = {
    "loss_recovered": (0.93, 1.0),
    "l0": (5, 50),
    "gamma": (0.97, 1.03),
    "alive": (0.90, 1.0),
    "max_abs_diff": (0, 1e-5),
    "reloaded_with_plugin": (True, True),
    "reloaded_without_plugin": (True, True),
}

with open(sys.argv[1], encoding="utf-8") as file:
    summary = json.load(file)
failed = [name for name, (low, high) in BOUNDS.items() if not low <= summary[name] <= high]
for name in failed:
    print(f"{name} is {summary[name]}, outside of {BOUNDS[name]}")
print(f"{len(BOUNDS) - len(failed)} passed, {len(failed)} failed")
sys.exit(bool(failed))
