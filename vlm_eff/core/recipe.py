"""Several plugins under one name, for methods that act in more than one room."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from vlm_eff.core.config import part
from vlm_eff.core.errors import CapabilityError, ConfigError, StateError, explain
from vlm_eff.core.plugin import BindContext, Observation, Plugin
from vlm_eff.core.resources import Resource


@part
@dataclass(frozen=True)
class Recipe(Plugin):
    """Plugins that are attached together: `attach(model, recipe)` and `attach(model, *recipe)` do the same.

    Whoever looks at it sees what its plugins need and write; the handle and the reports know the plugins alone.

    num_layers: decoder layers of the model it was made for; None fits any
    """

    method: str
    plugins: tuple[Plugin, ...]
    num_layers: int | None = None

    def __post_init__(self) -> None:
        if not self.plugins or not all(isinstance(one, Plugin) for one in self.plugins):
            raise ConfigError(explain(f"a recipe of {self.plugins!r}", "one plugin or more", "Name its plugins"))

    def __iter__(self) -> Iterator[Plugin]:
        for one in self.plugins:
            yield from one if isinstance(one, Recipe) else (one,)

    @property
    def name(self) -> str:
        return self.method

    @property
    def sites(self) -> tuple[Any, ...]:
        return tuple(site for one in self for site in one.sites)

    @property
    def needs(self) -> tuple[Observation, ...]:
        return tuple(dict.fromkeys(need for one in self for need in one.needs))

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset(resource for one in self for resource in one.writes)

    @property
    def trains(self) -> bool:
        return all(one.trains for one in self)

    def check_made_for(self, num_layers: int) -> None:
        """Raise `CapabilityError` where a recipe for one depth meets a decoder of another."""
        for one in self.plugins:
            if isinstance(one, Recipe):
                one.check_made_for(num_layers)
        if self.num_layers not in (None, num_layers):
            raise CapabilityError(
                explain(
                    f"{self.name}, made for a decoder of {self.num_layers} layers, on one of {num_layers}",
                    "a model with as many decoder layers as the one it was made for",
                    "Tune again for this model",
                )
            )

    def bind(self, context: BindContext) -> Recipe:
        self.check_made_for(context.num_layers)
        return replace(self, plugins=tuple(one.bind(context) for one in self.plugins))

    def at(self, site: Any, view: Any) -> None:
        raise StateError(
            explain(
                f"the recipe {self.name} was asked to decide itself", "its plugins", "Attach it: attach takes it apart"
            )
        )

    def asked(self, visual_tokens: int, num_layers: int) -> list[float]:
        return [min(counts) for counts in zip(*(one.asked(visual_tokens, num_layers) for one in self), strict=True)]
