"""Folders of pictures, and animated GIF and WebP, through the same reader as files."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.video.clips import SIZE, grey, numbers
from vlm_eff.core.errors import ConfigError, InputError
from vlm_eff.video import Sampling, broken, read_video, stills

COUNT = 12


def picture(number: int) -> Image.Image:
    pixels = np.full((*SIZE, 3), grey(number), dtype=np.uint8)
    pixels[:, 40:] = np.random.default_rng(number).integers(0, 255, (SIZE[0], SIZE[1] - 40, 3)) // 64 * 64
    return Image.fromarray(pixels)


def folder(path: Path, count: int = COUNT) -> Path:
    path.mkdir()
    for number in range(count):
        # without zeros in front: 2 must come before 10
        picture(number).save(path / f"frame{number}.png")
    (path / "notes.txt").write_text("no frame")
    return path


def animated(path: Path, **options: object) -> Path:
    first, *rest = [picture(number) for number in range(COUNT)]
    first.save(path, save_all=True, append_images=rest, duration=200, **options)
    return path


def make(tmp_path: Path, kind: str) -> Path:
    if kind == "folder":
        return folder(tmp_path / "frames")
    return animated(tmp_path / f"a.{kind}", **({"lossless": True} if kind == "webp" else {}))


@pytest.mark.parametrize("kind", ["folder", "gif", "webp"])
def test_frames_are_the_ones_asked_for(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path, kind)
    rate = 5.0 if kind == "folder" else None
    clip = read_video(path, frames=4, folder_fps=rate)
    assert clip.frames.shape == (4, *SIZE, 3) and clip.frames.dtype == np.uint8
    assert numbers(clip.frames) == list(clip.indices) == [1, 4, 7, 10]
    assert clip.timestamps == pytest.approx([0.2, 0.8, 1.4, 2.0])
    assert (clip.total, clip.expected, clip.partial, clip.backend) == (COUNT, COUNT, False, "pillow")
    assert clip.fps == pytest.approx(5)
    part = Sampling.named("mvbench", frames=2, start=1.0, end=2.0)
    assert numbers(read_video(path, sampling=part, folder_fps=rate).frames) == [6, 8]
    assert numbers(read_video(path, indices=[11, 0, 11], folder_fps=rate).frames) == [11, 0, 11]


def test_what_av_reads_of_a_gif_is_the_same(tmp_path: Path) -> None:
    path = make(tmp_path, "gif")
    one, other = (read_video(path, frames=5, backend=backend) for backend in ("auto", "av"))
    assert np.array_equal(one.frames, other.frames)
    assert one.indices == other.indices and one.total == other.total
    assert one.timestamps == pytest.approx(other.timestamps)


def test_delays_that_no_display_can_follow(tmp_path: Path) -> None:
    first, *rest = [picture(number) for number in range(3)]
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest, duration=[0, 50, 300])
    clip = read_video(tmp_path / "a.gif", frames=3)
    assert clip.timestamps == pytest.approx([0, 0.1, 0.15])
    assert clip.fps == pytest.approx(3 / 0.45)


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_a_cut_animation(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path, kind)
    data = path.read_bytes()
    for part in (0.6, 0.999):
        path.write_bytes(data[: int(len(data) * part)])
        with pytest.raises(InputError, match=r"cut or damaged.*allow_partial|no readable video"):
            read_video(path, frames=3)
    if kind == "webp":
        # libwebp opens no cut file
        with pytest.raises(InputError):
            read_video(path, frames=3, allow_partial=True)
        return
    clip = read_video(path, frames=3, allow_partial=True)
    assert clip.partial and clip.total == COUNT - 1
    assert numbers(clip.frames) == list(clip.indices)
    path.write_bytes(data[:300])
    with pytest.raises(InputError, match="no whole frame"):
        read_video(path, frames=1, allow_partial=True)


@pytest.mark.parametrize("partial", [False, True])
def test_damage_never_gives_anything_but_frames_or_an_input_error(tmp_path: Path, partial: bool) -> None:
    for kind in ("gif", "webp"):
        path = make(tmp_path, kind)
        data = np.frombuffer(path.read_bytes(), np.uint8)
        for seed in range(6):
            harmed = data.copy()
            rng = np.random.default_rng(seed)
            harmed[rng.integers(12, len(data), len(data) // 100)] ^= 255
            if seed > 3:
                harmed[len(data) // 3 : len(data) // 2] = 0
            path.write_bytes(harmed.tobytes())
            with contextlib.suppress(InputError):
                assert len(read_video(path, frames=2, allow_partial=partial).frames) == 2


def test_a_broken_picture_in_a_folder(tmp_path: Path) -> None:
    path = folder(tmp_path / "frames")
    (path / "frame7.png").write_bytes((path / "frame7.png").read_bytes()[:200])
    assert numbers(read_video(path, indices=[6, 8], folder_fps=5).frames) == [6, 8]
    with pytest.raises(InputError, match="cut or damaged"):
        read_video(path, frames=COUNT, folder_fps=5)
    clip = read_video(path, indices=[6, 2], folder_fps=5, allow_partial=True)
    assert not clip.partial
    clip = read_video(path, fps=5, folder_fps=5, allow_partial=True)
    assert clip.partial and (clip.total, clip.expected) == (7, COUNT)
    assert numbers(clip.frames) == list(range(7))
    (path / "frame0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"frame0\.png"):
        read_video(path, frames=1, indices=None, spread="start", folder_fps=5)


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no picture"):
        read_video(tmp_path / "none", frames=1, folder_fps=5)
    path = folder(tmp_path / "frames", 2)
    with pytest.raises(InputError, match=r"is no file.*backend='auto'"):
        read_video(path, frames=1, backend="av")
    picture(0).resize((20, 20)).save(path / "frame2.png")
    with pytest.raises(InputError, match=r"different sizes \(20x20, 64x48\)"):
        read_video(path, frames=3, folder_fps=5)
    picture(0).save(tmp_path / "still.webp")
    with pytest.raises(InputError, match="does not move"):
        read_video(tmp_path / "still.webp", frames=1)
    (tmp_path / "words.gif").write_text("words")
    with pytest.raises(InputError, match="no readable video"):
        read_video(tmp_path / "words.gif", frames=1, backend="pillow")


def test_a_folder_needs_its_rate_and_a_file_has_its_own(tmp_path: Path) -> None:
    path = folder(tmp_path / "frames", 2)
    for rate in (None, 0, True):
        with pytest.raises(ConfigError, match="folder_fps"):
            read_video(path, frames=1, folder_fps=rate)
    with pytest.raises(ConfigError, match="folder_fps for the file"):
        read_video(make(tmp_path, "gif"), frames=1, folder_fps=3)
    with pytest.raises(ConfigError, match="sampling beside frames"):
        read_video(path, frames=1, sampling=Sampling(frames=1), folder_fps=3)


def test_the_time_limit_holds_between_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "frames", 3)
    clock = iter(range(100))
    monkeypatch.setattr(broken.time, "monotonic", lambda: float(next(clock)))
    with pytest.raises(InputError, match=r"not read in 1\.5 seconds"):
        read_video(path, frames=3, folder_fps=5, timeout_s=1.5)


def test_only_the_wanted_pictures_are_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder(tmp_path / "frames")
    opened, real = [], Image.open
    monkeypatch.setattr(stills.Image, "open", lambda file: (opened.append(Path(file).name), real(file))[1])
    read_video(path, indices=[10, 2], folder_fps=5)
    assert opened == ["frame2.png", "frame10.png"]
