"""`architecture="gated"` means our classes, however a process comes to import SAELens.

What depends on the order of imports runs in processes of its own, two at a time.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
import sae_lens
import torch
from sae_lens.llm_sae_training_runner import _parse_cfg_args
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.saes import gated_sae as built_in
from sae_lens.saes.sae import SAE, TrainingSAE, TrainStepInput

import gated_plugin
import gated_plugin_autoload as autoload
from gated_plugin import (
    GatedSAE,
    GatedSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    plugin,
    training,
)

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"

OURS = [
    "gated_plugin.architecture",
    "gated_plugin.config",
    "gated_plugin.training",
    "gated_plugin.config",
]
BUILT_IN = ["sae_lens.saes.gated_sae"] * 4

REPORT = """
def report():
    import json
    from sae_lens.registry import get_sae_class, get_sae_training_class
    pairs = get_sae_class("gated"), get_sae_training_class("gated")
    print(json.dumps([one.__module__ for pair in pairs for one in pair]))

"""

IMPORTED_FIRST = [
    "import sae_lens",
    "import transformer_lens",
    "import sae_lens.saes.gated_sae",
    "import sae_lens.registry",
    "import gated_plugin",
    "from gated_plugin import GatedTrainingSAEConfig",
]

SWITCHED_OFF = "import sae_lens; report(); import gated_plugin; report()"
SWITCHED_OFF_PLUGIN_FIRST = "from gated_plugin.architecture import GatedSAE; report()"
NOT_CALLED_BY_TORCH = "import gated_plugin; from sae_lens import SAE; report()"
UNDONE_BEFORE_SAELENS = """
import gated_plugin
gated_plugin.unregister()
import sae_lens
report()
gated_plugin.register()
report()
"""
TORCH_FIRST_AMONG_BROKEN_PLUGINS = "import torch; from sae_lens import SAE; report()"
COMMAND_LINE = "-m sae_lens.llm_sae_training_runner --architecture gated --help"

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


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future]]:
    """What each piece of code does in a fresh interpreter."""
    broken = tmp_path_factory.mktemp("broken")
    for name, text in BROKEN_DISTRIBUTION.items():
        (broken / name).parent.mkdir(exist_ok=True)
        (broken / name).write_text(text)
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    python_path = os.pathsep.join([str(broken), os.environ.get("PYTHONPATH", "")])
    environments: dict[str, dict[str, str]] = {
        **{f"{first}; report()": {} for first in IMPORTED_FIRST},
        SWITCHED_OFF: {"GATED_PLUGIN_AUTOLOAD": "0"},
        SWITCHED_OFF_PLUGIN_FIRST: {"GATED_PLUGIN_AUTOLOAD": "0"},
        NOT_CALLED_BY_TORCH: {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0"},
        UNDONE_BEFORE_SAELENS: {},
        TORCH_FIRST_AMONG_BROKEN_PLUGINS: {"PYTHONPATH": python_path},
        COMMAND_LINE: {"COLUMNS": "200"},
    }

    def run(code: str) -> subprocess.CompletedProcess[str]:
        arguments = code.split() if code.startswith("-m") else ["-c", REPORT + code]
        return subprocess.run(
            [sys.executable, *arguments],
            env=os.environ | environments[code],
            cwd=elsewhere,
            capture_output=True,
            text=True,
        )

    with ThreadPoolExecutor(2) as pool:
        yield {code: pool.submit(run, code) for code in environments}


@pytest.fixture
def unregistered() -> Iterator[None]:
    gated_plugin.unregister()
    yield
    gated_plugin.register()


def reports(done: subprocess.CompletedProcess[str]) -> list[list[str]]:
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]


def registered() -> list[str]:
    pairs = get_sae_class("gated"), get_sae_training_class("gated")
    return [one.__module__ for pair in pairs for one in pair]


def trainable(**fields: object) -> GatedTrainingSAE:
    return GatedTrainingSAE(GatedTrainingSAEConfig(d_in=6, d_sae=20, **fields))


@pytest.mark.parametrize("first", IMPORTED_FIRST)
def test_whatever_is_imported_first_our_classes_are_registered(
    first: str, processes: dict[str, Future]
) -> None:
    done = processes[f"{first}; report()"].result()
    assert reports(done) == [OURS]
    assert "SAELens plugin" not in done.stderr


def test_switched_off_until_the_package_is_imported(processes: dict[str, Future]) -> None:
    assert reports(processes[SWITCHED_OFF].result()) == [BUILT_IN, OURS]


def test_switched_off_a_package_that_is_imported_first_registers(
    processes: dict[str, Future],
) -> None:
    done = processes[SWITCHED_OFF_PLUGIN_FIRST].result()
    assert reports(done) == [OURS]
    assert "SAELens plugin" not in done.stderr


def test_the_package_registers_where_torch_loads_no_backends(
    processes: dict[str, Future],
) -> None:
    assert reports(processes[NOT_CALLED_BY_TORCH].result()) == [OURS]


def test_unregister_holds_when_saelens_is_imported_later(processes: dict[str, Future]) -> None:
    assert reports(processes[UNDONE_BEFORE_SAELENS].result()) == [BUILT_IN, OURS]


def test_torch_first_broken_plugins_give_one_warning_each_and_ours_registers(
    processes: dict[str, Future],
) -> None:
    done = processes[TORCH_FIRST_AMONG_BROKEN_PLUGINS].result()
    assert reports(done) == [OURS]
    warned = re.findall(
        r"RuntimeWarning: SAELens plugin '(\w+)' was not loaded: (\w+): ", done.stderr
    )
    assert sorted(warned) == [
        ("absent", "ModuleNotFoundError"),
        ("exits", "SystemExit"),
        ("raises", "KeyError"),
    ]
    assert "no such architecture" in done.stderr
    assert "gated-hub doctor" in done.stderr


def test_saelens_command_line_offers_our_fields(processes: dict[str, Future]) -> None:
    done = processes[COMMAND_LINE].result()
    assert "--encoder_init_norm" in done.stdout, done.stderr
    assert "--target_l0" in done.stdout


def test_saelens_command_line_sets_our_fields() -> None:
    arguments = "--architecture gated --d_in 8 --d_sae 32 --encoder_init_norm 0.3"
    cfg = _parse_cfg_args([*arguments.split(), "--target_l0", "20", "--l1_coefficient", "3"]).sae
    assert type(cfg) is GatedTrainingSAEConfig
    assert (cfg.encoder_init_norm, cfg.target_l0, cfg.l1_coefficient) == (0.3, 20, 3)


def test_the_entry_point_imports_neither_torch_nor_saelens_nor_the_package() -> None:
    code = (
        "import sys, gated_plugin_autoload as a; a.autoload(); a.autoload();"
        "print([m for m in ('torch', 'sae_lens', 'gated_plugin') if m in sys.modules],"
        "sum(type(f).__name__ == '_RegistryFinder' for f in sys.meta_path))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "1"]


def test_register_and_unregister_are_idempotent_and_undo_each_other() -> None:
    gated_plugin.register()
    gated_plugin.register()
    assert registered() == OURS
    gated_plugin.unregister()
    gated_plugin.unregister()
    assert registered() == BUILT_IN
    gated_plugin.register()
    assert registered() == OURS


def test_saelens_own_config_leads_to_our_class() -> None:
    cfg = built_in.GatedTrainingSAEConfig(d_in=6, d_sae=20)
    assert type(TrainingSAE.from_dict(cfg.to_dict())) is GatedTrainingSAE


def test_a_spawned_worker_unpickles_an_sae_and_registers() -> None:
    sae = trainable(normalize_activations="constant_norm_rescale").requires_grad_(False)
    x = torch.randn(5, 6)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as worker:
        features = worker.submit(sae.encode, x).result()
        there = worker.submit(get_sae_training_class, "gated").result()
    torch.testing.assert_close(features, sae.encode(x))
    assert there == (GatedTrainingSAE, GatedTrainingSAEConfig)


@pytest.mark.parametrize("sae_class", [GatedSAE, GatedTrainingSAE])
def test_a_deep_copy_is_of_our_class_and_independent(sae_class: type[SAE]) -> None:
    config_class = {GatedSAE: GatedSAEConfig, GatedTrainingSAE: GatedTrainingSAEConfig}[sae_class]
    sae = sae_class(config_class(d_in=6, d_sae=20, normalize_activations="layer_norm"))
    x = torch.randn(5, 6)
    before = sae(x)
    twin = copy.deepcopy(sae)
    assert type(twin) is sae_class
    torch.testing.assert_close(twin(x), before)
    twin.W_dec.data.mul_(2)
    twin(x + 1)
    torch.testing.assert_close(sae(x), before)


@pytest.mark.parametrize("seam", ["process_sae_in", "save_model"])
def test_a_missing_seam_is_named_and_changes_nothing(
    seam: str, unregistered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(SAE, seam)
    with pytest.raises(plugin.SeamsChangedError, match=rf"sae_lens\.saes\.sae\.SAE\.{seam}\b.*pip"):
        gated_plugin.register()
    assert registered() == BUILT_IN


def test_a_saelens_without_its_registry_is_named(
    unregistered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(sae_lens.registry, "SAE_CLASS_REGISTRY")
    with pytest.raises(plugin.SeamsChangedError, match=r"sae_lens\.registry\.SAE_CLASS_REGISTRY"):
        gated_plugin.register()


def test_a_missing_seam_gives_one_warning_at_import(
    unregistered: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autoload, "_warned", set())
    monkeypatch.delattr(SAE, "process_sae_in")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        autoload.autoload()
        autoload.when_saelens_is_ready("gated", gated_plugin.register)
    assert [one.category for one in caught] == [RuntimeWarning]
    assert "'gated' was not loaded: SeamsChangedError" in str(caught[0].message)
    assert "SAE.process_sae_in" in str(caught[0].message)


def test_warnings_as_errors_do_not_break_an_import(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise ValueError("broken")

    monkeypatch.setattr(autoload, "_warned", set())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        autoload.when_saelens_is_ready("fragile", fail)
    assert "'fragile' was not loaded: ValueError: broken." in capsys.readouterr().err


def test_the_first_training_of_a_process_says_once_what_differs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(training, "_noticed", [])
    caplog.set_level(logging.INFO, logger="gated_plugin")
    for sae in (trainable(), trainable()):
        for step in range(2):
            sae.training_forward_pass(
                TrainStepInput(
                    sae_in=torch.randn(4, 6),
                    coefficients={"l1": 1.0},
                    dead_neuron_mask=None,
                    n_training_steps=step,
                    is_logging_step=False,
                )
            )
    said = [one.getMessage() for one in caplog.records if one.name == "gated_plugin"]
    assert len(said) == 1
    assert "\n" not in said[0]
    assert "gated_plugin.unregister()" in said[0]
    assert "GATED_PLUGIN_AUTOLOAD=0" in said[0]


def test_messages_name_the_saelens_that_pyproject_admits() -> None:
    assert f'"{plugin.SAELENS}"' in PYPROJECT.read_text()
