"""A VAE that is the identity: the small models work on pixels, and the pipelines ask for a VAE."""

from __future__ import annotations

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import nn


class PixelVAE(ModelMixin, ConfigMixin):
    """Latents are the picture itself, [B, 3, H, W] in -1 to 1; no resizing and no scaling."""

    # the pipelines read the number of resolutions off `block_out_channels`: one, so latents are as large as pictures
    @register_to_config
    def __init__(
        self, block_out_channels: tuple[int, ...] = (3,), latent_channels: int = 3, scaling_factor: float = 1.0
    ) -> None:
        super().__init__()
        # a module without weights has no dtype and no device to ask for
        self.anchor = nn.Parameter(torch.zeros(()), requires_grad=False)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> AutoencoderTinyOutput | tuple[torch.Tensor]:
        """Return the pictures as they are."""
        return AutoencoderTinyOutput(latents=x) if return_dict else (x,)

    def decode(
        self, z: torch.Tensor, generator: torch.Generator | None = None, return_dict: bool = True
    ) -> DecoderOutput | tuple[torch.Tensor]:
        """Return the latents as they are."""
        return DecoderOutput(sample=z) if return_dict else (z,)
