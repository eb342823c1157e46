"""Loads SAELens plugins as soon as SAELens can take them; imports nothing but the interpreter's own.

`import torch` calls `autoload` through the entry point group `torch.backends`. It puts one finder
on `sys.meta_path` that waits for `sae_lens.registry`. When SAELens has registered both of its
`"gated"` classes, every entry point of the group `sae_lens.plugins` is called.

It waits for the registry and not for `sae_lens`, because SAELens' first import is torch, so that
`sae_lens` is often half imported when torch calls us. It is a module outside of the package
`gated_plugin`, because importing that package registers, and `GATED_PLUGIN_AUTOLOAD=0` must hold.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from types import ModuleType
from typing import Any

REGISTRY = "sae_lens.registry"
GROUP = "sae_lens.plugins"
OPT_OUT = "GATED_PLUGIN_AUTOLOAD"

_waiting: list[Callable[[], None]] = []


def autoload() -> None:
    """Called by torch at the end of its import. Never raises."""
    if os.environ.get(OPT_OUT) != "0":
        when_saelens_is_ready(_load_plugins)


def when_saelens_is_ready(action: Callable[[], None]) -> None:
    """Call `action` once SAELens has registered its gated classes: now, or when that happens.

    Whatever `action` raises becomes one warning, so that no import fails because of a plugin.
    """
    registry = sys.modules.get(REGISTRY)
    if registry is not None and _is_ready(registry):
        _guarded(GROUP, action)
        return
    _waiting.append(action)
    if len(_waiting) > 1:
        return
    if registry is not None:
        _watch(registry)
    else:
        sys.meta_path.insert(0, _RegistryFinder())


def _load_plugins() -> None:
    from importlib.metadata import entry_points

    for plugin in entry_points(group=GROUP):
        _guarded(plugin.name, lambda plugin=plugin: plugin.load()())  # type: ignore[misc]


def _guarded(name: str, action: Callable[[], None]) -> None:
    try:
        action()
    except Exception as cause:
        import warnings

        warnings.warn(
            f"SAELens plugin {name!r} was not loaded: {type(cause).__name__}: {cause} "
            "SAELens works as without it. Run `gated-hub doctor` to see what to mend, "
            f"or set {OPT_OUT}=0 to switch plugins off.",
            RuntimeWarning,
            stacklevel=2,
        )


def _is_ready(registry: ModuleType) -> bool:
    return (
        "gated" in registry.SAE_CLASS_REGISTRY and "gated" in registry.SAE_TRAINING_CLASS_REGISTRY
    )


def _watch(registry: ModuleType) -> None:
    """Wrap the two register functions until both of SAELens' gated classes are in."""
    originals = {
        name: getattr(registry, name)
        for name in ("register_sae_class", "register_sae_training_class")
    }

    def watched(register: Callable[..., None]) -> Callable[..., None]:
        @wraps(register)
        def wrapper(*args: Any, **kwargs: Any) -> None:
            register(*args, **kwargs)
            if _waiting and _is_ready(registry):
                for name, original in originals.items():
                    setattr(registry, name, original)
                while _waiting:
                    _guarded(GROUP, _waiting.pop(0))

        return wrapper

    for name, register in originals.items():
        setattr(registry, name, watched(register))


class _RegistryFinder:
    """A meta path finder that steps in for one module, once."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != REGISTRY:
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec

        spec = find_spec(name)
        if spec is not None:
            _guarded(GROUP, lambda: _watch_after_exec(spec.loader))
        return spec


def _watch_after_exec(loader: Any) -> None:
    exec_module = loader.exec_module

    def exec_then_watch(module: ModuleType) -> None:
        exec_module(module)
        del loader.exec_module
        _guarded(GROUP, lambda: _watch(module))

    loader.exec_module = exec_then_watch
