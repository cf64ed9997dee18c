"""Tiny random models of every family, built from their config classes, with weights sharp enough to show errors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    Idefics3Config,
    InternVLConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    Mistral3Config,
    MistralConfig,
    PaliGemmaConfig,
    PixtralVisionConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen3VLConfig,
    SiglipVisionConfig,
    SmolVLMConfig,
)

from tests.tiny import ids
from tests.tiny.media import PATCH, TILE

TEXT: dict[str, Any] = {
    "vocab_size": ids.VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": ids.PAD,
    "bos_token_id": ids.BOS,
    "eos_token_id": ids.EOS,
    "tie_word_embeddings": False,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "patch_size": PATCH,
}
QWEN_VISION: dict[str, Any] = {"depth": 3, "num_heads": 2, "patch_size": PATCH}
TOP: dict[str, Any] = {"image_token_id": ids.IMAGE, "tie_word_embeddings": False}
QWEN_TOP: dict[str, Any] = TOP | {
    "video_token_id": ids.VIDEO,
    "vision_start_token_id": ids.VISION_START,
    "vision_end_token_id": ids.VISION_END,
}
SLIDING_WINDOW = 8

Builder = Callable[[int], PretrainedConfig]


def _mrope(*section: int, **extra: bool) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(section), **extra}


def _pinpoints() -> list[list[int]]:
    return [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE], [TILE, 3 * TILE]]


def _llava(layers: int) -> PretrainedConfig:
    vision = CLIPVisionConfig(**VISION, image_size=20)
    return LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**TEXT, num_hidden_layers=layers),
        image_token_index=ids.IMAGE,
        image_seq_length=25,
    )


def _llava_next(layers: int) -> PretrainedConfig:
    return LlavaNextConfig(
        vision_config=CLIPVisionConfig(**VISION, image_size=TILE),
        text_config=MistralConfig(**TEXT, num_hidden_layers=layers, sliding_window=None),
        image_token_index=ids.IMAGE,
        image_grid_pinpoints=_pinpoints(),
    )


def _llava_onevision(layers: int) -> PretrainedConfig:
    return LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION, image_size=TILE, vision_use_head=False),
        text_config=Qwen2Config(**TEXT, num_hidden_layers=layers),
        image_token_index=ids.IMAGE,
        video_token_index=ids.VIDEO,
        image_grid_pinpoints=_pinpoints(),
        vision_aspect_ratio="anyres_max_2",
    )


def _qwen2_vl(layers: int) -> PretrainedConfig:
    text = TEXT | {"num_hidden_layers": layers, "rope_parameters": _mrope(2, 3, 3)}
    vision = QWEN_VISION | {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}
    return Qwen2VLConfig(text_config=text, vision_config=vision, **QWEN_TOP)


def _qwen2_5_vl(layers: int) -> PretrainedConfig:
    text = TEXT | {"num_hidden_layers": layers, "rope_parameters": _mrope(2, 3, 3)}
    # Windows of 2 x 2 merged tokens, so the window permutation is not the identity.
    windows = {"window_size": 4 * PATCH, "fullatt_block_indexes": [1]}
    vision = QWEN_VISION | windows | {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **QWEN_TOP)


def _qwen3_vl(layers: int) -> PretrainedConfig:
    text = TEXT | {"num_hidden_layers": layers, "rope_parameters": _mrope(4, 2, 2, mrope_interleaved=True)}
    deepstack = {"deepstack_visual_indexes": [0, 1, 2], "num_position_embeddings": 36}
    vision = QWEN_VISION | deepstack | {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64}
    return Qwen3VLConfig(text_config=text, vision_config=vision, **QWEN_TOP)


def _internvl(layers: int) -> PretrainedConfig:
    return InternVLConfig(
        vision_config=VISION | {"image_size": 24, "use_qk_norm": True},
        text_config=Qwen2Config(**TEXT, num_hidden_layers=layers),
        image_seq_length=9,
        **TOP,
    )


def _idefics3(layers: int) -> PretrainedConfig:
    text = LlamaConfig(**TEXT, num_hidden_layers=layers)
    return Idefics3Config(vision_config=VISION | {"image_size": 24}, text_config=text, scale_factor=2, **TOP)


def _smolvlm(layers: int) -> PretrainedConfig:
    text = LlamaConfig(**TEXT, num_hidden_layers=layers)
    return SmolVLMConfig(vision_config=VISION | {"image_size": 24}, text_config=text, scale_factor=2, **TOP)


def _paligemma(layers: int) -> PretrainedConfig:
    return PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**VISION, image_size=20, vision_use_head=False),
        text_config=GemmaConfig(**TEXT, num_hidden_layers=layers),
        image_token_index=ids.IMAGE,
        vocab_size=ids.VOCAB,
        projection_dim=64,
        hidden_size=64,
        tie_word_embeddings=False,
    )


def _gemma3(layers: int) -> PretrainedConfig:
    kinds = ["full_attention" if index % 3 == 2 else "sliding_attention" for index in range(layers)]
    text = Gemma3TextConfig(
        **TEXT, num_hidden_layers=layers, layer_types=kinds, sliding_window=SLIDING_WINDOW, query_pre_attn_scalar=16
    )
    return Gemma3Config(
        vision_config=SiglipVisionConfig(**VISION, image_size=32, vision_use_head=False),
        text_config=text,
        mm_tokens_per_image=16,
        boi_token_index=ids.VISION_START,
        eoi_token_index=ids.VISION_END,
        image_token_index=ids.IMAGE,
        tie_word_embeddings=False,
    )


def _mistral3(layers: int) -> PretrainedConfig:
    return Mistral3Config(
        vision_config=PixtralVisionConfig(**VISION, image_size=64),
        text_config=MistralConfig(**TEXT, num_hidden_layers=layers, sliding_window=None),
        image_token_index=ids.IMAGE,
        spatial_merge_size=2,
        tie_word_embeddings=False,
    )


CONFIGS: dict[str, Builder] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "internvl": _internvl,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "paligemma": _paligemma,
    "gemma3": _gemma3,
    "mistral3": _mistral3,
}
FAMILIES = tuple(CONFIGS)


def tiny_vlm(
    family: str, *, attn: str = "sdpa", dtype: torch.dtype = torch.float32, layers: int = 6, seed: int = 0
) -> PreTrainedModel:
    """A fresh model on the CPU in eval mode; the same arguments give the same weights, in every dtype up to rounding.

    The global random state is left as it was. Generation never stops early and never emits a placeholder or other
    special token, whose lm_head rows are zero.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(CONFIGS[family](layers), dtype=dtype, attn_implementation=attn)
        sharpen(model, torch.Generator().manual_seed(seed))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = ids.PAD
    return model.eval()


