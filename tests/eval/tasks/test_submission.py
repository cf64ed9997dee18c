"""Answers in the form that a benchmark's server takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.eval.tasks.official import WRITERS
from vlm_eff.core.errors import CapabilityError, InputError
from vlm_eff.eval.runs.run import run_task
from vlm_eff.eval.tasks import load_task, write_submission


def test_docvqa_takes_a_list_of_ids_and_answers(tmp_path: Path) -> None:
    WRITERS["docvqa"](tmp_path)
    task = load_task("docvqa", tmp_path, "test")
    assert not task.scored
    # before the model is touched
    with pytest.raises(InputError, match="write a submission"):
        run_task(None, task, [], tmp_path / "run")  # type: ignore[arg-type]
    path = write_submission(task, {"13": "1999", "other": "x"}, tmp_path / "answers.json")
    assert json.loads(path.read_text()) == [{"questionId": 13, "answer": "1999"}]
    with pytest.raises(InputError, match="1 of 1 items have no answer"):
        write_submission(task, {}, tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


def test_vizwiz_names_pictures_and_chartqa_takes_nothing(tmp_path: Path) -> None:
    WRITERS["vizwiz"](tmp_path)
    path = write_submission(load_task("vizwiz", tmp_path, "test"), {"VizWiz_test_0.jpg": "can"}, tmp_path / "a.json")
    assert json.loads(path.read_text()) == [{"image": "VizWiz_test_0.jpg", "answer": "can"}]
    WRITERS["chartqa"](tmp_path)
    task = load_task("chartqa", tmp_path)
    with pytest.raises(CapabilityError, match="docvqa"):
        write_submission(task, {item.id: "" for item in task.items}, tmp_path / "b.json")
