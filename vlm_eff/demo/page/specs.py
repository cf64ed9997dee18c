"""Plugins by what a visitor typed: methods with plain settings, or names of what the page offers; never a file."""

from __future__ import annotations

from collections.abc import Mapping

import vlm_eff
from vlm_eff.core.config import parse_spec
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.registry import make_plugin

# settings that name files or weights to load; only whoever starts the page may give them
FILE_SETTINGS = frozenset({"weights", "calibration", "store"})
_MOST = 6


def plugins_of(text: str, offered: Mapping[str, Plugin] | None = None) -> dict[str, Plugin]:
    """Plugins by their specs, one a line.

    offered: plugins that may be named beside the methods

    Raises:
        ConfigError: nothing, too many, one twice, an unknown method or setting, or a setting that would open a file.
    """
    vlm_eff.methods()
    specs = [line.strip() for line in text.splitlines() if line.strip()]
    if not specs:
        raise ConfigError(explain("no plugin", "one spec a line", "Choose a method, such as pyramiddrop"))
    if len(specs) > _MOST or len(set(specs)) < len(specs):
        got = f"{len(specs)} plugins" if len(specs) > _MOST else "a plugin twice"
        raise ConfigError(explain(got, f"up to {_MOST} different ones", "Leave some of them out"))
    return {spec: _plugin(spec, offered or {}) for spec in specs}


def _plugin(spec: str, offered: Mapping[str, Plugin]) -> Plugin:
    if spec in offered:
        return offered[spec]
    refuse_files(spec)
    return make_plugin(spec)


def refuse_files(spec: str) -> None:
    """Raise `ConfigError` where a spec would open a file."""
    _, settings = parse_spec(spec)
    files = sorted(name for name, value in settings.items() if name in FILE_SETTINGS or _names_a_file(value))
    if files:
        raise ConfigError(
            explain(
                f"the setting {files[0]!r} of {spec!r} names a file",
                "plain numbers and words: visitors do not open files of this machine",
                "Whoever starts the page may offer it: vlm-eff demo --offer SPEC",
            )
        )


def _names_a_file(value: object) -> bool:
    # a schedule is steps, a word, or the file of a calibrated one
    return isinstance(value, str) and value.endswith(".json")
