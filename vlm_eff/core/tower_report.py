"""What a handle says of one run of a vision tower."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TowerReport:
    """One run of a vision tower with plugins inside it. What lies behind the tower sees all tokens again.

    tower:     library and class
    prefix:    leading tokens that are no patches: class token, registers
    images:    images, or frames of a video; tokens: tokens of the bare tower in each, class token included
    attended:  tokens that each block's attention computes, mean over the images; padding of shorter images included
    processed: tokens that each block's MLP computes, the same way
    left:      tokens of each image behind the last block, before every original token got its feature back
    flops, flops_bare: FLOPs of the blocks (2 a multiply-add); embedding, projector and head are left out
    selection_ms: time in which plugins scored and selected, on the host
    """

    tower: str
    images: int
    tokens: tuple[int, ...]
    attended: tuple[float, ...]
    processed: tuple[float, ...]
    left: tuple[int, ...]
    flops: float
    flops_bare: float
    selection_ms: float = 0.0
    prefix: int = 0

    def line(self) -> str:
        """One row of the printed table."""
        bare, left = sum(self.tokens) / len(self.tokens), sum(self.left) / len(self.left)
        share = self.flops / self.flops_bare if self.flops_bare else 1.0
        return (
            f"  tower            {bare:.0f} tokens an image, {left:.0f} after the last block; "
            f"FLOPs {self.flops_bare:.3g} bare, {self.flops:.3g} realised ({share:.0%}, blocks only)"
        )
