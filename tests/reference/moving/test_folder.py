"""Clips on disk are what was drawn, written once, in full or not at all; and the task that asks about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vlm_eff.core.errors import ConfigError, InputError
from vlm_eff.eval.frames import read_footage
from vlm_eff.eval.metrics import METRICS
from vlm_eff.eval.tasks import TASKS, load_task
from vlm_eff.reference.moving import clip_folder, folder, make_clip, render_clip
from vlm_eff.video import Sampling


def test_the_reader_gives_back_what_was_drawn(tmp_path: Path) -> None:
    task = load_task("moving-shapes", tmp_path, clips=2)
    clip, entry = read_footage(task.items[0].media[0], Sampling(frames=16))
    assert np.array_equal(clip.frames, render_clip(make_clip(0, "test")))
    assert entry["indices"] == list(range(16)) and clip.fps == 4
    clip, entry = read_footage(task.items[0].media[0], task.sampling)
    assert entry["indices"] == list(range(1, 16, 2))


def test_a_clip_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make_clip(3, "test")
    path = clip_folder(clip, tmp_path)
    monkeypatch.setattr(folder, "render_clip", lambda clip: pytest.fail("drawn again"))
    assert clip_folder(clip, tmp_path) == path
    (path / "07.png").unlink()
    with pytest.raises(InputError, match="holds 15 files"):
        clip_folder(clip, tmp_path)


def test_a_clip_is_written_in_full_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def fails(image: object) -> bytes:
        calls.append(image)
        if len(calls) > 5:
            raise OSError(28, "No space left on device")
        return b"a"

    monkeypatch.setattr(folder, "png", fails)
    with pytest.raises(InputError, match=r"cannot be written \(No space left"):
        clip_folder(make_clip(3, "test"), tmp_path)
    assert [path.name for path in (tmp_path / "v1" / "test").iterdir()] == []
    monkeypatch.undo()
    # another process is faster: its clip is taken
    real = folder.render_clip

    def overtaken(clip: object) -> np.ndarray:
        monkeypatch.undo()
        clip_folder(clip, tmp_path)
        return real(clip)

    monkeypatch.setattr(folder, "render_clip", overtaken)
    assert len(list(clip_folder(make_clip(3, "test"), tmp_path).iterdir())) == 16
    assert [path.name for path in (tmp_path / "v1" / "test").iterdir()] == ["00003"]


def test_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task("moving-shapes", tmp_path, clips=8)
    assert len(task.items) == 12 and len({item.cluster for item in task.items}) == 8
    assert {item.groups["family"] for item in task.items} == {"direction", "order", "count", "change"}
    first = task.items[0]
    assert first.id == "test-00000-direction-0"
    assert first.prompt.splitlines()[:2] == ["In which direction does the brown ring move?", "A. left"]
    metric = METRICS.get(task.metric)
    for item in task.items:
        letter, options = item.gold["answer"], item.gold["options"]
        right = options["ABCD".index(letter)]
        assert metric.score(letter, item.gold, item_id=item.id).value == 1
        assert metric.score(f"{letter}. {right}", item.gold, item_id=item.id).value == 1
        assert metric.score("", item.gold, item_id=item.id).value == 0
    # only what the limit leaves is written
    load_task("moving-shapes", tmp_path / "few", limit=2)
    assert len(list((tmp_path / "few" / "v1" / "test").iterdir())) <= 2
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    made = load_task("moving-shapes", split="train", clips=1).items[0].media[0]
    assert made.path == tmp_path / "home/.cache/vlm_eff/moving-shapes/v1/train/00000"
    assert TASKS.get("moving-shapes").files == ""
    with pytest.raises(ConfigError, match="clips=0"):
        load_task("moving-shapes", tmp_path, clips=0)
