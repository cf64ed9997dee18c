"""Write a video, read it back, and drop what repeats in it before the language model sees it.

The model is a tiny Qwen2.5-VL with random weights, so that nothing is downloaded: it shows the mechanics and the
counts, its words mean nothing. With a real one, `AutoProcessor` makes the inputs from the same frames and metadata.
"""

import tempfile
from pathlib import Path

import av
import numpy as np
import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLVideoProcessor

from vlm_eff import attach
from vlm_eff.tokens import dycoke, evs, prunevid, vcast
from vlm_eff.video import read_video

SIDE, VIDEO, START, END = 112, 150, 151, 152


def write(path: Path, frames: int = 48, fps: int = 12) -> None:
    """A ball that crosses a still background and turns back in the middle."""
    y, x = np.mgrid[:SIDE, :SIDE]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width = stream.height = SIDE
        for number in range(frames):
            picture = np.stack([x * 2, y * 2, np.full_like(x, 90)], -1).astype(np.uint8)
            at = SIDE * (1 - abs(1 - 2 * number / frames))
            picture[(x - at) ** 2 + (y - SIDE / 2) ** 2 < 18**2] = (250, 240, 40)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


with tempfile.TemporaryDirectory() as folder:
    write(Path(folder) / "ball.mp4")
    clip = read_video(Path(folder) / "ball.mp4", fps=4)
print(f"{clip.backend}: frames {clip.indices[:4]}... of {clip.total} at {clip.fps:g} a second", end=", ")
print(f"seconds {clip.timestamps[0]:.2f} to {clip.timestamps[-1]:.2f}")

size = {"shortest_edge": SIDE**2, "longest_edge": 16 * SIDE**2}
pixels = Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=False)(
    videos=[clip.frames], video_metadata=[clip.metadata()], do_sample_frames=False, return_tensors="pt"
)
frames, height, width = (pixels["video_grid_thw"][0] // torch.tensor([1, 2, 2])).tolist()
ids = torch.tensor([[1, 20, 21, START, *[VIDEO] * (frames * height * width), END, 30, 31, 32]])
kinds = 2 * (ids == VIDEO).long()
inputs = {**pixels, "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}

torch.manual_seed(0)
text = {"vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6, "num_attention_heads": 4}
text |= {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0, "num_key_value_heads": 2}
text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
special = {"video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END, "image_token_id": 153}
config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **special)
model = Qwen2_5_VLForConditionalGeneration(config).eval()

print(f"{frames} temporal patches (two pictures each) of {height} x {width} tokens")
for method in (evs(keep_ratio=0.3), vcast(keep_ratio=0.3), dycoke(), prunevid()):
    with attach(model, method) as handle, torch.no_grad():
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    report = handle.stats().last
    tokens = handle.visual(0)[0]
    left = [int(tokens.kept[tokens.group == frame].sum()) for frame in range(frames)]
    print(f"{method.name:9s} n_eq {report.n_eq:5.1f} of {report.visual_tokens:.0f}, KV bytes", end=" ")
    print(f"x{report.kv_bytes / report.kv_bytes_bare:.2f}, tokens left of each frame {left}")
