"""Puts our classes in the place of SAELens' built-in `"gated"`, and takes them out again.

Imports nothing of SAELens at the top: SAELens may be half imported when `register` is called.
"""

from __future__ import annotations

import sys
from typing import Any

from gated_plugin.environment import versions
from gated_plugin.errors import GatedError

ARCHITECTURE = "gated"

SAELENS = "sae-lens>=6.52,<7"
"""What pyproject.toml admits. 6.52 is the first that whitens activations, and whose resumed runs
keep the activation scaling that their weights were trained with."""

# What our subclasses override or call.
SEAMS = {
    "sae_lens.registry": ("SAE_CLASS_REGISTRY", "SAE_TRAINING_CLASS_REGISTRY"),
    "sae_lens.saes.gated_sae": (
        "GatedSAE.decode",
        "GatedSAE.encode",
        "GatedSAE.fold_W_dec_norm",
        "GatedSAEConfig.architecture",
        "GatedTrainingSAE.calculate_aux_loss",
        "GatedTrainingSAE.encode_with_hidden_pre",
        "GatedTrainingSAE.fold_activation_whitening",
        "GatedTrainingSAE.get_coefficients",
        "GatedTrainingSAEConfig.l1_coefficient",
        "GatedTrainingSAEConfig.l1_warm_up_steps",
    ),
    "sae_lens.saes.standard_sae": (
        "StandardSAEConfig.architecture",
        "StandardTrainingSAE.get_coefficients",
        "StandardTrainingSAE.log_histograms",
    ),
    "sae_lens.saes.sae": (
        "SAE._setup_activation_normalization",
        "SAE.fold_activation_norm_scaling_factor",
        "SAE.fold_activation_whitening",
        "SAE.fold_and_get_W_dec_norm",
        "SAE.forward",
        "SAE.initialize_weights",
        "SAE.process_sae_in",
        "SAE.process_state_dict_for_loading",
        "SAE.process_state_dict_for_saving",
        "SAE.save_model",
        "SAE.turn_off_forward_pass_hook_z_reshaping",
        "SAE.turn_on_forward_pass_hook_z_reshaping",
        "TrainCoefficientConfig",
        "TrainingSAE.load_weights_from_checkpoint",
        "TrainingSAE.process_state_dict_for_saving_inference",
        "TrainingSAE.training_forward_pass",
        "TrainingSAEConfig.decoder_init_norm",
        "TrainingSAEConfig.get_inference_config_class",
    ),
}

# Where the classes that `register` puts in live.
HOMES = {
    "gated_plugin.config": "GatedTrainingSAEConfig",
    "gated_plugin.architecture": "GatedSAE",
    "gated_plugin.paper_sae": "PaperTrainingSAE",
    "gated_plugin.training": "GatedTrainingSAE",
    "gated_plugin.baseline": "L1BaselineTrainingSAE",
    "gated_plugin.saelens_gated": "SAELensGatedTrainingSAEConfig",
    "gated_plugin.untied": "GatedUntiedTrainingSAE",
}

_replaced: list[tuple[dict[str, Any], str, Any]] = []


class SeamsChangedError(GatedError):
    """This SAELens lacks something that the plugin builds on."""


def register() -> None:
    """Make `architecture="gated"` mean this package's classes, and name its other ones. Idempotent.

    Raises:
        SeamsChangedError: SAELens lacks one of `SEAMS`; nothing was changed.
    """
    import sae_lens  # noqa: F401 - the first import of it may register already

    if is_registered():
        return
    check_seams()
    _forget_half_imported()
    for registry, ours in _ours():
        for architecture, classes in ours.items():
            _replaced.append((registry, architecture, registry.get(architecture)))
            registry[architecture] = classes


def unregister() -> None:
    """Give `architecture="gated"` back to SAELens' built-in classes, and forget the others.

    Idempotent.

    Imports SAELens where that has not happened, so that nothing registers afterwards.
    """
    import sae_lens  # noqa: F401 - so that it cannot register later

    while _replaced:
        registry, architecture, before = _replaced.pop()
        if before is None:
            del registry[architecture]
        else:
            registry[architecture] = before


def _ours() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """SAELens' two registries, each with what we put in."""
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
    from sae_lens.saes import gated_sae

    from gated_plugin.architecture import GatedSAE
    from gated_plugin.baseline import L1BaselineTrainingSAE, L1BaselineTrainingSAEConfig
    from gated_plugin.config import GatedSAEConfig, GatedTrainingSAEConfig
    from gated_plugin.saelens_gated import SAELensGatedTrainingSAEConfig
    from gated_plugin.training import GatedTrainingSAE
    from gated_plugin.untied import (
        GatedUntiedSAE,
        GatedUntiedSAEConfig,
        GatedUntiedTrainingSAE,
        GatedUntiedTrainingSAEConfig,
    )

    training = {
        ARCHITECTURE: (GatedTrainingSAE, GatedTrainingSAEConfig),
        "l1_baseline": (L1BaselineTrainingSAE, L1BaselineTrainingSAEConfig),
        "gated_untied": (GatedUntiedTrainingSAE, GatedUntiedTrainingSAEConfig),
        "saelens_gated": (gated_sae.GatedTrainingSAE, SAELensGatedTrainingSAEConfig),
    }
    inference = {
        ARCHITECTURE: (GatedSAE, GatedSAEConfig),
        "gated_untied": (GatedUntiedSAE, GatedUntiedSAEConfig),
    }
    return [(SAE_CLASS_REGISTRY, inference), (SAE_TRAINING_CLASS_REGISTRY, training)]


def is_registered() -> bool:
    """Whether SAELens now answers `"gated"` with this package's classes."""
    return bool(_replaced)


def check_seams() -> None:
    """Raise `SeamsChangedError` that names what this SAELens lacks of `SEAMS`."""
    missing = missing_seams()
    if missing:
        raise SeamsChangedError(
            f"SAELens {versions()['sae_lens']} lacks {', '.join(missing)}, on which gated_plugin "
            f"builds; install one that it admits: pip install --upgrade gated-plugin '{SAELENS}'."
        )


def missing_seams() -> list[str]:
    """Dotted names of `SEAMS` that the installed SAELens does not have."""
    from importlib import import_module

    missing = []
    for module_name, paths in SEAMS.items():
        try:
            module = import_module(module_name)
        except ImportError:
            missing.append(module_name)
            continue
        missing += [f"{module_name}.{path}" for path in paths if not _has(module, path)]
    return missing


def _has(holder: Any, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(holder, name):
            return False
        holder = getattr(holder, name)
    return True


def _forget_half_imported() -> None:
    """Have a module of ours whose own first import was SAELens, and led here, imported anew.

    The import statement that is still under way then returns the new module, not the half one.
    """
    for home, name in HOMES.items():
        module = sys.modules.get(home)
        if module is not None and not hasattr(module, name):
            del sys.modules[home]
