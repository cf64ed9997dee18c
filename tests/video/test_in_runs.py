"""Generated clips go through reader, processor, model and a method for videos into the lines of a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.video.watcher import watching_subject
from vlm_eff.eval.runs import asking
from vlm_eff.eval.runs.folder import Run
from vlm_eff.eval.runs.run import RunSettings, run_task
from vlm_eff.eval.tasks import Task, load_task
from vlm_eff.tokens import evs

# 3 x 3 for every two frames
TOKENS = 4 * 9


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return load_task("moving-shapes", tmp_path_factory.mktemp("clips"), clips=3)


def asked(task: Task, folder: Path, *plugins: object, **settings: object) -> Run:
    return run_task(watching_subject(), task, plugins, folder, settings=RunSettings(batch_size=2, **settings))


def test_a_method_for_videos_acts_in_a_run(task: Task, tmp_path: Path) -> None:
    bare = asked(task, tmp_path / "bare")
    less = asked(task, tmp_path / "evs", evs(keep_ratio=0.5))
    assert bare.finished and less.finished and len(bare.samples) == 5
    sampling = json.loads((tmp_path / "bare" / "run.json").read_text())["task"]["sampling"]
    assert sampling == {"convention": "middle", "frames": 8, "on_short": "error"}
    for name, sample in bare.samples.items():
        other = less.samples[name]
        assert sample.media == other.media and sample.media[0]["indices"] == list(range(1, 16, 2))
        assert (sample.error, other.error) == (None, None)
        assert sample.costs["n_eq"] == TOKENS and other.costs["n_eq"] == pytest.approx(TOKENS / 2)


def test_frames_can_be_shown_as_pictures(task: Task, tmp_path: Path) -> None:
    run = asked(task, tmp_path / "run", video_as="pictures")
    assert {sample.costs["visual_tokens"] for sample in run.samples.values()} == {8 * 9}


def test_a_broken_video_is_an_error_and_wrong(task: Task, tmp_path: Path) -> None:
    broken = task.items[0].media[0].path
    kept = (broken / "03.png").read_bytes()
    (broken / "03.png").write_bytes(kept[:40])
    try:
        run = asked(task, tmp_path / "run")
    finally:
        (broken / "03.png").write_bytes(kept)
    failed = {name: sample for name, sample in run.samples.items() if sample.status == "error"}
    assert set(failed) == {"test-00000-direction-0", "test-00000-direction-1"}
    assert all("cut or damaged" in str(sample.error) and sample.score == 0 for sample in failed.values())


def test_the_model_sees_the_frames(task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = asked(task, tmp_path / "right")
    real = asking.read_footage

    def blind(*given: object) -> tuple:
        clip, note = real(*given)
        object.__setattr__(clip, "frames", np.zeros_like(clip.frames))
        return clip, note

    monkeypatch.setattr(asking, "read_footage", blind)
    wrong = asked(task, tmp_path / "wrong")
    assert any(right.samples[name].answer != wrong.samples[name].answer for name in right.samples)
