"""Where and how plugins act inside a vision tower: sites between the parts of its blocks, and what may be answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TowerSite:
    """Where a plugin is asked inside the vision tower.

    block: 0-based
    when:  "before" the block, or "inside" it, between its attention and its MLP
    sees:  "attention" shows queries and keys: of this block when inside, of the block before it otherwise;
           "pixels" shows what the tower was given
    """

    block: int
    when: Literal["before", "inside"] = "inside"
    sees: Literal["attention", "pixels", "nothing"] = "attention"


@dataclass(frozen=True)
class Cells:
    """The cells of one image: squares of patches that become one token behind the tower.

    pixels:  [R, C, channels, ...] what the tower was given of each cell; of a video frame pair the first
    patches: [R, C, P] number of each cell's patches among the image's patches, in the tower's order
    """

    pixels: Tensor
    patches: Tensor


@dataclass(frozen=True)
class TowerKeep:
    """Keep these tokens of each image and drop the others; they skip the rest of the tower.

    index: [I, K] columns that stay, in their new order (I images or frames)
    valid: [I, K] False where an image keeps fewer than K; None when all keep K
    into:  [I, T] place in `index` whose final feature each column gets back; -1: the state it had when it was dropped
    fuse:  [I, T] weights of one new token, the weighted sum of columns, which goes on behind the kept ones; or None
    """

    index: Tensor
    valid: Tensor | None
    into: Tensor
    fuse: Tensor | None = None


@dataclass(frozen=True)
class TowerMerge:
    """Merge tokens of each image: what stays becomes the size-weighted mean of everything that goes into it.

    index, valid, into: as in `TowerKeep`; `into` names a place for every token, so nothing is lost
    proportional: later attention counts a token as often as it stands for original ones (log-size bias on its key)
    """

    index: Tensor
    valid: Tensor | None
    into: Tensor
    proportional: bool = True


TowerAction = TowerKeep | TowerMerge
