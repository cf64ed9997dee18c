"""A small DiT: its configuration, its start, and its class ids, of which the pipeline fixes the empty one."""

from __future__ import annotations

import torch
from diffusers import DiTTransformer2DModel
from torch import nn

from .shapes import IMAGE_SIZE, NULL_CLASS

# `DiTPipeline` asks for this class id in the half without guidance
PIPELINE_NULL = 1000
HEADS, HEAD_SIZE, BLOCKS, PATCH = 3, 32, 6, 2


def build_dit() -> DiTTransformer2DModel:
    """Return the untrained DiT: 64 tokens of 2x2 pixels, six blocks of width 96.

    Modulation starts at zero, so that every block starts as the identity (Peebles and Xie 2023, section 3.2,
    adaLN-Zero); the class of diffusers leaves that to its trained weights.
    """
    model = DiTTransformer2DModel(
        num_attention_heads=HEADS,
        attention_head_dim=HEAD_SIZE,
        in_channels=3,
        out_channels=3,
        num_layers=BLOCKS,
        sample_size=IMAGE_SIZE,
        patch_size=PATCH,
        num_embeds_ada_norm=PIPELINE_NULL,
        norm_type="ada_norm_zero",
    )
    starts_at_zero = [block.norm1.linear for block in model.transformer_blocks] + [model.proj_out_1, model.proj_out_2]
    for layer in starts_at_zero:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    for block in model.transformer_blocks:
        nn.init.normal_(block.norm1.emb.class_embedder.embedding_table.weight, std=0.02)
    return model


def pipeline_ids(labels: torch.Tensor) -> torch.Tensor:
    """Return class ids as `DiTPipeline` knows them: `NULL_CLASS` becomes 1000, the others stay."""
    return torch.where(labels == NULL_CLASS, PIPELINE_NULL, labels)


class DiTDenoiser(nn.Module):
    """The DiT as training sees it."""

    name = "dit"

    def __init__(self) -> None:
        super().__init__()
        self.model = build_dit()

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the predicted velocity [B, 3, 16, 16] for classes [B], where `NULL_CLASS` means no class."""
        return self.model(noisy, timesteps, class_labels=pipeline_ids(labels)).sample
