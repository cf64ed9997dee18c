"""Importance from one row of attention: softmax in float32, heads averaged."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vlm_eff.importance.adaptive import mass_count
from vlm_eff.importance.select import top_k


def important(mass: Tensor, looks: Tensor, keep_mass: float, valid: Tensor) -> Tensor:
    """Mask [B, N] of the tokens that a layer's attention rests on (ZipVL, arXiv:2410.08584).

    mass:  [B, N] what each token gets, summed over query rows; looks: [B, N] rows that may look at it; valid: [B, N]
    As many tokens as the fewest that together get a fraction `keep_mass` of all, but chosen by what they get a look:
    causal attention lets early tokens be looked at more often. Ties go to the lower index.
    """
    return top_k(mass / looks.clamp(min=1), mass_count(mass, keep_mass, valid), valid)


def raters(image: Tensor, words: Tensor, image_valid: Tensor, words_valid: Tensor) -> Tensor:
    """Mask [B, T] of the words that the image bears on most (SparseVLM, arXiv:2410.04417); none may be.

    image: [B, V, D], words: [B, T, D] states before the first layer; *_valid: which of them exist
    Every image token shares itself out over the words, by the softmax of their products; a word is a rater when what it
    gets is above the words' mean (by more than rounding can move it).
    """
    like = image.float() @ words.float().transpose(1, 2)
    share = like.masked_fill(~words_valid[:, None], float("-inf")).softmax(-1).nan_to_num(0.0)
    got = share.masked_fill(~image_valid[:, :, None], 0.0).sum(1)
    mean = got.sum(1, keepdim=True) / words_valid.sum(1, keepdim=True).clamp(min=1)
    return (got > mean * (1 + 1e-5)) & words_valid


def row_scores(logits: Tensor, columns: Tensor, valid: Tensor, *, over: Literal["all", "visual"]) -> Tensor:
    """Attention of one query to the candidates, mean over heads [B, V]; 0 for candidates that do not exist.

    logits:  [B, H, S] masked attention logits of the query over all keys (float32)
    columns: [B, V] key column of each candidate; valid: [B, V] which candidates exist
    over:    "all" takes the softmax over every visible key (FastV, PyramidDrop), "visual" over the candidates (FEATHER)
    """
    if over == "all":
        return paid_scores(logits.softmax(-1), columns, valid)
    wanted = columns[:, None, :].expand(-1, logits.shape[1], -1)
    scores = logits.gather(2, wanted).masked_fill(~valid[:, None], float("-inf")).softmax(-1)
    # a row without candidates has no softmax
    return torch.where(valid, scores.nan_to_num(0.0).mean(1), 0.0)


def paid_scores(weight: Tensor, columns: Tensor, valid: Tensor) -> Tensor:
    """What the candidates get, mean over heads [B, V], of attention [B, H, S]; 0 for candidates that do not exist."""
    scores = weight.gather(2, columns[:, None, :].expand(-1, weight.shape[1], -1))
    return torch.where(valid, scores.nan_to_num(0.0).mean(1), 0.0)
