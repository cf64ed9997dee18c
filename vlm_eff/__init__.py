"""Plugins that make vision-language models faster and smaller without changing the model."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["Handle", "__version__", "attach", "methods", "plugin"]

if TYPE_CHECKING:
    from vlm_eff.core.handle import Handle
    from vlm_eff.core.plugin import Plugin
    from vlm_eff.core.registry import Method
    from vlm_eff.models.attach import attach

# rooms whose import registers their methods
_ROOMS = ("vlm_eff.tokens", "vlm_eff.kvcache", "vlm_eff.diffusion", "vlm_eff.recipes")
_LAZY = {"Handle": "vlm_eff.core.handle", "attach": "vlm_eff.models.attach"}


def methods() -> dict[str, Method]:
    """Every method by name: ours and those that installed packages register under `vlm_eff.plugins`."""
    from vlm_eff.core import registry

    for room in _ROOMS:
        importlib.import_module(room)
    registry.load_entry_points()
    return {name: registry.METHODS.get(name) for name in registry.METHODS}


def plugin(spec: str) -> Plugin:
    """Build a plugin from a spec such as `"pyramiddrop:keep_ratio=0.5"`; the same object as the method call gives.

    The path of a preset that `vlm-eff tune` wrote, such as `"tuned.json"`, gives its plugins as one.
    """
    from vlm_eff.core.registry import make_plugin
    from vlm_eff.recipes.preset import SUFFIX, load_preset

    methods()
    if spec.strip().endswith(SUFFIX):
        return load_preset(spec.strip())
    return make_plugin(spec)


def __getattr__(name: str) -> Any:
    # torch and transformers are imported when they are needed: `vlm-eff --help` must not wait for them
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
