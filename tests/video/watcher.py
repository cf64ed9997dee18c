"""A tiny random Qwen2.5-VL with a processor for videos, made in memory."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

from tests.tiny import ids, tiny_vlm
from vlm_eff.eval.subject import Subject

MARKS = {
    "<pad>": ids.PAD,
    "<eos>": ids.EOS,
    "<|image_pad|>": ids.IMAGE,
    "<|video_pad|>": ids.VIDEO,
    "<|vision_start|>": ids.VISION_START,
    "<|vision_end|>": ids.VISION_END,
}
TEMPLATE = """{%- for part in messages[0].content -%}
{%- if part.type == 'text' -%}{{ part.text }}
{%- else -%}<|vision_start|><|{{ part.type }}_pad|><|vision_end|>{%- endif -%}
{%- endfor -%}"""
# 24 x 24 pixels: 3 x 3 tokens for every two frames
SIZE = {"shortest_edge": 24 * 24, "longest_edge": 24 * 24}


def watching_subject() -> Subject:
    """Three decoder layers, 3 x 3 visual tokens for every two frames."""
    words = {f"w{number}": number for number in range(ids.FIRST_TEXT, ids.LAST_TEXT + 1)}
    core = Tokenizer(models.WordLevel({**MARKS, **words}, unk_token=f"w{ids.FIRST_TEXT}"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", additional_special_tokens=list(MARKS)[2:]
    )
    parts = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2, "size": SIZE}
    processor = Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(**parts),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**parts, cap_pixels_per_frame=False),
        chat_template=TEMPLATE,
    )
    return Subject(tiny_vlm("qwen2_5_vl", layers=3), processor, "tiny")
