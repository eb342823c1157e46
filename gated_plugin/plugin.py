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
    "sae_lens.saes.sae": (
        "SAE._setup_activation_normalization",
        "SAE.fold_activation_norm_scaling_factor",
        "SAE.forward",
        "SAE.initialize_weights",
        "SAE.process_sae_in",
        "SAE.process_state_dict_for_loading",
        "SAE.process_state_dict_for_saving",
        "SAE.save_model",
        "SAE.turn_off_forward_pass_hook_z_reshaping",
        "SAE.turn_on_forward_pass_hook_z_reshaping",
        "TrainingSAE.load_weights_from_checkpoint",
        "TrainingSAE.training_forward_pass",
        "TrainingSAEConfig.decoder_init_norm",
    ),
}

# Where the classes that `register` puts in live.
HOMES = {
    "gated_plugin.config": "GatedTrainingSAEConfig",
    "gated_plugin.architecture": "GatedSAE",
    "gated_plugin.training": "GatedTrainingSAE",
}

_replaced: dict[str, Any] = {}


class SeamsChangedError(GatedError):
    """This SAELens lacks something that the plugin builds on."""


def register() -> None:
    """Make `architecture="gated"` mean this package's classes. Idempotent.

    Raises:
        SeamsChangedError: SAELens lacks one of `SEAMS`; nothing was changed.
    """
    import sae_lens  # noqa: F401 - the first import of it may register already

    if is_registered():
        return
    check_seams()
    _forget_half_imported()
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    from gated_plugin.architecture import GatedSAE
    from gated_plugin.config import GatedSAEConfig, GatedTrainingSAEConfig
    from gated_plugin.training import GatedTrainingSAE

    _replaced["inference"] = SAE_CLASS_REGISTRY[ARCHITECTURE]
    _replaced["training"] = SAE_TRAINING_CLASS_REGISTRY[ARCHITECTURE]
    SAE_CLASS_REGISTRY[ARCHITECTURE] = (GatedSAE, GatedSAEConfig)
    SAE_TRAINING_CLASS_REGISTRY[ARCHITECTURE] = (GatedTrainingSAE, GatedTrainingSAEConfig)


def unregister() -> None:
    """Give `architecture="gated"` back to SAELens' built-in classes. Idempotent.

    Imports SAELens where that has not happened, so that nothing registers afterwards.
    """
    import sae_lens  # noqa: F401 - so that it cannot register later

    if not is_registered():
        return
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    SAE_CLASS_REGISTRY[ARCHITECTURE] = _replaced.pop("inference")
    SAE_TRAINING_CLASS_REGISTRY[ARCHITECTURE] = _replaced.pop("training")


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
