"""A small UNet of Stable Diffusion's kind: its configuration, and the table of embeddings that stands for prompts."""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from .shapes import IMAGE_SIZE, NULL_CLASS

PROMPT_TOKENS, PROMPT_SIZE = 4, 32


def build_unet() -> UNet2DConditionModel:
    """Return the untrained UNet: three resolutions (16, 8, 4), attention at the first two, as in Stable Diffusion."""
    return UNet2DConditionModel(
        sample_size=IMAGE_SIZE,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(24, 48, 64),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=PROMPT_SIZE,
        norm_num_groups=8,
        # diffusers reads this as the number of heads of each resolution
        attention_head_dim=(2, 4, 4),
    )


class UNetDenoiser(nn.Module):
    """UNet and prompt table, as training sees them; the pipeline gets the two apart."""

    name = "unet"

    def __init__(self) -> None:
        super().__init__()
        self.model = build_unet().to(memory_format=torch.channels_last)
        self.prompts = nn.Embedding(NULL_CLASS + 1, PROMPT_TOKENS * PROMPT_SIZE)

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the predicted velocity [B, 3, 16, 16] for classes [B], where `NULL_CLASS` means no class."""
        prompts = self.prompts(labels).view(-1, PROMPT_TOKENS, PROMPT_SIZE)
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        return self.model(noisy, timesteps, encoder_hidden_states=prompts).sample
