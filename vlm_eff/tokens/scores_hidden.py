"""Scores from hidden states and keys alone: no attention is looked at. Higher means keep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.plugin import LayerInput, LayerKeys, Observation
from vlm_eff.importance.keep import check_choice
from vlm_eff.importance.neighbours import grid_neighbours, neighbour_similarity
from vlm_eff.models.rows import Rows
from vlm_eff.models.view import View


@part
@dataclass(frozen=True)
class Magnitude:
    """Length of the hidden state: its L2 or L1 norm."""

    norm: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        check_choice("norm", self.norm, (1, 2))

    def needs(self, layer: int) -> tuple[Observation, ...]:
        return ()

    def __call__(self, view: View) -> Tensor:
        return view.visual_hidden().float().norm(p=self.norm, dim=-1)


@part
@dataclass(frozen=True)
class Distinctness:
    """Unlikeness to the grid neighbours that are still there: the negative of the survey's redundancy R."""

    def needs(self, layer: int) -> tuple[Observation, ...]:
        return ()

    def __call__(self, view: View) -> Tensor:
        spans = view.spans
        beside, exists = grid_neighbours(spans.group, spans.y, spans.x, spans.valid)
        return -neighbour_similarity(view.visual_hidden(), beside, exists)


@part
@dataclass(frozen=True)
class Variation:
    """How much the layer before the stage changed the token: L2 norm of the difference of its output and input."""

    def needs(self, layer: int) -> tuple[Observation, ...]:
        return (LayerInput(layer - 1),)

    def __call__(self, view: View) -> Tensor:
        before = view.layer_input(LayerInput(view.layer - 1), view.candidates())
        return (view.visual_hidden().float() - before.float()).norm(dim=-1)


@part
@dataclass(frozen=True)
class KeyNorm:
    """L1 norm of the keys, all heads together, in the layer before the stage (DART's pivots).

    rope: False takes the rotary rotation out; an L1 norm changes with it, and so with padding and place
    """

    rope: bool = False

    def needs(self, layer: int) -> tuple[Observation, ...]:
        return (self.wanted(layer),)

    def wanted(self, layer: int) -> LayerKeys:
        """The observation that a stage at `layer` looks at."""
        return LayerKeys(layer - 1, self.rope)

    def __call__(self, view: View) -> Tensor:
        return _l1(view.layer_keys(self.wanted(view.layer)))

    def of(self, view: View, rows: Rows) -> Tensor:
        """The same for other tokens than the candidates [B, R]."""
        return _l1(view.layer_keys(self.wanted(view.layer), rows))


def _l1(keys: Tensor) -> Tensor:
    return torch.sum(keys.float().abs(), dim=(2, 3))
