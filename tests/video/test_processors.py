"""What the reader gives goes into the video processors of transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import Qwen2VLVideoProcessor, Qwen3VLVideoProcessor
from transformers.models.llava_onevision.video_processing_llava_onevision import LlavaOnevisionVideoProcessor

from tests.video.clips import write_clip
from vlm_eff.video import read_video


@pytest.mark.parametrize("made", [Qwen2VLVideoProcessor, Qwen3VLVideoProcessor, LlavaOnevisionVideoProcessor])
def test_processors_take_the_clip(tmp_path: Path, made: type) -> None:
    clip = read_video(write_clip(tmp_path / "a.mp4"), frames=6)
    out = made()(
        videos=[clip.frames],
        video_metadata=[clip.metadata()],
        do_sample_frames=False,
        return_metadata=True,
        return_tensors="pt",
    )
    if "video_grid_thw" in out:
        assert out["video_grid_thw"][0, 0] == 3
    else:
        assert out["pixel_values_videos"].shape == (1, 6, 3, 384, 384)
    told = out["video_metadata"][0]
    assert told.timestamps == pytest.approx(clip.timestamps)
    assert told.frames_indices == list(clip.indices)
    assert told.total_num_frames == 30
