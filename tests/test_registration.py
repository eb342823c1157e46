"""Registering and undoing it: SAELens' routes lead to our classes, and no failure breaks them.

`test_import_orders.py` has what depends on the order of imports.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
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


@pytest.fixture
def unregistered() -> Iterator[None]:
    gated_plugin.unregister()
    yield
    gated_plugin.register()


def registered() -> list[str]:
    pairs = get_sae_class("gated"), get_sae_training_class("gated")
    return [one.__module__ for pair in pairs for one in pair]


def trainable(**fields: object) -> GatedTrainingSAE:
    return GatedTrainingSAE(GatedTrainingSAEConfig(d_in=6, d_sae=20, **fields))


def test_saelens_command_line_sets_our_fields() -> None:
    arguments = "--architecture gated --d_in 8 --d_sae 32 --encoder_init_norm 0.3"
    cfg = _parse_cfg_args([*arguments.split(), "--target_l0", "20", "--l1_coefficient", "3"]).sae
    assert type(cfg) is GatedTrainingSAEConfig
    assert (cfg.encoder_init_norm, cfg.target_l0, cfg.l1_coefficient) == (0.3, 20, 3)


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
