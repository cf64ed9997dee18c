"""The frame numbers that each convention in use takes from a part of a video; formulas only.

Every function gets the frames of the part (at least 1) and how many are wanted (at least 1), and gives as many numbers,
ascending and counted from the first frame of the part. Where more are wanted than there are, numbers repeat.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


def _middle(total: int, count: int) -> list[int]:
    """The middle frame of each of `count` equal segments."""
    return [(2 * place + 1) * total // (2 * count) for place in range(count)]


def _start(total: int, count: int) -> list[int]:
    """The first frame of each segment."""
    return [place * total // count for place in range(count)]


def _ends(total: int, count: int) -> list[int]:
    """First and last frame, and equal steps between, rounded down."""
    return [place * (total - 1) // max(count - 1, 1) for place in range(count)]


def _ends_in_floats(total: int, count: int) -> list[int]:
    """As `_ends`, but with the rounding errors of `numpy.linspace`, which move a frame by one now and then."""
    return [int(place) for place in np.linspace(0, total - 1, count)]


def _ends_to_nearest(total: int, count: int) -> list[int]:
    """As `_ends`, to the nearest frame, halves to the even one."""
    return [int(place) for place in np.linspace(0, total - 1, count).round()]


def _inner(total: int, count: int) -> list[int]:
    """The borders between `count + 1` equal segments: neither the first frame nor the last."""
    step = total / (count + 1)
    return [int(place * step) for place in range(1, count + 1)]


def _segments(total: int, count: int) -> list[int]:
    """Half a segment after each rounded border; segments part the distance between first and last frame."""
    segment = (total - 1) / count
    # halves round to the even number, as in numpy
    return [int(segment / 2 + round(segment * place)) for place in range(count)]


def _whole_steps(total: int, count: int) -> list[int]:
    """Equal whole steps from the first frame; the rest at the end is not shown."""
    # with more wanted than there are the step would be 0, and all frames the first
    return [total // count * place for place in range(count)] if count <= total else _start(total, count)


@dataclass(frozen=True)
class Convention:
    """One convention, and what it does where nothing else is said.

    spread:   the formula
    by_rate:  `fps` gives the number of frames, which are then spread; not a frame at each multiple of 1 / fps
    seconds:  never more frames than whole seconds, where `max_frames` limits them
    fps, min_frames, max_frames, on_short: the defaults of the official code, where it has any
    """

    spread: Callable[[int, int], list[int]]
    by_rate: bool = False
    seconds: bool = False
    fps: float | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    on_short: str = "repeat"


CONVENTIONS = {
    "middle": Convention(_middle, on_short="error"),
    "start": Convention(_start, on_short="error"),
    "ends": Convention(_ends, on_short="error"),
    "lmms-eval": Convention(_ends_in_floats),
    "qwen3-vl": Convention(_ends_to_nearest, by_rate=True, fps=2.0, min_frames=4, max_frames=768, on_short="all"),
    "transformers": Convention(_start, by_rate=True, on_short="error"),
    "vlmevalkit": Convention(_inner),
    "mvbench": Convention(_segments),
    "longvideobench": Convention(_whole_steps, seconds=True),
}
