"""What the attention of a whole layer says about how many entries it needs: sparsity and entropy.

Attention [B, H, R, S], row_valid [B, R], looks [B, R, S] as in `entry_scores.py`; every sign is one number a sample.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.importance.entry_scores import seen, visible


def sparsity(attention: Tensor, row_valid: Tensor, looks: Tensor, threshold: float = 0.01) -> Tensor:
    """Fraction of the attention of each head that is next to nothing [B, H] float32; 0 without rows.

    A pair counts as empty when its weight is below `threshold` times the largest of its row. VL-Cache
    (arXiv:2410.23317) takes the rows after the last image and the mean over heads; weights by `allocate.density`.
    """
    there = visible(row_valid, looks, attention.shape[1])
    weights = seen(attention, row_valid, looks)
    if not weights.shape[3]:
        return weights.new_zeros(weights.shape[:2])
    empty = (weights < threshold * weights.amax(3, keepdim=True)) & there
    return (empty.sum((2, 3)) / there.sum((2, 3)).clamp(min=1)).float()


def cross_entropy(
    attention: Tensor, row_valid: Tensor, looks: Tensor, row_modality: Tensor, key_modality: Tensor
) -> Tensor:
    """Entropy of the attention between text and images, both ways, per row and mean over heads [B] float32 (MEDA).

    row_modality: [B, R], key_modality: [B, S] or [B, Hkv, S]; 0 is text, all else is visual
    MEDA, arXiv:2502.17599: H(text to visual) / text rows + H(visual to text) / visual rows, with H = -sum a ln a over
    the block as it is. The official code takes the entropy of the full attention / T instead; this is the paper's form.
    Causal masks leave the second block nearly empty where one image stands first. Weights by `allocate.softmax`.
    """
    weights = seen(attention, row_valid, looks)
    terms = torch.special.entr(weights)
    made = weights.new_zeros(weights.shape[0])
    row_visual, key_visual = row_modality != 0, key_modality != 0
    if key_visual.dim() == 2:
        key_visual = key_visual[:, None]
    key_visual = key_visual.repeat_interleave(attention.shape[1] // key_visual.shape[1], dim=1)
    for visual in (False, True):
        rows = (row_visual == visual) & row_valid
        block = rows[:, None, :, None] & (key_visual != visual)[:, :, None, :]
        total = terms.masked_fill(~block, 0.0).sum((2, 3)).mean(1)
        made = made + total / rows.sum(1).clamp(min=1)
    return made.float()
