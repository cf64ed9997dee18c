"""A method that raises when it is asked, as a third party might write it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from vlm_eff.core.plugin import BindContext, Plugin, Site
from vlm_eff.core.registry import METHODS, Method
from vlm_eff.core.resources import Resource

NAME = "always_raises"


@dataclass(frozen=True)
class Broken(Plugin):
    """Raises at the first decoder layer."""

    @property
    def name(self) -> str:
        return NAME

    @property
    def sites(self) -> tuple[Site, ...]:
        return (Site(0),)

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset()

    def bind(self, context: BindContext) -> Plugin:
        return self

    def at(self, site: Any, view: Any) -> None:
        raise ValueError("the plugin is broken")


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of the method, which is known while a test runs."""
    monkeypatch.setitem(METHODS._values, NAME, Method(NAME, Broken, "third party", "", ""))
    return NAME
