"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: the multi-axis rotary positions tell frame, row and column of every token."""

from __future__ import annotations

import numpy as np

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


add_family(Family("qwen2_vl", lambda config: _layout, multi_axis_rope=True))
add_family(Family("qwen2_5_vl", lambda config: _layout, multi_axis_rope=True))
add_family(Family("qwen3_vl", lambda config: _layout, multi_axis_rope=True, restores=True))
