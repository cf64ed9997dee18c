"""Methods that act at several sites of one pipeline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vlm_eff.core.config import part
from vlm_eff.core.denoise import DenoisePlugin, DenoiseSite
from vlm_eff.core.resources import Resource
from vlm_eff.diffusion.guidance import Guide
from vlm_eff.diffusion.step_cache import StepCache


@part
@dataclass(frozen=True)
class Together(DenoisePlugin):
    """Plugins of different sites as one method; each is asked at its own."""

    method: str
    members: tuple[StepCache | Guide, ...]

    @property
    def name(self) -> str:
        return self.method

    @property
    def sites(self) -> tuple[DenoiseSite, ...]:
        return tuple(site for member in self.members for site in member.sites)

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset().union(*(member.writes for member in self.members))

    @property
    def depth(self) -> int:
        return max(member.depth for member in self.members)

    @property
    def sees_inputs(self) -> bool:
        return any(member.sees_inputs for member in self.members)

    def at(self, site: Any, view: Any) -> Any:
        return next(member for member in self.members if site in member.sites).at(site, view)
