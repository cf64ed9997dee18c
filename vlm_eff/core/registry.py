"""The one registry class: names to things, with "did you mean" and entry points of third parties."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Generic, TypeVar

from vlm_eff.core.config import build, parse_spec
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import Plugin

V = TypeVar("V")


class Registry(Generic[V]):
    """Names to values of one kind; a second value under a name is refused."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._values: dict[str, V] = {}

    def add(self, name: str, value: V) -> None:
        """Register `value`; the name must be new."""
        if name in self._values:
            raise ConfigError(
                explain(f"{self.kind} {name!r} is registered twice", "one value a name", "Choose another name")
            )
        self._values[name] = value

    def get(self, name: str) -> V:
        """Return the value of `name`, or raise `ConfigError` with the nearest names."""
        if name in self._values:
            return self._values[name]
        near = difflib.get_close_matches(name, self._values, n=2)
        hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else "Choose one of the accepted names"
        raise ConfigError(
            explain(f"there is no {self.kind} {name!r}", ", ".join(sorted(self._values)) or "none registered", hint)
        )

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._values))

    def __contains__(self, name: object) -> bool:
        return name in self._values


@dataclass(frozen=True)
class Method:
    """One row of the method table: how to make a plugin and what it is."""

    name: str
    make: Callable[..., Plugin]
    room: str
    acts: str
    paper: str
    training_free: bool = True
    families: tuple[str, ...] = ()

    def serves(self, family: str) -> bool:
        """True when the method does something on this model family; it may be attached to any."""
        return not self.families or family in self.families

    @property
    def summary(self) -> str:
        """First sentence of the method's docstring."""
        return (self.make.__doc__ or "").strip().split("\n")[0]


METHODS: Registry[Method] = Registry("method")
BROKEN_ENTRY_POINTS: dict[str, str] = {}

Maker = TypeVar("Maker", bound=Callable[..., Plugin])


def method(
    *, room: str, acts: str, paper: str, training_free: bool = True, families: tuple[str, ...] = ()
) -> Callable[[Maker], Maker]:
    """Register a method function under its own name, with what the method table says of it."""

    def register(make: Maker) -> Maker:
        METHODS.add(make.__name__, Method(make.__name__, make, room, acts, paper, training_free, families))
        return make

    return register


def load_entry_points() -> None:
    """Import what third parties register (group `vlm_eff.plugins`); a broken one is remembered, never fatal."""
    for point in metadata.entry_points(group="vlm_eff.plugins"):
        if point.name in METHODS or point.name in BROKEN_ENTRY_POINTS:
            continue
        try:
            make = point.load()
            if point.name not in METHODS:
                METHODS.add(point.name, Method(point.name, make, room="third party", acts="", paper=""))
        except Exception as error:
            BROKEN_ENTRY_POINTS[point.name] = f"{type(error).__name__}: {error}"


def make_plugin(spec: str) -> Plugin:
    """Build a plugin from a spec string such as `"fastv:keep_ratio=0.5"`.

    Raises:
        ConfigError: unknown method, unknown argument, or a value the method refuses.
    """
    name, arguments = parse_spec(spec)
    chosen = METHODS.get(name)
    made: Any = build(chosen.make, arguments, what=f"method {name!r}")
    if not isinstance(made, Plugin):
        raise ConfigError(
            explain(f"method {name!r} returned {type(made).__name__}", "a Plugin", "Return a Plugin from the method")
        )
    return made
