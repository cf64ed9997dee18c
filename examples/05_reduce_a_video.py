"""Read a video, and drop what repeats in it before the language model sees it.

The model is a tiny Qwen2.5-VL of random weights: its counts are true, its words mean nothing.
On a real model: python examples/05_reduce_a_video.py --model Qwen/Qwen2.5-VL-3B-Instruct --video clip.mp4
"""

import tempfile
from pathlib import Path
from typing import Any

import torch
import typer
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLVideoProcessor

from vlm_eff import attach
from vlm_eff.eval.loading import load_subject, quiet_libraries
from vlm_eff.eval.subject import Row
from vlm_eff.reference.moving import FPS, clip_folder, make_clip
from vlm_eff.tokens import dycoke, evs, prunevid, vcast
from vlm_eff.video import Clip, read_video

START, END, VIDEO, IMAGE = 150, 151, 152, 153


def tiny_model(clip: Clip) -> tuple[Any, dict[str, Any]]:
    text = {"vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 6}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": None, "pad_token_id": 0}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3]}}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
    special = {"vision_start_token_id": START, "video_token_id": VIDEO, "image_token_id": IMAGE}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, vision_end_token_id=END, **special)
    pixels = Qwen2VLVideoProcessor(size={"shortest_edge": 1, "longest_edge": 112**2 * len(clip.frames)})(
        videos=[clip.frames], video_metadata=[clip.metadata()], do_sample_frames=False, return_tensors="pt"
    )
    tokens = int(pixels["video_grid_thw"].prod()) // 4  # the patch merger makes one of 2 x 2
    ids = torch.tensor([[1, 20, START, *[VIDEO] * tokens, END, 30, 31]])
    inputs = {**pixels, "input_ids": ids, "mm_token_type_ids": 2 * (ids == VIDEO).long()}
    return Qwen2_5_VLForConditionalGeneration(config).eval(), inputs | {"attention_mask": torch.ones_like(ids)}


def main(model: str | None = None, video: Path | None = None) -> None:
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        drawn = clip_folder(make_clip(0), Path(folder))  # pictures of two shapes that move
        clip = read_video(video, frames=16) if video else read_video(drawn, frames=16, folder_fps=FPS)
    print(f"{clip.backend}: {len(clip.indices)} of {clip.total} frames, {clip.timestamps[-1]:.2f} seconds")
    subject = load_subject(model) if model else None
    vlm, inputs = (subject.model, subject.batch([Row((clip,), "What happens?")])) if subject else tiny_model(clip)
    for method in (evs(keep_ratio=0.3), vcast(keep_ratio=0.3), dycoke(), prunevid()):
        with attach(vlm, method) as handle:
            vlm.generate(**inputs, max_new_tokens=2, do_sample=False)
        report, tokens = handle.stats().last, handle.visual(0)[0]
        left = [int(tokens.kept[tokens.group == group].sum()) for group in tokens.group.unique()]
        print(f"{method.name:9s} n_eq {report.n_eq:.1f} of {report.visual_tokens:.0f}, left of every two frames {left}")


if __name__ == "__main__":
    typer.run(main)
