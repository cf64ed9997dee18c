"""Questions of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.eval.tasks.official import WRITERS, base64_png, png, put, put_lines, put_table
from vlm_eff.core.errors import InputError
from vlm_eff.eval.tasks import Footage, Picture, load_task


def test_short_answers_about_a_picture_and_a_part_of_a_video(tmp_path: Path) -> None:
    WRITERS["own-answers"](tmp_path)
    picture, video = load_task("own-answers", tmp_path).items
    assert (picture.id, picture.cluster, picture.groups) == ("00000", "a.png", {"category": "things"})
    assert picture.gold == {"answer": "cup", "answers": ["cup", "mug"]}
    assert picture.media == (Picture(tmp_path / "images" / "a.png"),)
    assert (video.id, video.cluster) == ("x", "b1")
    assert video.media == (Footage(tmp_path / "b.mp4", 1.0, 2.5),)


def test_choices_from_a_table_with_pictures_in_it(tmp_path: Path) -> None:
    row = {"index": 7, "question": "Which?", "A": "no", "B": "yes", "answer": "B", "image": base64_png(3)}
    put_table(tmp_path / "questions.tsv", [row])
    (item,) = load_task("own-choices", tmp_path).items
    assert item.id == "7" and item.gold == {"answer": "B", "options": ["no", "yes"]}
    assert item.cluster == "00000" and item.media == (Picture(png(3)),)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    put(tmp_path / "a.png", png())
    row = {"question": "What?", "image": "a.png", "answer": "x", "options": ["y", "z"]}
    for change, message in (
        ({"image": None}, "line 1 lacks 'image' or 'images' or 'video'"),
        ({"image": "../a.png"}, "the data file names"),
        ({"images": []}, "no picture"),
        ({"answer": "x"}, "the answer is 'x'"),
        ({"options": ["y"]}, "1 options"),
        ({"video": "v.mp4", "start": "early"}, "start is 'early'"),
    ):
        put_lines(tmp_path / "questions.jsonl", [{**row, "answer": "A", **change}])
        with pytest.raises(InputError, match=message):
            load_task("own-choices", tmp_path)
