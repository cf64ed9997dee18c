"""Views made by hand for methods that look at the vision tower, and the tower's numbers by another route."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.tiny import TinyInputs
from vlm_eff.models.visual import VisualSpans


@dataclass
class TowerView:
    """The part of a view that methods between tower and language model read; features are the hidden states.

    rows: of each row the (image, group, height, width) of each tile, in order
    """

    rows: list[list[tuple[int, int, int, int]]]
    attention: Tensor
    keys: Tensor | None = None
    features: Tensor | None = None

    def __post_init__(self) -> None:
        cells = [
            [(image, group, y, x) for image, group, height, width in row for y in range(height) for x in range(width)]
            for row in self.rows
        ]
        width = max(len(row) for row in cells)
        table = torch.zeros(len(cells), width, 4, dtype=torch.long)
        valid = torch.zeros(len(cells), width, dtype=torch.bool)
        for index, row in enumerate(cells):
            table[index, : len(row)], valid[index, : len(row)] = torch.tensor(row).view(-1, 4), True
        slot = torch.arange(width).expand(len(cells), -1)
        image, group, y, x = table.unbind(-1)
        self.spans = VisualSpans(slot, valid, image, group, y, x)
        self.original = self.spans.count
        if self.features is None:
            self.features = torch.randn(*valid.shape, 8, generator=torch.Generator().manual_seed(1))
        if self.keys is None:
            self.keys = self.features

    def image_original(self) -> Tensor:
        images = int(self.spans.image.max()) + 1
        return torch.stack([((self.spans.image == i) & self.spans.valid).sum(1) for i in range(images)], 1)

    def visual_hidden(self) -> Tensor:
        return self.features  # type: ignore[return-value]

    def tower(self, wanted: Any) -> Tensor:
        return self.attention

    def tower_keys(self, wanted: Any) -> Tensor:
        return self.keys  # type: ignore[return-value]

    def tower_features(self, wanted: Any) -> Tensor:
        return self.features  # type: ignore[return-value]

    def project(self, features: Tensor) -> Tensor:
        return features


@dataclass
class Clip:
    """What LLaVA's tower computed, from the tower itself under eager attention; one image a row of [n, 25, ...]."""

    attention: list[Tensor]
    """of each block the class token's row of every head [n, H, 25]"""
    queries: list[Tensor]
    keys: list[Tensor]
    """of each block the projections of class token and patches [n, 26, C]"""
    features: Tensor
    """hidden states before the last block, class token left out [n, 25, C]"""


def look_at_clip(model: Any, inputs: TinyInputs) -> Clip:
    """`model` is a LLaVA with eager attention."""
    tower, seen = model.model.vision_tower, {"q_proj": [], "k_proj": []}
    hooks = [
        getattr(block.self_attn, name).register_forward_hook(lambda m, a, out, name=name: seen[name].append(out))
        for block in tower.encoder.layers
        for name in seen
    ]
    with torch.no_grad():
        out = tower(inputs["pixel_values"].flatten(0, -4), output_attentions=True, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    rows = [matrix[:, :, 0, 1:] for matrix in out.attentions]
    return Clip(rows, seen["q_proj"], seen["k_proj"], out.hidden_states[-2][:, 1:])
