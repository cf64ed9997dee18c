"""LLaVA-NeXT and LLaVA-OneVision: a base tile, then the joined and unpadded tiles with a newline token after each row.

The newline tokens sit on placeholders too; they are told apart by their embedding, which is the model's own vector.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from vlm_eff.models.family import Family, add_family
from vlm_eff.models.visual import CellWriter, Layout, RowCells, SpanSource, runs, square_side
from vlm_eff.models.vlm.anyres import anyres


def _make_layout(config: Any) -> Layout:
    side = config.vision_config.image_size // config.vision_config.patch_size
    base, frame = side * side, ((side + 1) // 2) ** 2

    def layout(source: SpanSource) -> list[RowCells]:
        rows = []
        for row, mask in enumerate(source.visual):
            writer = CellWriter()
            for run in runs(mask):
                newline = np.zeros(len(run), bool) if source.newline is None else source.newline[row, run]
                if source.video[row, run[0]]:
                    # the newline that ends a video parts it from one that follows directly
                    for video in np.split(run, np.flatnonzero(newline) + 1):
                        _video(writer, video[~newline[video - run[0]]], frame)
                else:
                    for image, ends in _images(run, newline, base):
                        _image(writer, image, ends, base)
            rows.append(writer.done())
        return rows

    return layout


def _images(run: np.ndarray, newline: np.ndarray, base: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut a run into images: (slots, which of them are newlines) of each."""
    ends = np.flatnonzero(newline)
    if not len(ends):
        # no newline at all: base tiles alone
        for start in range(0, len(run), base):
            yield run[start : start + base], newline[start : start + base]
        return
    start = 0
    for place, end in enumerate(ends):
        last = place + 1 == len(ends)
        # inside an image newlines are one row apart; the next image begins with its whole base tile
        row = end - (ends[place - 1] if place and ends[place - 1] >= start else start + base - 1)
        if last or ends[place + 1] - end != row:
            yield run[start : end + 1], newline[start : end + 1]
            start = end + 1


def _image(writer: CellWriter, slots: np.ndarray, newline: np.ndarray, base: int) -> None:
    writer.next_image()
    tiles, breaks = slots[base:], newline[base:]
    writer.grid(slots[:base], square_side(base), overview=bool((~breaks).any()))
    if (~breaks).any():
        # the width of a joined row is the number of tokens before its newline
        writer.grid(tiles[~breaks], int(np.flatnonzero(breaks)[0]))


def _video(writer: CellWriter, slots: np.ndarray, frame: int) -> None:
    if not len(slots):
        return
    writer.next_image(video=True)
    size = frame if len(slots) % frame == 0 else len(slots)
    for start in range(0, len(slots), size):
        writer.grid(slots[start : start + size], square_side(size))


for _model_type in ("llava_next", "llava_onevision"):
    add_family(
        Family(
            _model_type,
            _make_layout,
            anyres,
            newline="image_newline",
            video=_model_type == "llava_onevision",
            class_token=_model_type == "llava_next",
            projector="multi_modal_projector",
        )
    )
