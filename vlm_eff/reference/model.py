"""The two sizes of the reference model, as plain Hugging Face configurations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

from .scenes import IMAGE_SIZE

PATCH_SIZE = 8
VISUAL_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2  # 144


@dataclass(frozen=True)
class Preset:
    """Widths and depths; `head_width` is the width of one attention head of the decoder."""

    vision_width: int
    vision_blocks: int
    vision_heads: int
    width: int
    layers: int
    heads: int
    key_heads: int
    head_width: int
    mlp_width: int


PRESETS = {
    "tiny": Preset(32, 2, 2, 32, 2, 2, 1, 16, 64),  # for tests of the script
    "small": Preset(192, 4, 6, 128, 8, 4, 2, 32, 384),
    "large": Preset(256, 6, 8, 256, 8, 8, 2, 32, 512),  # under 20 MB in bfloat16
}


def preset(name: str) -> Preset:
    """Return a preset by name."""
    if name not in PRESETS:
        raise ValueError(f"got preset {name!r}; accepted are {', '.join(PRESETS)}; use one of them")
    return PRESETS[name]


def build_config(size: Preset, processor: LlavaProcessor) -> LlavaConfig:
    """Return the LLaVA configuration of a preset for the vocabulary of a processor."""
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=size.vision_width,
        intermediate_size=4 * size.vision_width,
        num_hidden_layers=size.vision_blocks,
        num_attention_heads=size.vision_heads,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        hidden_act="gelu_pytorch_tanh",
        projection_dim=size.vision_width,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        intermediate_size=size.mlp_width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.key_heads,
        head_dim=size.head_width,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=VISUAL_TOKENS,
        tie_word_embeddings=True,
    )


def build_model(size: Preset, processor: LlavaProcessor, seed: int) -> LlavaForConditionalGeneration:
    """Build a model with fresh weights that the seed fixes."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(build_config(size, processor))
    model.config.architectures = ["LlavaForConditionalGeneration"]
    tokenizer = processor.tokenizer
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model
