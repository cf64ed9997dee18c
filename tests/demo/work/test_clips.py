"""Clips that visitors bring: within limits, and everything that is no clip is one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.video.clips import numbers, write_clip
from vlm_eff.core.errors import ConfigError, InputError
from vlm_eff.demo.work import clips
from vlm_eff.demo.work.clips import MOST_FRAMES, drawn_clip, drawn_questions, read_clip, sampling_of
from vlm_eff.video.conventions import CONVENTIONS

av = pytest.importorskip("av", reason="needs vlm-eff[video]")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_every_convention_gives_frames(video: Path, convention: str) -> None:
    chosen = read_clip(str(video), convention, 4)
    # 3 seconds: longvideobench takes no more frames than whole seconds
    assert len(chosen.clip.indices) == (3 if convention == "longvideobench" else 4)
    assert numbers(chosen.clip.frames) == list(chosen.clip.indices)
    assert f"of 30 frames of clip.mp4 (64 x 48 pixels, 3.0 s, 10 a second), chosen as '{convention}'" in chosen.said


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_animations_are_clips(tmp_path: Path, kind: str) -> None:
    frames = [Image.new("RGB", (32, 24), (shade, 0, 0)) for shade in range(0, 250, 25)]
    path = tmp_path / f"clip.{kind}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    assert read_clip(str(path), "middle", 5).clip.indices == (1, 3, 5, 7, 9)


def test_what_is_no_clip_is_a_sentence(video: Path, tmp_path: Path) -> None:
    for name, content, word in (
        ("cut.mp4", video.read_bytes()[:2000], "cut.mp4"),
        ("empty.mp4", b"", "empty (0 bytes)"),
        ("words.mp4", b"these are words\n" * 40, "words.mp4"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match="Accepted") as told:
            read_clip(str(path), "middle", 4)
        assert word in str(told.value) and "\n" not in str(told.value)
    picture = tmp_path / "still.png"
    Image.new("RGB", (20, 20)).save(picture)
    with pytest.raises(InputError):
        read_clip(str(picture), "middle", 1)


def test_limits_are_held(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (0, MOST_FRAMES + 1, 2.5):
        with pytest.raises(ConfigError, match="1 to 32 frames"):
            sampling_of("middle", count)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Choose one of these"):
        sampling_of("nonsense", 4)
    with pytest.raises(InputError, match="fewer frames"):
        read_clip(str(video), "middle", MOST_FRAMES)
    monkeypatch.setattr(clips, "_MOST_SECONDS", 2.0)
    with pytest.raises(InputError, match="lasts 3 seconds"):
        read_clip(str(video), "middle", 4)
    monkeypatch.undo()
    monkeypatch.setattr(clips, "_MOST_MEGAPIXELS", 0.01)
    with pytest.raises(InputError, match="64 x 48 pixels"):
        read_clip(str(video), "middle", 4)
    assert len(read_clip(str(video), "middle", 3).clip.indices) == 3


def test_a_clip_is_drawn_where_none_was_brought() -> None:
    chosen = drawn_clip(3, "middle", 8)
    assert chosen.clip.indices == (1, 3, 5, 7, 9, 11, 13, 15) and chosen.clip.frames.shape == (8, 96, 96, 3)
    assert (drawn_clip(3, "middle", 8).clip.frames == chosen.clip.frames).all()
    assert not np.array_equal(drawn_clip(2, "middle", 8).clip.frames, chosen.clip.frames)
    assert drawn_questions(3) == ("What changes?",)
    with pytest.raises(ConfigError):
        drawn_clip(-1, "middle", 8)
