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

_waiting: dict[str, Callable[[], None]] = {}
_warned: set[str] = set()


def autoload() -> None:
    """Called by torch at the end of its import. Never raises."""
    if os.environ.get(OPT_OUT) != "0":
        when_saelens_is_ready(__name__, _load_plugins)


def when_saelens_is_ready(name: str, action: Callable[[], None]) -> None:
    """Call `action` once SAELens has registered its gated classes: now, or when that happens.

    Never raises: what fails becomes one warning for each `name`, the plugin that acts.
    """
    _guarded(name, lambda: _act_or_wait(name, action))


def _act_or_wait(name: str, action: Callable[[], None]) -> None:
    registry = sys.modules.get(REGISTRY)
    if registry is not None and _is_ready(registry):
        action()
        return
    if not _waiting:
        if registry is None:
            sys.meta_path.insert(0, _RegistryFinder())
        else:
            _watch(registry)
    _waiting[name] = action


def _load_plugins() -> None:
    from importlib.metadata import entry_points

    for plugin in entry_points(group=GROUP):
        _load(plugin)


def _load(plugin: Any) -> None:
    _guarded(plugin.name, lambda: plugin.load()())


def _guarded(name: str, action: Callable[[], None]) -> None:
    try:
        action()
    except (Exception, SystemExit) as cause:
        if name not in _warned:
            _warned.add(name)
            _warn(
                f"SAELens plugin {name!r} was not loaded: {type(cause).__name__}: "
                f"{str(cause).rstrip('.')}. SAELens works as without it. Run `gated-hub doctor` "
                f"to see what to mend, or set {OPT_OUT}=0 to switch plugins off."
            )


def _warn(message: str) -> None:
    import warnings

    try:
        warnings.warn(message, RuntimeWarning, stacklevel=4)
    except RuntimeWarning:  # raised under `-W error`, and an import must not fail even then
        print(message, file=sys.stderr)


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

    def act_if_ready() -> None:
        if _waiting and _is_ready(registry):
            for name, original in originals.items():
                setattr(registry, name, original)
            for name in list(_waiting):
                _guarded(name, _waiting.pop(name))

    def watched(register: Callable[..., None]) -> Callable[..., None]:
        @wraps(register)
        def wrapper(*args: Any, **kwargs: Any) -> None:
            register(*args, **kwargs)
            _guarded(__name__, act_if_ready)

        return wrapper

    for name, register in originals.items():
        setattr(registry, name, watched(register))


class _RegistryFinder:
    """A meta path finder that steps in for one module, until that has been executed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != REGISTRY:
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in others)
        spec: Any = next((spec for spec in found if spec is not None), None)
        if spec is not None:
            spec.loader = _RegistryLoader(spec.loader, self)
        return spec


class _RegistryLoader:
    """The module's own loader, but for what happens after its work."""

    def __init__(self, loader: Any, finder: _RegistryFinder) -> None:
        self._loader = loader
        self._finder = finder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _guarded(__name__, lambda: self._watch(module))

    def _watch(self, module: ModuleType) -> None:
        sys.meta_path.remove(self._finder)
        _watch(module)
