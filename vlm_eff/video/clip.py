"""What reading a video gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Clip:
    """Frames chosen from one video.

    frames:     [T, H, W, 3] uint8, RGB
    indices:    [T] number of each frame in the video, counted from 0 in the order of display
    timestamps: [T] seconds from the start of the video's first frame
    fps:        frames a second of the video, on average
    total:      frames that can be read; expected: frames that the file's header promises, where that is more
    backend:    "av", "decord", "torchcodec" or "pillow"
    """

    frames: np.ndarray
    indices: tuple[int, ...]
    timestamps: tuple[float, ...]
    fps: float
    total: int
    expected: int
    backend: str

    @property
    def partial(self) -> bool:
        """True when the file is damaged and these are only the frames that exist."""
        return self.total < self.expected

    def metadata(self) -> dict[str, Any]:
        """What the video processors of transformers take as `video_metadata`, one dict a video.

        Pass `do_sample_frames=False` with it: the frames are chosen already.
        """
        return {
            "total_num_frames": self.total,
            "fps": self.fps,
            "height": int(self.frames.shape[1]),
            "width": int(self.frames.shape[2]),
            "duration": self.total / self.fps,
            "video_backend": {"av": "pyav"}.get(self.backend, self.backend),
            "frames_indices": list(self.indices),
        }
