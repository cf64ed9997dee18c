"""Runs that resume from what earlier runs of near prompts went through."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.denoise import DenoisePlugin, DenoiseSite, StartSite
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import BindContext
from vlm_eff.core.resources import Resource
from vlm_eff.diffusion.prompt_store import PromptStore
from vlm_eff.models.denoise.start import Start, StartView, Trajectory

Key = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@part
@dataclass(frozen=True)
class PromptCache(DenoisePlugin):
    """Resumes a run from the latents of an earlier one whose key is near.

    tiers: (least similarity, share of the steps left out), any order      look: steps computed before it is asked
    key:   "prompt", "trajectory", or a function of what the denoiser is given    store: None for one of its own
    """

    tiers: tuple[tuple[float, float], ...]
    look: int = 0
    key: Any = "prompt"
    store: Any = None

    def __post_init__(self) -> None:
        for least, share in self.tiers:
            if not (0 < least <= 1 and 0 < share < 1):
                raise ConfigError(
                    explain(f"the tier {(least, share)}", "a similarity in (0, 1], a share in (0, 1)", "Change it")
                )
        if not callable(self.key) and self.key not in ("prompt", "trajectory"):
            raise ConfigError(explain(f"the key {self.key!r}", '"prompt", "trajectory", a function', "Choose one"))
        if self.look < (self.key == "trajectory"):
            raise ConfigError(
                explain(
                    f"look={self.look} with key={self.key!r}", "0 and more; 1 and more for a trajectory", "Raise it"
                )
            )

    @property
    def name(self) -> str:
        return "prompt_cache"

    @property
    def sites(self) -> tuple[DenoiseSite, ...]:
        return (StartSite(self.look, tuple(sorted({share for _, share in self.tiers}))),)

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset({Resource.LATENTS})

    def bind(self, context: BindContext) -> PromptCache:
        return self if self.store is not None else replace(self, store=PromptStore())

    def at(self, site: DenoiseSite, view: StartView | Trajectory) -> Any:
        if isinstance(view, Trajectory):
            self.store.add(view)
            return None
        parts = self._parts(view)
        found, near = self.store.find(view.settings, parts)
        notes = {"similarity": near, "hit": 0.0, "steps_left_out": 0.0}
        step = self._step(view, found, near)
        if found is None or step == 0:
            self.store.misses += 1
            return Start(parts, notes=notes)
        notes |= {"hit": 1.0, "steps_left_out": float(step - view.behind)}
        return Start(parts, step, self.store.use(found, step), notes)

    def _step(self, view: StartView, found: Trajectory | None, near: float) -> int:
        allowed = [round(share * view.count) for least, share in self.tiers if near >= least]
        kept = [] if found is None else [step for step in allowed if step in found.points and step > view.behind]
        return max(kept, default=0)

    def _parts(self, view: StartView) -> dict[str, Tensor]:
        if self.key == "trajectory":
            assert view.latents is not None
            return {"latents": view.latents.flatten(1).float().clone()}
        return self.key(view.given) if callable(self.key) else pooled(view.given)


def pooled(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor as [R, D]: the mean of its tokens, float32; whole numbers as they are."""
    made = {}
    for name, tensor in given.items():
        flat = tensor.reshape(1, -1) if tensor.dim() < 2 else tensor
        if not flat.is_floating_point():
            made[name] = flat.flatten(1).clone()
        else:
            made[name] = (flat.float().flatten(1, -2).mean(1) if flat.dim() > 2 else flat.float()).clone()
    return made
