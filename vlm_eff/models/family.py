"""What has to be known of a model family beyond what can be read off the model, and the registry of families."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlm_eff.core.registry import Registry
from vlm_eff.models.visual import Layout


@dataclass(frozen=True)
class TowerRun:
    """One run of the vision tower, as far as a tower map may look at it.

    given:  grids or sizes that the tower was called with
    images: () -> height and width, tokens, of each tile or frame of each image that the run became in the prompt
    probe:  a few channels of what the projector made of the patches [tiles, P, c], where the family names a projector
    tokens: the same channels of the tokens as they entered the language model [T, c]
    """

    given: dict[str, Any]
    images: Callable[[], list[list[tuple[int, int]]]]
    probe: Tensor | None
    tokens: Tensor


# brings values of the patches in the tower's order [P, C] to the visual tokens [T, C]
PatchMap = Callable[[Tensor], Tensor]
# (config, run) -> the map of that run, or None when the run does not fit the prompt
TowerMap = Callable[[Any, TowerRun], PatchMap | None]


@dataclass(frozen=True)
class Family:
    """One model family of transformers.

    model_type:      `config.model_type` of the whole model
    make_layout:     from the model's config to the function that finds its visual tokens
    multi_axis_rope: positions have time, height and width; re-indexing them would lose the grid
    newline:         attribute of the core model that holds the image-newline vector, or None
    video:           prompts may hold video tokens, told apart from those of images
    restores:        the decoder adds features at original places after early layers (DeepStack)
    frames_apart:    text parts the frames of a video, so only the tower's grid tells which frames belong together
    class_token:     the tower's first token may be no patch (some models of the family carry a tower without)
    tower_map:       brings values of patches to the visual tokens
    both_ways:       images, or whole prompts, are attended to in both directions
    projector:       attribute of the core model that turns each tower feature into one token by itself, whose output
                     enters the language model as it is; None where a token is made otherwise
    transformers:    releases the contract tests ran with
    """

    model_type: str
    make_layout: Callable[[Any], Layout]
    tower_map: TowerMap
    multi_axis_rope: bool = False
    newline: str | None = None
    video: bool = False
    restores: bool = False
    frames_apart: bool = False
    class_token: bool = False
    projector: str | None = None
    both_ways: bool = False
    transformers: str = "5.23"


FAMILIES: Registry[Family] = Registry("model family")


def video_families() -> tuple[str, ...]:
    """Families whose prompts may hold video tokens; elsewhere frames come as images."""
    return tuple(name for name in FAMILIES if FAMILIES.get(name).video)


def causal_families() -> tuple[str, ...]:
    """Families in which a token sees nothing but what comes before it."""
    return tuple(name for name in FAMILIES if not FAMILIES.get(name).both_ways)


def add_family(family: Family) -> None:
    """Make a family known to `attach`."""
    FAMILIES.add(family.model_type, family)
