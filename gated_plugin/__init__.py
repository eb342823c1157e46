"""Paper-faithful Gated SAEs (arXiv 2404.16014) for SAELens.

Importing this package registers its classes as SAELens' architecture `"gated"`: at once where
SAELens is imported already, else in the moment in which it is. The import itself stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gated_plugin.plugin import ARCHITECTURE, register, unregister
from gated_plugin_autoload import when_saelens_is_ready

if TYPE_CHECKING:
    from gated_plugin.architecture import GatedSAE
    from gated_plugin.config import GatedSAEConfig, GatedTrainingSAEConfig
    from gated_plugin.loading import load
    from gated_plugin.training import GatedTrainingSAE

__version__ = "0.1.0"

__all__ = [
    "GatedSAE",
    "GatedSAEConfig",
    "GatedTrainingSAE",
    "GatedTrainingSAEConfig",
    "load",
    "register",
    "unregister",
]

_HOME = {
    "GatedSAE": "architecture",
    "GatedSAEConfig": "config",
    "GatedTrainingSAE": "training",
    "GatedTrainingSAEConfig": "config",
    "load": "loading",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


when_saelens_is_ready(ARCHITECTURE, register)
