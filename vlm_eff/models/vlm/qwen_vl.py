"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL: the multi-axis rotary positions tell frame, row and column of every token."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from transformers.vision_utils import get_vision_window_index

from vlm_eff.models.family import Family, PatchMap, TowerRun, add_family
from vlm_eff.models.visual import CellWriter, RowCells, SpanSource, runs


def _layout(source: SpanSource, *, merge: int = 0) -> list[RowCells]:
    """`merge`: patches along a side of a token, in families that put a time stamp before each frame of a video."""
    rows = []
    begins_video = _first_frames(source, merge) if merge else None
    for row, mask in enumerate(source.visual):
        writer = CellWriter()
        for run in runs(mask):
            video = bool(source.video[row, run[0]])
            if not video or begins_video is None or run[0] in begins_video[row]:
                writer.next_image(video=video)
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


def _first_frames(source: SpanSource, merge: int) -> list[set[int]]:
    """Slots in each row at which a video begins, where every frame is a run of its own.

    The tower's grids tell. Without (features were computed elsewhere), frames of one size next to each other are taken
    for one video.
    """
    frames = [[run for run in runs(mask) if source.video[row, run[0]]] for row, mask in enumerate(source.visual)]
    told = _told_by_grids(frames, source.grids, merge)
    if told is not None:
        return told
    made = []
    for row, found in enumerate(frames):
        follows = zip(found[1:], found, strict=False)
        new = [len(run) != len(last) or _image_between(source, row, last, run) for run, last in follows]
        made.append({int(run[0]) for run, first in zip(found, [True, *new], strict=False) if first})
    return made


def _image_between(source: SpanSource, row: int, last: np.ndarray, run: np.ndarray) -> bool:
    return bool(source.visual[row, last[-1] + 1 : run[0]].any())


def _told_by_grids(frames: list[list[np.ndarray]], grids: np.ndarray | None, merge: int) -> list[set[int]] | None:
    """The same from [N, 3] grids of all videos in the batch; None when these are not the grids of these frames."""
    if grids is None:
        return None
    sizes = [(int(time), int(height * width) // merge**2) for time, height, width in grids]
    repeats, rest = divmod(sum(len(row) for row in frames), max(sum(time for time, _ in sizes), 1))
    if rest or not repeats:
        return None
    made: list[set[int]] = []
    for number, row in enumerate(frames):
        if number % repeats:
            # beams and returned sequences repeat each prompt's row
            made.append(made[-1])
            continue
        starts, place = set(), 0
        while place < len(row):
            time, size = sizes.pop(0) if sizes else (0, 0)
            if not time or [len(run) for run in row[place : place + time]] != [size] * time:
                return None
            starts.add(int(row[place][0]))
            place += time
        made.append(starts)
    return made


def _axes(source: SpanSource, row: int, run: np.ndarray) -> Any:
    """Time, height and width of each token, or None when the model was called with one-axis positions."""
    if source.positions is None:
        return None, None, None
    axes = source.positions[:, row, run]
    same = len(run) > 1 and (axes[0] == axes[1]).all() and (axes[0] == axes[2]).all()
    return (None, None, None) if same else axes


def _merged(config: Any, run: TowerRun) -> PatchMap:
    """The patches of a merged token follow each other."""
    together = config.vision_config.spatial_merge_size**2
    return lambda values: values.view(-1, together, values.shape[-1]).mean(1)


def _windowed(config: Any, run: TowerRun) -> PatchMap:
    """Qwen2.5-VL orders merged tokens by window inside the tower and puts them back afterwards."""
    vision = config.vision_config
    order, _ = get_vision_window_index(
        run.given["grid_thw"], vision.spatial_merge_size, vision.window_size, vision.patch_size
    )
    back, merge = torch.argsort(torch.as_tensor(order)), _merged(config, run)
    return lambda values: merge(values)[back.to(values.device)]


def _frames(config: Any) -> Any:
    return partial(_layout, merge=config.vision_config.spatial_merge_size)


add_family(Family("qwen2_vl", lambda config: _layout, _merged, multi_axis_rope=True, video=True))
add_family(Family("qwen2_5_vl", lambda config: _layout, _windowed, multi_axis_rope=True, video=True))
add_family(Family("qwen3_vl", _frames, _merged, multi_axis_rope=True, video=True, restores=True, frames_apart=True))
