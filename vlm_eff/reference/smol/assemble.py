"""One native LLaVA out of tower, language model and projector."""

from __future__ import annotations

import torch
from transformers import (
    Dinov2Model,
    GenerationConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerBase,
)

from .decoder import IMAGE_TOKEN

FEATURE_LAYER = -5  # of hidden states: behind the eighth block


def assemble(
    tower: Dinov2Model, decoder: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, visual_tokens: int
) -> LlavaForConditionalGeneration:
    """Return a LLaVA that holds this tower and this language model; its projector is fresh.

    The class token is left out. Features come from behind the eighth of twelve blocks: there a linear probe on the
    scenes tells 99 % of shapes and 88 % of digits apart, behind the last block 89 % and 63 % (260 scenes to fit, 100
    to test).
    """
    decoder.config.pad_token_id = tokenizer.pad_token_id
    config = LlavaConfig(
        vision_config=tower.config,
        text_config=decoder.config,
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=FEATURE_LAYER,
        vision_feature_select_strategy="default",
        image_seq_length=visual_tokens,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    model.model.vision_tower = tower
    model.model.language_model = decoder.model
    model.lm_head = decoder.lm_head
    model.model.multi_modal_projector = model.model.multi_modal_projector.to_empty(device="cpu")
    for layer in (model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2):
        layer.reset_parameters()
    model.tie_weights()
    model.config.architectures = ["LlavaForConditionalGeneration"]
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model.eval()
