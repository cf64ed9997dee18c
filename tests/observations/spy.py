"""A plugin that looks and changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlm_eff.core.plugin import BindContext, Observation, Plugin, Site
from vlm_eff.core.resources import Resource
from vlm_eff.models.view import View


@dataclass(frozen=True)
class Spy(Plugin):
    """Calls `look(view)` at the input of `layer`; what it returns goes into `seen`."""

    wanted: Observation
    look: Callable[[View], Any]
    seen: list[Any]
    layer: int = 0

    @property
    def name(self) -> str:
        return "spy"

    @property
    def sites(self) -> tuple[Site, ...]:
        return (Site(self.layer),)

    @property
    def needs(self) -> tuple[Observation, ...]:
        return (self.wanted,)

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset()

    def bind(self, context: BindContext) -> Spy:
        context.check_needs(self.name, self.needs)
        return self

    def at(self, site: Site, view: View) -> None:
        self.seen.append(self.look(view))
