"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: the multi-axis rotary positions tell frame, row and column of every token."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from vlm_eff.models.family import Family, add_family
from vlm_eff.models.visual import CellWriter, RowCells, SpanSource, runs


def _layout(source: SpanSource) -> list[RowCells]:
    rows = []
    for row, mask in enumerate(source.visual):
        writer = CellWriter()
        before = None
        for run in runs(mask):
            # Qwen3-VL puts a time stamp before each frame of a video: its frames are runs of one video
            is_video = bool(source.video[row, run[0]])
            if not (is_video and before is True):
                writer.next_image()
            before = is_video
            if source.positions is None:
                writer.grid(run, None)
                continue
            time, height, width = source.positions[:, row, run]
            for frame in np.split(np.arange(len(run)), np.flatnonzero(np.diff(time) != 0) + 1):
                writer.cells(run[frame], height[frame] - height[frame].min(), width[frame] - width[frame].min())
        rows.append(writer.done())
    return rows


def _merged(tower: nn.Module, config: Any, values: Tensor, inputs: dict[str, Any]) -> Tensor:
    """The patches of a merged token follow each other."""
    return values.view(-1, config.vision_config.spatial_merge_size**2).mean(1)


def _windowed(tower: nn.Module, config: Any, values: Tensor, inputs: dict[str, Any]) -> Tensor:
    """Qwen2.5-VL orders merged tokens by window inside the tower and puts them back afterwards."""
    vision = config.vision_config
    order, _ = get_vision_window_index(
        inputs["grid_thw"], vision.spatial_merge_size, vision.window_size, vision.patch_size
    )
    return _merged(tower, config, values, inputs)[torch.argsort(torch.as_tensor(order, device=values.device))]


add_family(Family("qwen2_vl", lambda config: _layout, multi_axis_rope=True, tower_map=_merged))
add_family(Family("qwen2_5_vl", lambda config: _layout, multi_axis_rope=True, tower_map=_windowed))
add_family(Family("qwen3_vl", lambda config: _layout, multi_axis_rope=True, restores=True, tower_map=_merged))
