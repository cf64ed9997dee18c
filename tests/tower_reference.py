"""ToMe written down once more, from the paper, as a loop over single images for timm towers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def features(model: Any, pixels: Tensor, r: int, *, proportional: bool = True) -> list[Tensor]:
    """What is left of each image behind the last norm [T, D], class token and registers first."""
    hidden = model.norm_pre(model._pos_embed(model.patch_embed(pixels)))
    made = []
    for image in hidden:
        tokens, sizes = image, torch.ones(len(image))
        for block in model.blocks:
            tokens, sizes = _block(block, tokens, sizes, r, model.num_prefix_tokens, proportional)
        assert sizes.sum() == len(image)
        made.append(model.norm(tokens))
    return made


def _block(block: Any, tokens: Tensor, sizes: Tensor, r: int, prefix: int, proportional: bool) -> tuple[Tensor, Tensor]:
    attention = block.attn
    projected = attention.qkv(block.norm1(tokens)).view(len(tokens), 3, attention.num_heads, -1)
    query, key, value = projected.permute(1, 2, 0, 3)
    logits = attention.q_norm(query) @ attention.k_norm(key).transpose(1, 2) * attention.scale
    weights = (logits + sizes.log() if proportional else logits).softmax(-1)
    tokens = tokens + block.ls1(attention.proj((weights @ value).transpose(0, 1).flatten(1)))
    groups = matched(attention.k_norm(key).mean(0), min(r, (len(tokens) - prefix) // 2), prefix)
    tokens = torch.stack([(tokens[g] * sizes[g, None]).sum(0) / sizes[g].sum() for g in groups])
    sizes = torch.stack([sizes[g].sum() for g in groups])
    return tokens + block.ls2(block.mlp(block.norm2(tokens))), sizes


def matched(metric: Tensor, r: int, prefix: int) -> list[list[int]]:
    """Groups of tokens that become one: protected, then unmerged even ones, then odd ones with what joins them."""
    unit = metric / metric.norm(dim=-1, keepdim=True)
    even = [i for i in range(prefix, len(unit)) if i % 2 == 0]
    odd = [i for i in range(prefix, len(unit)) if i % 2 == 1]
    pairs = []
    for one in even:
        similar = [(unit[one] @ unit[other]).item() for other in odd]
        if similar:
            pairs.append((max(similar), one, odd[similar.index(max(similar))]))
    pairs = sorted(pairs, key=lambda pair: (-pair[0], pair[1]))[:r]
    gone = {one: other for _, one, other in pairs}
    groups = [[i] for i in range(prefix)] + [[i] for i in even if i not in gone]
    return groups + [[other] + [one for one, target in gone.items() if target == other] for other in odd]
