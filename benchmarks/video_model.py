"""A Qwen2.5-VL of about 90 M random parameters, and a prompt with one video: what methods for videos are timed on."""

from __future__ import annotations

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

VIDEO, START, END = 7990, 7991, 7992
# merged tokens of one temporal patch: 12 rows of 12
SIDE = 12


def random_qwen() -> Qwen2_5_VLForConditionalGeneration:
    """Twelve decoder layers of width 768 (12 heads, 4 key-value heads) and a small tower, seed 0."""
    torch.manual_seed(0)
    text = {
        "hidden_size": 768,
        "intermediate_size": 2304,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "vocab_size": 8000,
        "max_position_embeddings": 8192,
        "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12]},
        "bos_token_id": 1,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    vision = {"depth": 4, "hidden_size": 256, "intermediate_size": 1024, "num_heads": 4, "out_hidden_size": 768}
    special = {
        "video_token_id": VIDEO,
        "image_token_id": VIDEO + 3,
        "vision_start_token_id": START,
        "vision_end_token_id": END,
    }
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config=text, vision_config=vision | {"fullatt_block_indexes": [3]}, **special)
    ).eval()


def random_video_prompt(frames: int, text_tokens: int) -> dict[str, torch.Tensor]:
    """Eight text tokens, a video of `frames` temporal patches of 144 tokens each, and the rest of the text."""
    generator = torch.Generator().manual_seed(0)
    visual = frames * SIDE**2
    ids = torch.randint(10, VIDEO, (1, visual + text_tokens), generator=generator)
    ids[:, 8], ids[:, 9 : 9 + visual], ids[:, 9 + visual] = START, VIDEO, END
    # every frame resembles the one before, as in a film
    still = torch.randn(1, 4 * SIDE**2, 1176, generator=generator)
    moving = torch.randn(frames, 4 * SIDE**2, 1176, generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "mm_token_type_ids": 2 * (ids == VIDEO).long(),
        "pixel_values_videos": (still + 0.3 * moving).flatten(0, 1),
        "video_grid_thw": torch.tensor([[frames, 2 * SIDE, 2 * SIDE]]),
    }
