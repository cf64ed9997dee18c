"""Which candidates are video tokens, of which video and of which frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.tiny import VIDEO_FAMILIES, TinyInputs, tiny_inputs, tiny_vlm, visual_layout
from vlm_eff import attach
from vlm_eff.models.visual import CellWriter, SpanSource, VisualSpans
from vlm_eff.models.vlm.qwen_vl import _frames
from vlm_eff.tokens import uniform_grid


class _Seen(Exception):
    """Ends the forward pass once the spans are known."""


def spans_of(family: str, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **beams: int) -> VisualSpans:
    seen: list[VisualSpans] = []

    def look(self: Any, site: Any, view: Any) -> None:
        seen.append(view.spans)

    monkeypatch.setattr("vlm_eff.tokens.reducer.TokenReducer.at", look)
    model = tiny_vlm(family)
    with torch.no_grad(), attach(model, uniform_grid(keep_ratio=0.5)):
        if beams:
            model.generate(**inputs, max_new_tokens=1, do_sample=False, **beams)
        else:
            model(**inputs)
    return seen[0]


def truth(family: str, inputs: TinyInputs) -> list[list[tuple[int, int]]]:
    """(image, frame or -1) of every candidate of each row."""
    return [
        [(c["image"], c["frame_or_tile"] if c["video"] else -1) for c in cells if not c["newline"]]
        for cells in visual_layout(family, inputs)
    ]


def told(spans: VisualSpans) -> list[list[tuple[int, int]]]:
    table = torch.stack([spans.image, spans.frame], -1)
    return [
        [(int(image), int(frame)) for image, frame in row[valid]] for row, valid in zip(table, spans.valid, strict=True)
    ]


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("video", [True, "mixed"])
@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_frames_are_the_true_ones(family: str, video: Any, alike: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tiny_inputs(family, (3, 0, 2), video=video, alike=alike)
    spans = spans_of(family, inputs, monkeypatch)
    assert told(spans) == truth(family, inputs)
    assert torch.equal(spans.video, spans.valid & (spans.frame >= 0))
    assert bool(spans.video.any())


@pytest.mark.parametrize("family", ["qwen3_vl", "llava_onevision"])
def test_beams_repeat_the_rows(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tiny_inputs(family, (2, 1), video=True, alike=True)
    spans = spans_of(family, inputs, monkeypatch, num_beams=2)
    assert told(spans) == [row for row in truth(family, inputs) for _ in range(2)]


def test_images_have_no_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = spans_of("qwen3_vl", tiny_inputs("qwen3_vl", (2, 0)), monkeypatch)
    assert bool((spans.frame[spans.valid] == -1).all())
    assert not spans.video.any()


class _Config:
    class vision_config:
        spatial_merge_size = 2


def frames_of(runs: list[tuple[int, int]], length: int, grids: list[list[int]] | None) -> list[tuple[int, int]]:
    """(video, frame) of each run, given as (first slot, tokens)."""
    visual = np.zeros((1, length), dtype=bool)
    for start, size in runs:
        visual[0, start : start + size] = True
    source = SpanSource(visual, visual, grids=None if grids is None else np.array(grids))
    cells = _frames(_Config)(source)[0]
    return [(int(cells.image[at]), int(cells.frame[at])) for at in np.searchsorted(cells.slot, [s for s, _ in runs])]


def test_without_grids_frames_of_one_size_are_one_video() -> None:
    runs = [(1, 2), (5, 2), (9, 2), (13, 3)]
    assert frames_of(runs, 20, None) == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert frames_of(runs, 20, [[1, 2, 4], [2, 4, 2], [1, 2, 6]]) == [(0, 0), (1, 0), (1, 1), (2, 0)]


@pytest.mark.parametrize("grids", [[[2, 2, 4], [1, 2, 4]], [[9, 2, 4]], [[4, 2, 6]]])
def test_grids_of_other_videos_are_not_believed(grids: list[list[int]]) -> None:
    runs = [(1, 2), (5, 2), (9, 2), (13, 3)]
    assert frames_of(runs, 20, grids) == frames_of(runs, 20, None)


def test_neighbouring_onevision_videos_are_parted_by_their_newlines() -> None:
    from vlm_eff.models.vlm.llava_next import _make_layout

    class Config:
        class vision_config:
            image_size, patch_size = 12, 4

    visual = np.ones((1, 2 * (2 * 4 + 1)), dtype=bool)
    newline = np.zeros_like(visual)
    newline[0, [8, 17]] = True
    cells = _make_layout(Config)(SpanSource(visual, visual, newline=newline))[0]
    assert cells.image.tolist() == [0] * 8 + [1] * 8
    assert cells.frame.tolist() == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4


def test_a_video_counts_its_frames_anew() -> None:
    writer = CellWriter()
    for video in (True, False, True):
        writer.next_image(video=video)
        start = 10 * writer._image
        writer.grid(np.arange(start, start + 2), 2)
        writer.grid(np.arange(start + 2, start + 4), 2)
    assert writer.done().frame.tolist() == [0, 0, 1, 1, -1, -1, -1, -1, 0, 0, 1, 1]


def test_families_with_videos_are_those_that_methods_for_videos_name() -> None:
    from tests.contracts.cases import VIDEO_METHODS
    from vlm_eff import methods
    from vlm_eff.models.family import video_families

    assert set(video_families()) == set(VIDEO_FAMILIES)
    served = {name for name, method in methods().items() if method.families == video_families()}
    assert served == VIDEO_METHODS
    assert methods()["evs"].serves("qwen3_vl") and not methods()["evs"].serves("llava")
    assert methods()["fastv"].serves("llava")
