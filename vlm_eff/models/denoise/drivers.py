"""Who carries out what at which site: one driver a kind of site, found by name so that each is imported when needed."""

from __future__ import annotations

import importlib
from typing import Any, Protocol

from vlm_eff.core.denoise import (
    DeepSite,
    DenoiserSite,
    DenoiseSite,
    GuidanceSite,
    ModuleSite,
    SamplerSite,
    StackSite,
    StartSite,
    TokenSite,
)
from vlm_eff.core.errors import CapabilityError, explain
from vlm_eff.core.handle import Undo

_DRIVERS: dict[type[DenoiseSite], str] = {
    DenoiserSite: "root:RootDriver",
    DeepSite: "deep:DeepDriver",
    StackSite: "stack:StackDriver",
    SamplerSite: "sampler:SamplerDriver",
    GuidanceSite: "guidance:GuidanceDriver",
    TokenSite: "merging:MergeDriver",
    ModuleSite: "modules:ModuleDriver",
    StartSite: "start:StartDriver",
}


class Driver(Protocol):
    """Made as `Driver(runtime, site, plugin)`."""

    def install(self, undo: Undo) -> None:
        """Put links in place; each pushes how to take it off. Raises `CapabilityError` where the model cannot."""
        ...

    def began(self) -> None:
        """A run begins."""
        ...

    def ended(self) -> None:
        """The last step of a run is done."""
        ...


def driver_for(site: DenoiseSite) -> Any:
    """Class of the driver of a site."""
    found = _DRIVERS.get(type(site))
    if found is None:
        names = ", ".join(sorted(kind.__name__ for kind in _DRIVERS))
        raise CapabilityError(explain(f"a plugin that acts at {site!r}", names, "Use one of these sites"))
    module, name = found.split(":")
    return getattr(importlib.import_module(f"vlm_eff.models.denoise.{module}"), name)
