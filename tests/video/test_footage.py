"""What an item's video becomes, and what a run's line says of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.video.clips import numbers, write_clip
from vlm_eff.core.errors import ConfigError, InputError
from vlm_eff.eval.frames import read_footage
from vlm_eff.eval.tasks.item import Footage
from vlm_eff.video import Sampling

FOUR = Sampling.named("mvbench", frames=4)


def test_the_entry_says_what_was_shown(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4")
    clip, entry = read_footage(Footage(path), FOUR)
    assert numbers(clip.frames) == list(clip.indices) == entry["indices"] == [3, 10, 17, 25]
    assert {"video", "digest", "convention", "indices", "partial", "backend"} == set(entry)
    assert (entry["video"], entry["convention"], entry["partial"]) == ("a.mp4", "mvbench", False)
    assert json.loads(json.dumps(entry)) == entry


def test_the_digest_tells_frames_apart(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4")
    digest = read_footage(Footage(path), FOUR)[1]["digest"]
    assert read_footage(Footage(path), FOUR)[1]["digest"] == digest
    assert read_footage(Footage(path), Sampling(frames=4))[1]["digest"] != digest


def test_the_part_of_the_footage_counts(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4")
    assert read_footage(Footage(path, start=1.0, end=1.9), FOUR)[1]["indices"] == [11, 13, 15, 18]
    with pytest.raises(InputError, match="a part from 9 s"):
        read_footage(Footage(path, start=9.0), FOUR)
    with pytest.raises(ConfigError, match="indices alone"):
        read_footage(Footage(path, start=1.0), Sampling(indices=np.array([1])))


def test_a_broken_video_is_an_input_error(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", movflags="faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(InputError, match="cut or damaged"):
        read_footage(Footage(path), FOUR)
    assert read_footage(Footage(path), FOUR, allow_partial=True)[1]["partial"] is True
    with pytest.raises(InputError, match="does not exist"):
        read_footage(Footage(tmp_path / "b.mp4"), FOUR)
    with pytest.raises(ConfigError, match="without sampling"):
        read_footage(Footage(path), None)
