"""What stands in lmms-eval's `--model_args` for us: keys of ours taken out, the rest left for the base backend.

    base=llava_hf,pretrained=DIR,plugin=fastv:keep_ratio=0.5;layer=2+snapkv:keep_ratio=0.2,on_error=raise,record=FILE

lmms-eval separates arguments with commas, so a spec has `;` where the command line of vlm-eff has a comma; `+` before a
name begins the next plugin. Nothing is escaped: no spec needs a `;`, and a `+` before a letter is in no number.
"""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vlm_eff
from vlm_eff.core.config import from_dict
from vlm_eff.core.errors import ConfigError, InputError, explain
from vlm_eff.core.plugin import Plugin

ON_ERROR = ("raise", "warn")
_KEYS = ("base", "plugin", "preset", "on_error", "record")
_OPEN, _CLOSE = "([{", ")]}"
_NEXT_PLUGIN = re.compile(r"\+(?=\s*(?:[A-Za-z_]|$))")


@dataclass(frozen=True)
class Asked:
    """What the arguments said.

    base:     name of the harness's own model; rest: its arguments, as they were written
    plugins:  attached together; none leaves the model bare, which is still timed
    specs:    how they were written; on_error: "raise" fails a run in which the model raised, "warn" counts it
    record:   where the costs of every call are written as JSON, or None
    """

    base: str
    rest: str
    plugins: tuple[Plugin, ...] = ()
    specs: tuple[str, ...] = ()
    on_error: str = "raise"
    record: Path | None = None


def read_arguments(text: str) -> Asked:
    """Read `--model_args`.

    Raises:
        ConfigError: no `base`, a key twice, a plugin that cannot be, or an argument of a plugin behind a comma.
        InputError: a preset that cannot be read.
    """
    values: dict[str, str] = {}
    rest: list[str] = []
    for argument in split_arguments(text):
        key, equals, value = argument.partition("=")
        if key.strip() not in _KEYS or not equals:
            rest.append(argument)
        elif key.strip() in values:
            raise ConfigError(explain(f"{key.strip()}= twice", "every key once", "Remove one; plugins are joined by +"))
        else:
            values[key.strip()] = value.strip()
    if not values.get("base"):
        raise ConfigError(
            explain(
                f"model_args {text!r} without base=",
                "the id of an lmms-eval model that runs in this process, such as base=llava_hf",
                "Name the model that the plugins are put on",
            )
        )
    plugins, specs = read_plugins(values.get("plugin"), values.get("preset"))
    _refuse_lost(specs, rest)
    record = Path(values["record"]) if values.get("record") else None
    return Asked(
        values["base"], ",".join(rest), plugins, specs, check_on_error(values.get("on_error", "raise")), record
    )


def read_plugins(spec: str | None, preset: str | Path | None = None) -> tuple[tuple[Plugin, ...], tuple[str, ...]]:
    """Plugins of a spec, then those of a preset file, and how they were written.

    Raises:
        ConfigError: an unknown method or argument. InputError: a preset that cannot be read.
    """
    specs = split_specs(spec) if spec else ()
    made, written = [vlm_eff.plugin(one) for one in specs], list(specs)
    for entry in _entries(Path(preset)) if preset else ():
        one = vlm_eff.plugin(entry) if isinstance(entry, str) else _rebuilt(entry, Path(str(preset)))
        made.append(one)
        written.append(entry if isinstance(entry, str) else one.name)
    return tuple(made), tuple(written)


def split_specs(text: str) -> tuple[str, ...]:
    """`"fastv:keep_ratio=0.5;layer=2+tome"` as specs: `("fastv:keep_ratio=0.5,layer=2", "tome")`."""
    parts = [part.strip().replace(";", ",") for part in _NEXT_PLUGIN.split(text)]
    if not all(parts):
        raise ConfigError(explain(f"plugin={text!r}", "specs joined by +", "Remove the + that joins nothing"))
    return tuple(parts)


def split_arguments(text: str) -> list[str]:
    """Split at commas, except inside quotes and brackets, as lmms-eval does; round brackets protect here too."""
    made, current, depth, quote = [], "", 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        elif sign in _OPEN:
            depth += 1
        elif sign in _CLOSE:
            depth -= 1
        elif sign == "," and depth == 0:
            made.append(current)
            current = ""
            continue
        current += sign
    return [part.strip() for part in [*made, current] if part.strip()]


def check_on_error(value: str) -> str:
    """Return the value, or raise `ConfigError`."""
    if value not in ON_ERROR:
        raise ConfigError(explain(f"on_error={value!r}", " or ".join(ON_ERROR), "Choose one of these"))
    return value


def _refuse_lost(specs: tuple[str, ...], rest: list[str]) -> None:
    """A comma inside a spec would hand the plugin's argument to the base, which may swallow it."""
    known = vlm_eff.methods()
    for spec in specs:
        name = spec.partition(":")[0].strip()
        parameters = set(inspect.signature(known[name].make).parameters)
        lost = [one for one in rest if one.partition("=")[0].strip() in parameters]
        if lost:
            raise ConfigError(
                explain(
                    f"{', '.join(lost)} behind a comma, though it is an argument of {name}",
                    f"one plugin's arguments joined by semicolons, such as plugin={name}:{';'.join(lost)}",
                    "Write ; in place of the comma",
                )
            )


def _entries(path: Path) -> list[Any]:
    """A JSON list, or a document with one under "plugins": specs, or plugins as their dicts."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(explain(f"preset {path} cannot be read ({error})", "a JSON file", "Check the path")) from None
    found = found.get("plugins") if isinstance(found, dict) else found
    if not isinstance(found, list) or not found or not all(isinstance(one, str | dict) for one in found):
        raise InputError(
            explain(f"preset {path} without plugins", 'a list, or {"plugins": [...]}, of specs or dicts', "Correct it")
        )
    return found


def _rebuilt(entry: dict[str, Any], path: Path) -> Plugin:
    # a dict names parts, which the rooms register when they are imported
    vlm_eff.methods()
    made = from_dict(entry)
    if not isinstance(made, Plugin):
        raise InputError(explain(f"preset {path} holds a {type(made).__name__}", "plugins", "Correct the preset"))
    return made
