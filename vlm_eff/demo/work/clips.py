"""Clips for the page: uploaded files through the one reader, within limits, or a drawn clip of moving shapes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vlm_eff.core.errors import ConfigError, InputError, explain
from vlm_eff.reference.moving import FPS, FRAMES, make_clip, render_clip
from vlm_eff.video import Clip, Sampling, read_video
from vlm_eff.video.conventions import CONVENTIONS

CLIPS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".webp")
MOST_FRAMES = 32
_MOST_SECONDS = 600.0
_MOST_MEGAPIXELS = 100
_READ_SECONDS = 20.0
# the first clip of this split is shown where nothing was uploaded
_SPLIT = "test"


@dataclass(frozen=True)
class Chosen:
    """The frames that a model is shown, and which of how many they are, in a sentence."""

    clip: Clip
    said: str


def sampling_of(convention: str, count: int) -> Sampling:
    """The named convention with `count` frames, or as many as it allows up to that.

    Raises:
        ConfigError: no such convention, or a count below 1 or above 32.
    """
    if convention not in CONVENTIONS:
        raise ConfigError(explain(f"the convention {convention!r}", ", ".join(CONVENTIONS), "Choose one of these"))
    if count != int(count) or not 1 <= count <= MOST_FRAMES:
        raise ConfigError(explain(f"{count:g} frames", f"1 to {MOST_FRAMES} frames on this page", "Choose fewer"))
    key = "max_frames" if CONVENTIONS[convention].seconds else "frames"
    made: Sampling = Sampling.named(convention, **{key: int(count)})  # type: ignore[arg-type]
    return made


def read_clip(path: str, convention: str, count: int) -> Chosen:
    """Read the chosen frames of an uploaded clip.

    Raises:
        InputError: a file that is empty, cut, damaged, no video, too long, too large, or takes too long to read.
        ConfigError: as `sampling_of`.
        CapabilityError: no decoder is installed.
    """
    sampling = sampling_of(convention, count)
    # one frame tells length and size before all are held
    first = read_video(path, indices=[0], timeout_s=_READ_SECONDS)
    name, seconds = Path(path).name, first.total / first.fps
    if seconds > _MOST_SECONDS:
        got, accepted = f"{name} lasts {seconds:.0f} seconds", f"clips of up to {_MOST_SECONDS:.0f} seconds"
        raise InputError(explain(got, accepted, "Cut a part out of it first"))
    height, width = first.frames.shape[1:3]
    if height * width * count > _MOST_MEGAPIXELS * 1e6:
        got = f"{count} frames of {width} x {height} pixels in {name}"
        do = "Choose fewer frames, or scale the clip down first"
        raise InputError(explain(got, f"up to {_MOST_MEGAPIXELS} megapixels in all frames together", do))
    return _chosen(read_video(path, sampling=sampling, timeout_s=_READ_SECONDS), name, convention)


def drawn_clip(number: int, convention: str, count: int) -> Chosen:
    """Frames of a clip of moving shapes, which is drawn now; nothing is written.

    Raises:
        ConfigError: as `sampling_of`, or a number below 0.
        InputError: the clip has fewer frames than the convention needs.
    """
    if number != int(number) or number < 0:
        raise ConfigError(explain(f"clip number {number}", "a whole number of at least 0", "Choose another one"))
    indices = sampling_of(convention, count).choose(FRAMES, FPS)
    frames = render_clip(make_clip(int(number), _SPLIT))[indices]
    times = tuple(index / FPS for index in indices)
    made = Clip(frames, tuple(indices), times, FPS, FRAMES, FRAMES, "pillow")
    return _chosen(made, f"moving-shapes clip {int(number)}", convention)


def drawn_questions(number: int) -> tuple[str, ...]:
    """What the evaluation task asks about a drawn clip, without its options."""
    return tuple(question.text for question in make_clip(number, _SPLIT).questions)


def _chosen(clip: Clip, name: str, convention: str) -> Chosen:
    height, width = clip.frames.shape[1:3]
    said = (
        f"{len(clip.indices)} of {clip.total} frames of {name} ({width} x {height} pixels, "
        f"{clip.total / clip.fps:.1f} s, {clip.fps:.3g} a second), chosen as {convention!r} does"
    )
    return Chosen(clip, said)
