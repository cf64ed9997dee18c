"""What has to be known of a model family beyond what can be read off the model, and the registry of families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vlm_eff.core.registry import Registry
from vlm_eff.models.visual import Layout

# (tower, config, one number a patch in the tower's order [P], the tower's grids or sizes) -> one number a token [T]
TowerMap = Callable[[nn.Module, Any, Tensor, dict[str, Any]], Tensor]


@dataclass(frozen=True)
class Family:
    """One model family of transformers.

    model_type:      `config.model_type` of the whole model
    make_layout:     from the model's config to the function that finds its visual tokens
    multi_axis_rope: positions have time, height and width; re-indexing them would lose the grid
    newline:         attribute of the core model that holds the image-newline vector, or None
    restores:        the decoder adds features at original places after early layers (DeepStack)
    frames_apart:    text parts the frames of a video, so only the tower's grid tells which frames belong together
    class_token:     the tower's first token is no patch
    tower_map:       brings one number a patch to the visual tokens, or None where that is not worked out
    transformers:    releases the contract tests ran with
    """

    model_type: str
    make_layout: Callable[[Any], Layout]
    multi_axis_rope: bool = False
    newline: str | None = None
    restores: bool = False
    frames_apart: bool = False
    class_token: bool = False
    tower_map: TowerMap | None = None
    transformers: str = "5.23"


FAMILIES: Registry[Family] = Registry("model family")


def add_family(family: Family) -> None:
    """Make a family known to `attach`."""
    FAMILIES.add(family.model_type, family)
