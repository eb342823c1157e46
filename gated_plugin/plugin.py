"""Puts our classes in the place of SAELens' built-in `"gated"`, and takes them out again.

Imports nothing of SAELens at the top: SAELens may be half imported when `register` is called.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from gated_plugin.errors import GatedError

ARCHITECTURE = "gated"

# What our subclasses override or call. All of it is there in SAELens 6.50 and in 6.54.
SEAMS = {
    "sae_lens.registry": ("SAE_CLASS_REGISTRY", "SAE_TRAINING_CLASS_REGISTRY"),
    "sae_lens.saes.gated_sae": (
        "GatedSAE.encode",
        "GatedSAE.fold_W_dec_norm",
        "GatedSAEConfig.architecture",
        "GatedTrainingSAE.calculate_aux_loss",
        "GatedTrainingSAE.encode_with_hidden_pre",
        "GatedTrainingSAE.get_coefficients",
        "GatedTrainingSAEConfig.l1_coefficient",
        "GatedTrainingSAEConfig.l1_warm_up_steps",
    ),
    "sae_lens.saes.sae": (
        "SAE._setup_activation_normalization",
        "SAE.fold_activation_norm_scaling_factor",
        "SAE.initialize_weights",
        "SAE.process_sae_in",
        "SAE.process_state_dict_for_loading",
        "SAE.save_model",
        "SAE.turn_off_forward_pass_hook_z_reshaping",
        "SAE.turn_on_forward_pass_hook_z_reshaping",
        "TrainingSAE.load_weights_from_checkpoint",
        "TrainingSAE.training_forward_pass",
        "TrainingSAEConfig.decoder_init_norm",
    ),
}

_replaced: dict[str, Any] = {}


class SeamsChangedError(GatedError):
    """This SAELens lacks something that the plugin builds on."""


def register() -> None:
    """Make `architecture="gated"` mean this package's classes. Idempotent.

    Raises:
        SeamsChangedError: SAELens lacks one of `SEAMS`; nothing was changed.
    """
    from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY

    check_seams()
    from gated_plugin.architecture import GatedSAE
    from gated_plugin.config import GatedSAEConfig, GatedTrainingSAEConfig
    from gated_plugin.training import GatedTrainingSAE

    if is_registered():
        return
    _replaced["inference"] = SAE_CLASS_REGISTRY[ARCHITECTURE]
    _replaced["training"] = SAE_TRAINING_CLASS_REGISTRY[ARCHITECTURE]
    SAE_CLASS_REGISTRY[ARCHITECTURE] = (GatedSAE, GatedSAEConfig)
    SAE_TRAINING_CLASS_REGISTRY[ARCHITECTURE] = (GatedTrainingSAE, GatedTrainingSAEConfig)


def unregister() -> None:
    """Give `architecture="gated"` back to SAELens' built-in classes. Idempotent."""
    if not _replaced:
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
            f"SAELens {version('sae-lens')} lacks {', '.join(missing)}, on which gated_plugin "
            "builds; install a SAELens that it admits: pip install --upgrade gated-plugin "
            "'sae-lens>=6.50,<7'."
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
