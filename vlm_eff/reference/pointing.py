"""Pointing: one decoder layer is shown where to look in order to answer.

A side task of training without weights of its own. At the places where an answer is due, two heads of one layer should
look at the patches of what is asked about; in a question about two objects they should do so where each is named. Found
by itself, looking at what was named takes a small model several times as many pictures.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from .dense import SIDE, covered_patches
from .model import VISUAL_TOKENS
from .questions import Question

RELATION_WORDS = ("left", "right", "above", "below")
_HEADS = 2  # the first heads of the layer; they share one key head in every preset


def pointing_layer(layers: int) -> int:
    """Return the layer that is shown where to look: early enough to use what it found, late enough to know what for."""
    return min(3, layers - 1)


def pointing_targets(asked: list[tuple[Question, int, list[str]]]) -> list[tuple[int, int]]:
    """Return (place in the row, index into the boxes of the row) for questions with known boxes.

    `asked` holds each question with the place where it starts and its words.
    """
    found = []
    number = 0
    for question, start, words in asked:
        end = start + len(words)
        if len(question.boxes) == 1:
            # the cue after the question, and the answer's own tokens
            answer = len(question.answer.split())
            found += [(end + 1 + place, number) for place in range(answer)]
        elif len(question.boxes) == 2:
            middle = next(place for place, word in enumerate(words) if word in RELATION_WORDS)
            found += [(start + middle - 1, number), (end - 2, number + 1)]
        number += len(question.boxes)
    return found


def patch_mask(box: tuple[int, int, int, int]) -> torch.Tensor:
    """Return which patches a box covers, [V] of bool."""
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[covered_patches(box)] = True
    return mask.view(VISUAL_TOKENS)


def pointing_loss(
    layer: nn.Module,
    hidden: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    places: torch.Tensor,
    wanted: torch.Tensor,
    prefix: int,
) -> torch.Tensor:
    """Return minus the log of the attention that falls on the wanted patches.

    Args:
        layer: the decoder layer; `hidden` is its input [B, L, D].
        rotary: cosines and sines of all positions, [B, L, Dh] each.
        places: row and column of N looking tokens, [N, 2].
        wanted: [N, V] of bool.
        prefix: number of tokens up to the end of the picture.
    """
    if len(places) == 0:
        return hidden.new_zeros(())
    attention = layer.self_attn
    width = attention.head_dim
    normed = layer.input_layernorm(hidden)
    row, column = places.unbind(1)
    cos, sin = rotary
    cos, sin = cos.expand(len(hidden), -1, -1), sin.expand(len(hidden), -1, -1)
    query = attention.q_proj(normed[row, column]).view(len(places), -1, width)[:, None, :_HEADS].transpose(1, 2)
    query, _ = apply_rotary_pos_emb(query, query, cos[row, column][:, None], sin[row, column][:, None])
    key = attention.k_proj(normed[:, :prefix]).view(len(hidden), prefix, -1, width)[:, :, :1].transpose(1, 2)
    key, _ = apply_rotary_pos_emb(key, key, cos[:, :prefix], sin[:, :prefix])
    scores = (query @ key[row].transpose(-1, -2)).squeeze(2) * width**-0.5  # [N, heads, prefix]
    weights = F.log_softmax(scores, dim=-1)[..., prefix - wanted.shape[1] :]
    return -weights.masked_fill(~wanted[:, None], -1e9).logsumexp(-1).mean()
