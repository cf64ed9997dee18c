"""The tab "Compare" through gradio's own client."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gradio_client import handle_file

from tests.demo.test_image_tab import Raiser
from vlm_eff.core.registry import METHODS, Method

_COMPARE = "/compare"
_QUESTION = "what word is written?"


@pytest.fixture
def files(desk: Any) -> list[Any]:
    return [handle_file(str(desk.examples[0].path))]


def test_table_plot_pictures_files_and_code_come_back(
    client: Any, desk: Any, files: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = ["divprune", "fastv", "cross_modal_window"]
    table, said, plot, kept, code, record, picture = client.predict(
        files, _QUESTION, methods, 0.25, 4, 0, api_name=_COMPARE
    )
    rows = {row[0]: row for row in table["data"]}
    assert list(rows) == [
        "bare",
        "divprune @ 36",
        "fastv @ 36",
        "random_drop @ 36 (baseline)",
        "uniform_grid @ 36 (baseline)",
        "average_pool @ 36 (baseline)",
    ]
    assert "Left out, cross_modal_window @ 36" in said and plot["type"] == "matplotlib"
    assert [one["caption"] for one in kept] == [row.removesuffix(" (baseline)") for row in list(rows)[1:]]
    assert Path(picture).read_bytes().startswith(b"\x89PNG")
    found = json.loads(Path(record).read_text(encoding="utf-8"))
    assert [arm["answer"] for arm in found["result"]["arms"]] == [row[1] for row in table["data"][1:]]
    # what is copied says the same
    monkeypatch.chdir(desk.folder)
    made: dict[str, Any] = {}
    exec(compile(code, "copied", "exec"), made)
    assert [arm.answer for arm in made["found"].arms] == [row[1] for row in table["data"][1:]]
    assert made["found"].bare_answer == rows["bare"][1]


def test_what_cannot_be_compared_is_one_sentence(refused: Callable[..., str], client: Any, files: list[Any]) -> None:
    METHODS.add("raiser", Method("raiser", Raiser, "third party", "", ""))
    try:
        for wrong, words in (
            ((files, _QUESTION, ["fastw"], 0.25), "Did you mean"),
            ((files, _QUESTION, [], 0.25), "0 methods"),
            ((files, _QUESTION, ["fastv"], 0), "share 0"),
            ((files, _QUESTION, ["snapkv"], 0.25), "snapkv"),
            ((files, _QUESTION, ["raiser"], 0.25), "raiser"),
            ((files, _QUESTION, ["fastv:layer=99"], 0.25), "layer 99"),
            ((files, _QUESTION, ["victor:weights='/etc/passwd'"], 0.25), "names a file"),
            ((files, " ", ["fastv"], 0.25), "an empty prompt"),
            (([], _QUESTION, ["fastv"], 0.25), "no picture"),
        ):
            assert words in refused(*wrong, 4, 0, api_name=_COMPARE), wrong
    finally:
        METHODS._values.pop("raiser")
