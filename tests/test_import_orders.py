"""`architecture="gated"` means our classes, whatever a process imports first.

Each order has a process of its own; two run at a time.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import pytest

OURS = [
    "gated_plugin.architecture",
    "gated_plugin.config",
    "gated_plugin.training",
    "gated_plugin.config",
]
BUILT_IN = ["sae_lens.saes.gated_sae"] * 4

PROLOGUE = """
import sys
assert not {"torch", "transformer_lens", "sae_lens", "gated_plugin"} & set(sys.modules)

def report():
    import json
    from sae_lens.registry import get_sae_class, get_sae_training_class
    pairs = get_sae_class("gated"), get_sae_training_class("gated")
    print(json.dumps([one.__module__ for pair in pairs for one in pair]))

"""

IMPORTED_FIRST = [
    "import sae_lens",
    "import sae_lens.registry",
    "import transformer_lens; import sae_lens.saes.gated_sae",
    "from gated_plugin import GatedTrainingSAEConfig",
]

TORCH_FIRST_AMONG_BROKEN_PLUGINS = "import torch; from sae_lens import SAE; report()"
SWITCHED_OFF = "import sae_lens; report(); import gated_plugin; report()"
SWITCHED_OFF_PLUGIN_FIRST = "import gated_plugin; report()"
NOT_CALLED_BY_TORCH = "from gated_plugin.architecture import GatedSAE; report()"
UNDONE_BEFORE_SAELENS = """
import gated_plugin
gated_plugin.unregister()
import sae_lens
report()
gated_plugin.register()
report()
"""
COMMAND_LINE = """
import runpy
sys.argv = ["llm_sae_training_runner", "--architecture", "gated", "--help"]
runpy.run_module("sae_lens.llm_sae_training_runner", run_name="__main__")
"""

BROKEN_DISTRIBUTION = {
    "broken-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n",
    "broken-1.0.dist-info/entry_points.txt": (
        "[sae_lens.plugins]\nraises = broken:register\nexits = broken:leave\nabsent = no_such:it\n"
    ),
    "broken.py": (
        "import sys\n"
        "def register(): raise KeyError('no such architecture')\n"
        "def leave(): sys.exit('a plugin that exits')\n"
    ),
}


class Done(NamedTuple):
    """A process that has ended."""

    exit_code: int
    output: str


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Done]]]:
    """What each piece of code does in a process that has imported neither torch nor SAELens."""
    broken = tmp_path_factory.mktemp("broken")
    for name, text in BROKEN_DISTRIBUTION.items():
        (broken / name).parent.mkdir(exist_ok=True)
        (broken / name).write_text(text)
    environments: dict[str, dict[str, str]] = {
        **{f"{first}; report()": {} for first in IMPORTED_FIRST},
        TORCH_FIRST_AMONG_BROKEN_PLUGINS: {},
        SWITCHED_OFF: {"GATED_PLUGIN_AUTOLOAD": "0"},
        SWITCHED_OFF_PLUGIN_FIRST: {"GATED_PLUGIN_AUTOLOAD": "0"},
        NOT_CALLED_BY_TORCH: {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
        UNDONE_BEFORE_SAELENS: {},
        COMMAND_LINE: {"COLUMNS": "200"},
    }

    def run(code: str) -> Done:
        paths = [str(broken)] if code == TORCH_FIRST_AMONG_BROKEN_PLUGINS else []
        process = subprocess.run(
            [sys.executable, "-c", PROLOGUE + code],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environments[code]},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return Done(process.returncode, process.stdout)

    with ThreadPoolExecutor(2) as pool:
        yield {code: pool.submit(run, code) for code in environments}


def reports(done: Done) -> list[list[str]]:
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.output.splitlines() if line.startswith('["')]


@pytest.mark.parametrize("first", IMPORTED_FIRST)
def test_whatever_is_imported_first_our_classes_are_registered(
    first: str, processes: dict[str, Future[Done]]
) -> None:
    done = processes[f"{first}; report()"].result()
    assert reports(done) == [OURS]
    assert "SAELens plugin" not in done.output


def test_switched_off_until_the_package_is_imported(processes: dict[str, Future[Done]]) -> None:
    assert reports(processes[SWITCHED_OFF].result()) == [BUILT_IN, OURS]


def test_switched_off_a_package_that_is_imported_first_registers(
    processes: dict[str, Future[Done]],
) -> None:
    done = processes[SWITCHED_OFF_PLUGIN_FIRST].result()
    assert reports(done) == [OURS]
    assert "SAELens plugin" not in done.output


def test_the_package_registers_where_torch_loads_no_backends(
    processes: dict[str, Future[Done]],
) -> None:
    assert reports(processes[NOT_CALLED_BY_TORCH].result()) == [OURS]


def test_unregister_holds_when_saelens_is_imported_later(
    processes: dict[str, Future[Done]],
) -> None:
    assert reports(processes[UNDONE_BEFORE_SAELENS].result()) == [BUILT_IN, OURS]


def test_torch_first_broken_plugins_give_one_warning_each_and_ours_registers(
    processes: dict[str, Future[Done]],
) -> None:
    done = processes[TORCH_FIRST_AMONG_BROKEN_PLUGINS].result()
    assert reports(done) == [OURS]
    warned = re.findall(
        r"RuntimeWarning: SAELens plugin '(\w+)' was not loaded: (\w+): ", done.output
    )
    assert sorted(warned) == [
        ("absent", "ModuleNotFoundError"),
        ("exits", "SystemExit"),
        ("raises", "KeyError"),
    ]
    assert "no such architecture" in done.output
    assert "gated-hub doctor" in done.output


def test_saelens_command_line_offers_our_fields(processes: dict[str, Future[Done]]) -> None:
    done = processes[COMMAND_LINE].result()
    assert "--encoder_init_norm" in done.output
    assert "--target_l0" in done.output


def test_the_entry_point_imports_neither_torch_nor_saelens_nor_the_package() -> None:
    code = (
        "import sys, gated_plugin_autoload as a; a.autoload(); a.autoload();"
        "print([m for m in ('torch', 'sae_lens', 'gated_plugin') if m in sys.modules],"
        "sum(type(f).__name__ == '_RegistryFinder' for f in sys.meta_path))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "1"]
