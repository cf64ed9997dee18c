"""PixelPrune: cells whose pixels their neighbours already tell never enter the vision tower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vlm_eff.core.action import Keep
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import BindContext, Observation, Plugin, Site, TowerKept
from vlm_eff.core.registry import method
from vlm_eff.core.resources import Resource
from vlm_eff.core.tower import Cells, TowerKeep, TowerSite
from vlm_eff.importance.keep import is_number
from vlm_eff.importance.predict import predicted_cells
from vlm_eff.importance.select import from_mask
from vlm_eff.models.vit.view import TowerView


@method(room="tokens", acts="before the vision tower", paper="arXiv:2604.00886")
def pixelprune(tau: float = 0.0, std: Sequence[float] | None = None) -> PixelPrune:
    """Keep only the cells of an image whose pixels differ from what their neighbours predict.

    A cell is the square of patches that becomes one visual token (one patch in a tower alone). Going over the grid, a
    cell is predicted from its left, upper and upper-left neighbours; one that is like its prediction is dropped at the
    input of the tower's first block, which is the same as leaving it out of the tower, and before the language model,
    where the others keep their rotary positions. Documents and screens shrink much, photographs hardly.
    In a tower alone a dropped patch gets the feature of the kept patch that it equals.

    Paper arXiv:2604.00886, section 3, and its code: prediction "pred_2d", largest difference of a channel, the first
    frame of a pair in videos, anchored comparison for tau > 0. Lossless in pixels, not in logits: kept cells lose the
    neighbours they would have looked at. Differs: pixels are compared as the processor normalised them, so that a
    threshold in units of [0, 1] needs the processor's `std`.
    Costs a comparison of neighbours on the device; with tau > 0 a loop over the cells on the host. Saves tower and
    language model for every dropped cell; images of a batch with fixed rows are as long as the fullest of them.

    Args:
        tau: largest difference of a pixel's channel that counts as the same; 0 drops exact copies only.
        std: the processor's standard deviation of each channel, which turns tau into units of [0, 1] pixels; None
            compares normalised pixels.

    Raises:
        ConfigError: a negative tau, or a std that is not three positive numbers.
    """
    return PixelPrune(tau, None if std is None else tuple(std))


@part
@dataclass(frozen=True)
class PixelPrune(Plugin):
    """Drops predictable cells before the tower, and the same ones before the language model if there is one."""

    tau: float = 0.0
    std: tuple[float, ...] | None = None
    decoder: bool = False

    def __post_init__(self) -> None:
        good = self.std is None or (len(self.std) == 3 and all(is_number(value) and value > 0 for value in self.std))
        if not is_number(self.tau) or self.tau < 0 or not good:
            raise ConfigError(
                explain(f"tau={self.tau!r}, std={self.std}", "tau of at least 0, three positive std", "Correct them")
            )

    @property
    def name(self) -> str:
        return "pixelprune"

    @property
    def sites(self) -> tuple[Site | TowerSite, ...]:
        tower = TowerSite(0, "before", "pixels")
        return (tower, Site(0)) if self.decoder else (tower,)

    @property
    def needs(self) -> tuple[Observation, ...]:
        return (TowerKept(),) if self.decoder else ()

    @property
    def writes(self) -> frozenset[Resource]:
        tower = frozenset({Resource.TOWER_TOKENS})
        return tower | {Resource.ENTRY_TOKENS} if self.decoder else tower

    def bind(self, context: BindContext) -> PixelPrune:
        return replace(self, decoder=context.num_layers > 0)

    def at(self, site: Site | TowerSite, view: Any) -> Keep | TowerKeep | None:
        if isinstance(site, TowerSite):
            return self._tower(view)
        kept = (view.observed.tower(TowerKept())[:, :, 0] > 0) & view.spans.valid
        if bool((kept | ~view.spans.valid).all()):
            return None
        chosen = from_mask(kept)
        return Keep(chosen.index, chosen.valid)

    def _tower(self, view: TowerView) -> TowerKeep | None:
        source = [self._sources(cells) for cells in view.cells()]
        width, prefix = view.size.shape[1], view.prefix
        # the token that stands for each token; columns behind an image's end stand for themselves and are not real
        stands = torch.arange(width, device=view.size.device).repeat(len(source), 1)
        for row, patches in enumerate(source):
            stands[row, prefix : prefix + len(patches)] = patches.to(stands.device) + prefix
        real = torch.ones_like(stands, dtype=torch.bool) if view.valid is None else view.valid
        stays = (stands == torch.arange(width, device=stands.device)) & real
        if bool((stays | ~real).all()):
            return None
        chosen = from_mask(stays)
        number = stays.long().cumsum(1) - 1
        even = view.valid is None and bool(chosen.valid.all())
        return TowerKeep(chosen.index, None if even else chosen.valid, number.gather(1, stands).clamp(min=0))

    def _sources(self, cells: Cells) -> Tensor:
        """For each patch of an image the patch that stands for it [P]."""
        pixels = cells.pixels.float()
        if self.std is not None:
            scale = torch.tensor(self.std, device=pixels.device)
            pixels = pixels * scale.view(-1, *([1] * (pixels.dim() - 3)))
        _, stands = predicted_cells(pixels.flatten(2), self.tau)
        patches = cells.patches.flatten(0, 1).to(stands.device)
        made = torch.arange(int(patches.max()) + 1, device=stands.device)
        made[patches] = patches[stands.flatten()]
        return made


__all__ = ["PixelPrune", "pixelprune"]
