"""Scores from the vision tower: what it looked at itself, before any question was asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.plugin import Observation, TowerAttention
from vlm_eff.importance.keep import check_choice
from vlm_eff.models.view import View


@part
@dataclass(frozen=True)
class TowerScore:
    """Attention inside a block of the vision tower, mean over the patches that a token is made from.

    block: 0-based, negative from the end; None is the block whose output becomes the tokens
    row:   "cls" is what the class token pays, "received" what a patch gets from all others on average, "auto" the first
           where the tower has a class token and the second elsewhere
    heads: "mean" of the heads' weights, or "joined": the heads as a single one
    """

    block: int | None = None
    row: Literal["auto", "cls", "received"] = "auto"
    heads: Literal["mean", "joined"] = "mean"

    def __post_init__(self) -> None:
        check_choice("row", self.row, ("auto", "cls", "received"))
        check_choice("heads", self.heads, ("mean", "joined"))

    def _wanted(self) -> TowerAttention:
        return TowerAttention(self.block, self.row, self.heads)

    def needs(self, layer: int) -> tuple[Observation, ...]:
        return (self._wanted(),)

    def __call__(self, view: View) -> Tensor:
        return view.tower(self._wanted())
