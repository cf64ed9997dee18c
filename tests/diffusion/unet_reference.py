"""A UNet's forward written anew, layer by layer, that can be given what comes up from below a skip connection."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.utils.torch_utils import apply_freeu
from torch import Tensor


def forward(
    unet: Any,
    branch: int,
    deep: Tensor | None,
    *,
    sample: Tensor,
    timestep: Any,
    encoder_hidden_states: Tensor,
    **more: Any,
) -> tuple[Tensor, Tensor]:
    """Output of a `UNet2DConditionModel`, and what came up below skip connection `branch`.

    deep: that tensor, to be used in place of what is there; nothing that leads to it is computed
    """
    emb = _embedding(unet, sample, timestep, encoder_hidden_states, more.get("added_cond_kwargs"))
    text = encoder_hidden_states
    odd = any(size % 2**unet.num_upsamplers for size in sample.shape[-2:])
    x = unet.conv_in(sample)
    skips = [x]
    for block in unet.down_blocks:
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        for resnet, attention in zip(block.resnets, attentions, strict=True):
            if deep is not None and len(skips) > branch:
                break
            x = resnet(x, emb)
            x = x if attention is None else attention(x, encoder_hidden_states=text, return_dict=False)[0]
            skips.append(x)
        for sampler in block.downsamplers or []:
            if deep is None or len(skips) <= branch:
                x = sampler(x)
                skips.append(x)
    residuals = more.get("down_block_additional_residuals")
    if residuals is not None:
        skips = [skip + residual for skip, residual in zip(skips, residuals, strict=deep is None)]
    total = 1 + sum(len(b.resnets) + len(b.downsamplers or []) for b in unet.down_blocks)
    if deep is None or branch == total - 1:
        # the middle alone lies below the deepest, and what is added to it does not
        x = unet.mid_block(x, emb, encoder_hidden_states=text) if deep is None else deep
        came_up = x.clone()
        x = x if residuals is None else x + more["mid_block_additional_residual"]
    taken = total
    for block in unet.up_blocks:
        attentions = getattr(block, "attentions", [None] * len(block.resnets))
        for resnet, attention in zip(block.resnets, attentions, strict=True):
            taken -= 1
            if taken > branch and deep is not None:
                continue
            if taken == branch < total - 1:
                x = x if deep is None else deep
                came_up = x.clone()  # FreeU writes into it
            skip = skips[taken]
            if getattr(block, "s1", None):
                x, skip = apply_freeu(block.resolution_idx, x, skip, s1=block.s1, s2=block.s2, b1=block.b1, b2=block.b2)
            x = resnet(torch.cat([x, skip], dim=1), emb)
            x = x if attention is None else attention(x, encoder_hidden_states=text, return_dict=False)[0]
        for sampler in block.upsamplers or []:
            if deep is None or taken <= branch:
                x = sampler(x, skips[taken - 1].shape[2:] if odd else None)
    assert taken == 0
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(x))), came_up


def _embedding(unet: Any, sample: Tensor, timestep: Any, text: Tensor, added: Any) -> Tensor:
    times = torch.as_tensor(timestep).reshape(-1).expand(sample.shape[0])
    emb = unet.time_embedding(unet.time_proj(times).to(sample.dtype))
    extra = unet.get_aug_embed(emb=emb, encoder_hidden_states=text, added_cond_kwargs=added)
    return emb if extra is None else emb + extra
