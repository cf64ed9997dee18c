"""torchcodec, which needs FFmpeg of the system: the same frames where it can be loaded, and the reason where not.

To run all of it without FFmpeg of the system, give the loader links to the libraries inside PyAV's wheel.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from tests.video.clips import numbers, write_clip
from vlm_eff.core.errors import CapabilityError, InputError
from vlm_eff.video import codec, read_video


@pytest.fixture
def real() -> None:
    if importlib.util.find_spec("torchcodec") is None:
        pytest.skip("torchcodec is not installed")
    if importlib.import_module("torchcodec").ffmpeg_major_version is None:
        pytest.skip("torchcodec finds no FFmpeg")


@pytest.mark.usefixtures("real")
@pytest.mark.parametrize("kind", ["mpeg4.mp4", "h264.mkv"])
def test_it_reads_what_av_reads(tmp_path: Path, kind: str) -> None:
    path = write_clip(tmp_path / kind, codec="libx264" if "h264" in kind else "mpeg4")
    one, other = (read_video(path, frames=7, backend=backend) for backend in ("auto", "av"))
    assert (one.backend, other.backend) == ("torchcodec", "av")
    assert np.array_equal(one.frames, other.frames)
    assert one.indices == other.indices and one.timestamps == pytest.approx(other.timestamps, abs=2e-3)
    assert (one.total, one.expected) == (other.total, other.expected)
    assert numbers(read_video(path, indices=[29, 3, 3], backend="torchcodec").frames) == [29, 3, 3]


@pytest.mark.usefixtures("real")
def test_bad_files(tmp_path: Path) -> None:
    (tmp_path / "words.mp4").write_text("this is no video\n" * 200)
    with pytest.raises(InputError, match="no readable video"):
        read_video(tmp_path / "words.mp4", frames=2, backend="torchcodec")
    path = write_clip(tmp_path / "a.mp4", movflags="faststart")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(InputError, match="cut or damaged"):
        read_video(path, frames=4, backend="torchcodec")
    clip = read_video(path, frames=4, backend="torchcodec", allow_partial=True)
    assert clip.partial and numbers(clip.frames)[:-1] == list(clip.indices)[:-1]
    data = np.frombuffer(write_clip(tmp_path / "b.mp4", codec="libx264").read_bytes(), np.uint8)
    for seed in range(3):
        harmed = data.copy()
        harmed[np.random.default_rng(seed).integers(0, len(data), len(data) // 50)] ^= 255
        path.write_bytes(harmed.tobytes())
        for partial in (False, True):
            with contextlib.suppress(InputError):
                read_video(path, frames=4, backend="torchcodec", allow_partial=partial)


def _stand_in(monkeypatch: pytest.MonkeyPatch, version: int | None, decoder: object) -> None:
    package, decoders = ModuleType("torchcodec"), ModuleType("torchcodec.decoders")
    package.ffmpeg_major_version, decoders.VideoDecoder = version, decoder
    monkeypatch.setitem(sys.modules, "torchcodec", package)
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)


def test_auto_takes_it_only_where_it_is_loaded_with_ffmpeg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=4)
    for name in ("torchcodec", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, name, None)
    assert not codec.is_loaded() and read_video(path, frames=2).backend == "av"
    with pytest.raises(CapabilityError, match="torchcodec is not installed"):
        read_video(path, frames=2, backend="torchcodec")
    reason = "Could not load libtorchcodec. Likely causes:\n1. FFmpeg is not properly installed"

    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError(reason)

    _stand_in(monkeypatch, None, fails)
    assert read_video(path, frames=2).backend == "av"
    with pytest.raises(CapabilityError, match=r"finds no FFmpeg.*backend='av'"):
        read_video(path, frames=2, backend="torchcodec")
    turned = SimpleNamespace(metadata=SimpleNamespace(rotation=-90.0))
    _stand_in(monkeypatch, 7, lambda *args, **kwargs: turned)
    with pytest.raises(CapabilityError, match="rotation mark of -90 degrees"):
        read_video(path, frames=2)
