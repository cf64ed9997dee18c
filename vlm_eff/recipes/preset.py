"""A preset: plugins with every setting in a JSON file, what they were made for, and what was measured of them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm_eff.core.config import from_dict, to_dict
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.files import check_place, write_file
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.recipe import Recipe

KIND = "vlm_eff preset"
FORMAT = 1
SUFFIX = ".json"
# rooms whose import makes the parts of their plugins known
_ROOMS = ("vlm_eff.tokens", "vlm_eff.kvcache", "vlm_eff.diffusion", "vlm_eff.recipes")
_ACCEPTED = "a file written by vlm-eff tune"


@dataclass(frozen=True)
class Preset:
    """What a preset file says.

    plugins:    attached together
    num_layers: decoder layers of the model it was made for: schedules name layers, so others are refused
    model:      name of that model; about: whatever its maker noted: task, budgets, measured numbers, packages, date
    """

    name: str
    plugins: tuple[Plugin, ...]
    num_layers: int
    model: str
    about: dict[str, Any] = field(default_factory=dict)

    def recipe(self) -> Recipe:
        """The plugins as one, for `attach`."""
        return Recipe(self.name, self.plugins, num_layers=self.num_layers)


def save_preset(path: Path, preset: Preset) -> Path:
    """Write a preset, in full or not at all.

    Raises:
        InputError: a folder that is not there.
    """
    check_place(path)
    values = {
        "kind": KIND,
        "format": FORMAT,
        "name": preset.name,
        "model": preset.model,
        "num_layers": preset.num_layers,
        "plugins": [to_dict(plugin) for plugin in preset.plugins],
        "about": preset.about,
    }
    return write_file(path, json.dumps(values, indent=2) + "\n")


def read_preset(path: Path) -> Preset:
    """Read a preset with all that it notes.

    Raises:
        ConfigError: a file that is missing, no JSON, something else than a preset, of another format, or with plugins
            that cannot be made.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _refused(path, str(error)) from None
    if not isinstance(values, dict) or values.get("kind") != KIND:
        raise _refused(path, "it does not call itself one")
    if values.get("format") != FORMAT:
        raise _refused(path, f"format {values.get('format')!r}, not {FORMAT}")
    name, model, about = values.get("name"), values.get("model"), values.get("about", {})
    layers = values.get("num_layers")
    if not isinstance(name, str) or not isinstance(model, str) or not isinstance(about, dict):
        raise _refused(path, "name, model or about is missing or damaged")
    if isinstance(layers, bool) or not isinstance(layers, int) or layers < 1:
        raise _refused(path, f"num_layers={layers!r}")
    return Preset(name, _plugins(path, values.get("plugins")), layers, model, about)


def load_preset(path: str | Path) -> Recipe:
    """The plugins of a preset file, for `attach`; a model with another number of layers is refused there.

    Raises:
        ConfigError: see `read_preset`.
    """
    return read_preset(Path(path).expanduser()).recipe()


def _plugins(path: Path, found: Any) -> tuple[Plugin, ...]:
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        raise _refused(path, "it holds no plugins")
    for room in _ROOMS:
        importlib.import_module(room)
    try:
        made = tuple(from_dict(one) for one in found)
    except (ConfigError, TypeError) as error:
        raise _refused(path, f"a plugin cannot be made: {error}") from None
    wrong = [type(one).__name__ for one in made if not isinstance(one, Plugin)]
    if wrong:
        raise _refused(path, f"it holds a {wrong[0]} where a plugin belongs")
    return made


def _refused(path: Path, why: str) -> ConfigError:
    return ConfigError(explain(f"{path} is no preset ({why})", _ACCEPTED, "Check the path, or tune again"))