@torch.no_grad()
def sharpen(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Redraw all weights at unit gain, with peaked attention and spread logits.

    The default initialisation is nearly linear: attention is flat and a wrong token set hardly moves the logits.
    """
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        for part, weight in module.named_parameters(recurse=False):
            gain = 4.0 if module is head else _gain(name)
            weight.copy_(_draw(module, f"{name}.{part}", weight, gain, generator))
    head.weight[list(ids.NEVER_GENERATED)] = 0.0


def _gain(name: str) -> float:
    return 1.6 if name.endswith(("q_proj", "k_proj")) else 1.0


def _draw(module: nn.Module, name: str, weight: Tensor, gain: float, generator: torch.Generator) -> Tensor:
    noise = torch.randn(weight.shape, generator=generator)
    if isinstance(module, nn.Embedding):
        # Gemma multiplies token embeddings by sqrt(hidden); images are not multiplied.
        return noise / getattr(module, "scalar_embed_scale", 1.0)
    if name.endswith(("image_newline", "class_embedding")):
        return noise
    if weight.dim() == 1:
        # Norm and layer scales stay near their start; biases are small but not zero, so that forgetting one shows.
        return weight.float() + 0.1 * noise
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
        return gain * noise / weight[0].numel() ** 0.5
    # Bare matrices (Gemma3's projection) multiply from the right; position tables add to unit activations.
    return noise / weight.shape[0] ** 0.5 if name.endswith("projection_weight") else 0.5 * noise
