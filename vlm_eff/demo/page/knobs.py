"""The knobs of a method, read off its signature: what a visitor can turn, and the spec that says how they stand."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vlm_eff.core.config import parse_spec, write_spec
from vlm_eff.core.registry import METHODS, Method
from vlm_eff.demo.page.specs import FILE_SETTINGS
from vlm_eff.eval.budgets import Sizes, reach_settings

Kind = Literal["switch", "choice", "whole", "number", "text"]
# of a ratio: finer steps move no token
_DIGITS = 4


@dataclass(frozen=True)
class Knob:
    """One setting of a method.

    kind:    how it is turned; "text" takes what a spec takes, such as (2, 4)
    default: what it is when nobody turns it, required or not; choices: of a choice
    """

    name: str
    kind: Kind
    default: Any
    required: bool = False
    choices: tuple[Any, ...] = ()


def knobs_of(method: Method) -> list[Knob]:
    """What can be turned, in the order of the signature, without settings that open files."""
    hints = typing.get_type_hints(method.make)
    made = []
    for name, parameter in inspect.signature(method.make).parameters.items():
        # options that are passed on have no names to offer
        if name in FILE_SETTINGS or parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        required = parameter.default is inspect.Parameter.empty
        default = None if required else parameter.default
        made.append(_knob(name, hints.get(name, Any), default, required))
    return made


def _knob(name: str, hint: Any, default: Any, required: bool) -> Knob:
    options = [hint]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [one for one in typing.get_args(hint) if one is not type(None)]
    (one, *others) = options
    if not others and typing.get_origin(one) is Literal:
        choices = typing.get_args(one)
        # what may be left alone stays choosable
        choices = choices if default in choices else (default, *choices)
        return Knob(name, "choice", default, required, choices)
    if not others and one is bool:
        return Knob(name, "switch", default, required)
    if not others and one in (int, float):
        return Knob(name, "whole" if one is int else "number", default, required)
    return Knob(name, "text", default, required)


def spec_of(method: Method, values: Mapping[str, Any]) -> str:
    """The spec of a method whose knobs stand at `values`; those that stand where they were are left out.

    Raises:
        ConfigError: text that no spec can hold.
    """
    chosen = {}
    for knob in knobs_of(method):
        if knob.name not in values:
            continue
        value = _read(knob, values[knob.name])
        if value != knob.default:
            chosen[knob.name] = value
    return write_spec(method.name, chosen)


def shown(knob: Knob) -> Any:
    """What a control shows at the default."""
    if knob.kind != "text":
        return knob.default
    return "" if knob.default is None else repr(knob.default)


def _read(knob: Knob, value: Any) -> Any:
    if value is None or value == "":
        return knob.default
    if knob.kind == "whole":
        return int(value)
    if knob.kind != "text":
        return value
    _, found = parse_spec(f"x:value={value}")
    return found["value"]


def spec_at(name: str, share: float, sizes: Sizes) -> str:
    """The spec that leaves a share of the visual tokens, averaged over layers; of the cache's entries for its methods.

    share: 0 to 1; a method of the cache that has no such knob, and one that sets itself, keep their settings

    Raises:
        ConfigError: a budget that the method cannot reach.
    """
    method = METHODS.get(name)
    known = inspect.signature(method.make).parameters
    if method.room == "kvcache":
        return write_spec(name, {"keep_ratio": round(share, _DIGITS)} if "keep_ratio" in known else {})
    settings = reach_settings(name, share * sizes.visual_tokens, sizes)
    return write_spec(name, {key: round(v, _DIGITS) if isinstance(v, float) else v for key, v in settings.items()})


def methods_for(rooms: Sequence[str], family: str) -> list[Method]:
    """Methods of these rooms that do something on a model family, by name."""
    found = [METHODS.get(name) for name in METHODS]
    return [one for one in found if one.room in rooms and one.serves(family)]
