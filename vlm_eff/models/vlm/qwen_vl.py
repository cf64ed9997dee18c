"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: the multi-axis rotary positions tell frame, row and column of every token."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from vlm_eff.models.family import Family, add_family
from vlm_eff.models.visual import CellWriter, RowCells, SpanSource, runs


def _layout(source: SpanSource, *, a_frame_is_a_run: bool) -> list[RowCells]:
    rows = []
    for row, mask in enumerate(source.visual):
        writer, before = CellWriter(), 0
        for run in runs(mask):
            # Qwen3-VL puts a time stamp before each frame of a video: runs of one size are frames of one video.
            # Two such videos next to each other are told apart by their frame size alone
            frame = len(run) if a_frame_is_a_run and source.video[row, run[0]] else 0
            if not frame or frame != before:
                writer.next_image()
            before = frame
            time, height, width = _axes(source, row, run)
            if time is None:
                writer.grid(run, None)
                continue
            # frames closer than a step of the time axis share its value: then the raster that begins anew parts them
            begins = (np.diff(time) != 0) | (np.diff(height * (width.max() + 1) + width) <= 0)
            for frame in np.split(np.arange(len(run)), np.flatnonzero(begins) + 1):
                writer.cells(run[frame], height[frame] - height[frame].min(), width[frame] - width[frame].min())
        rows.append(writer.done())
    return rows


def _axes(source: SpanSource, row: int, run: np.ndarray) -> Any:
    """Time, height and width of each token, or None when the model was called with one-axis positions."""
    if source.positions is None:
        return None, None, None
    axes = source.positions[:, row, run]
    same = len(run) > 1 and (axes[0] == axes[1]).all() and (axes[0] == axes[2]).all()
    return (None, None, None) if same else axes


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


_runs = partial(_layout, a_frame_is_a_run=False)
_frames = partial(_layout, a_frame_is_a_run=True)
add_family(Family("qwen2_vl", lambda config: _runs, multi_axis_rope=True, tower_map=_merged))
add_family(Family("qwen2_5_vl", lambda config: _runs, multi_axis_rope=True, tower_map=_windowed))
add_family(Family("qwen3_vl", lambda config: _frames, multi_axis_rope=True, restores=True, tower_map=_merged))
