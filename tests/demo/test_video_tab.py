"""The tab "Video" as a visitor meets it: handlers through gradio's own client."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gradio_client import handle_file

import vlm_eff
from tests.video.clips import write_clip
from vlm_eff.demo.page.video_tab import show_layer
from vlm_eff.demo.work.clips import drawn_clip
from vlm_eff.eval.runs.asking import as_pictures
from vlm_eff.eval.subject import Row, open_image

pytest.importorskip("av", reason="needs vlm-eff[video]")

_ASK = "/ask_video"
_SPEC = "pyramiddrop:keep_ratio=0.5"
_PROMPT = "is there a circle?"


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


def test_frames_of_a_drawn_clip_are_asked_about_and_shown_by_layer(client: Any, desk: Any) -> None:
    job = client.submit(None, 2, "middle", 4, _PROMPT, _SPEC, 8, api_name=_ASK)
    bare, arm, _, strip, why, shares, costs, layers, stats, record = job.result()
    first = job.outputs()[0]
    assert first[0] and not first[1], "the bare answer comes first"
    inputs = desk.subject.batch([Row(tuple(as_pictures(drawn_clip(2, "middle", 4).clip)), _PROMPT)])
    assert bare == desk.subject.answer(inputs, max_new_tokens=8)
    with vlm_eff.attach(desk.subject.model, vlm_eff.plugin(_SPEC)) as handle:
        assert arm == desk.subject.answer(inputs, max_new_tokens=8)
        report = handle.stats().last
    assert report is not None and "576 -> 288" in stats
    found = json.loads(Path(record).read_text(encoding="utf-8"))
    left = found["left_by_layer_and_panel"]
    assert [sum(row) * 144 for row in left] == pytest.approx(list(report.visual_per_layer))
    assert found["shown_as"] == "pictures" and found["frames"] == {
        "indices": [2, 6, 10, 14], "seconds": [0.5, 1.5, 2.5, 3.5], "of": 16
    }  # fmt: skip
    assert "4 of 16 frames of moving-shapes clip 2" in why
    assert {chart["type"] for chart in (shares, costs, layers)} == {"matplotlib"}
    whole = open_image(client.predict(0, api_name="/video_layer")[0])
    last = open_image(strip)
    assert whole.size == last.size and np.asarray(whole).mean() > np.asarray(last).mean()


def test_a_clip_file_is_shown_as_soon_as_it_is_chosen(client: Any, clip: Path) -> None:
    shown, said = client.predict(handle_file(str(clip)), 0, "ends", 3, api_name="/video_preview")
    assert "3 of 30 frames of clip.mp4" in said and "chosen as 'ends' does" in said
    assert open_image(shown).width > 3 * 160


def test_what_cannot_be_done_is_one_sentence(refused: Callable[..., str], clip: Path, tmp_path: Path) -> None:
    empty, text, cut = tmp_path / "empty.mp4", tmp_path / "text.mp4", tmp_path / "cut.mp4"
    empty.touch()
    text.write_text("no film\n" * 30, encoding="utf-8")
    cut.write_bytes(clip.read_bytes()[:3000])
    for path in (empty, text, cut):
        said = refused(handle_file(str(path)), 0, "middle", 4, _PROMPT, _SPEC, 4, api_name=_ASK)
        assert path.name in said and "Accepted" in said and "Traceback" not in said
    for given, word in (
        ((None, 0, "middle", 4, " ", _SPEC, 4), "empty prompt"),
        ((None, 0, "middle", 4, _PROMPT, "", 4), "no plugin"),
        ((None, 0, "middle", 4, _PROMPT, "pyramidrop", 4), "pyramiddrop"),
        ((None, 0, "middle", 20, _PROMPT, _SPEC, 4), "up to 16"),
        ((None, -1, "middle", 4, _PROMPT, _SPEC, 4), "minimum value 0"),
        ((None, 0, "middle", 4000, _PROMPT, _SPEC, 4), "maximum value 32"),
    ):
        assert word in refused(*given, api_name=_ASK)


def test_a_layer_before_any_question_shows_nothing() -> None:
    assert show_layer(None, 3) == (None, "", None)
