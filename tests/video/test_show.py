"""What an item's video becomes, and what a run's line says of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.video.clips import numbers, write_clip
from vlm_eff.core.errors import ConfigError, InputError
from vlm_eff.eval.frames import show
from vlm_eff.eval.tasks.item import Footage
from vlm_eff.video import Sampling

FOUR = Sampling.named("mvbench", frames=4)


def test_the_entry_says_what_was_shown(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4")
    made = show(Footage(path), FOUR)
    assert numbers(made.frames) == made.entry["indices"] == [3, 10, 17, 25]
    assert {"video", "digest", "convention", "indices", "partial", "backend"} == set(made.entry)
    assert (made.entry["video"], made.entry["convention"], made.entry["partial"]) == ("a.mp4", "mvbench", False)
    assert json.loads(json.dumps(made.entry)) == made.entry
    assert made.clip.metadata()["frames_indices"] == made.entry["indices"]


def test_the_digest_tells_frames_apart(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4")
    digest = show(Footage(path), FOUR).entry["digest"]
    assert show(Footage(path), FOUR).entry["digest"] == digest
    assert show(Footage(path), Sampling(frames=4)).entry["digest"] != digest


def test_the_part_of_the_footage_counts(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4")
    assert show(Footage(path, start=1.0, end=1.9), FOUR).entry["indices"] == [11, 13, 15, 18]
    with pytest.raises(InputError, match="a part from 9 s"):
        show(Footage(path, start=9.0), FOUR)
    with pytest.raises(ConfigError, match="indices alone"):
        show(Footage(path, start=1.0), Sampling(indices=np.array([1])))


def test_a_broken_video_is_an_input_error(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", movflags="faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(InputError, match="cut or damaged"):
        show(Footage(path), FOUR)
    assert show(Footage(path), FOUR, allow_partial=True).entry["partial"] is True
    with pytest.raises(InputError, match="does not exist"):
        show(Footage(tmp_path / "b.mp4"), FOUR)
