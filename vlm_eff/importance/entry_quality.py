"""What a layer's output loses when cache entries go: the exact change, and its closed forms to second order.

attention, logits [B, H, R, S]; values [B, Hkv, S, Dh]; row_valid [B, R]; looks [B, R, S] as in `entry_scores.py`. The
logits are those the softmax was taken of (scaled, before the mask). With o = sum_j A_j v_j the output of a row and
head, deleting the entry j changes it by A_j / (1 - A_j) * (o - v_j); deleting a set leaves the renormalised rest.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vlm_eff.importance.entry_scores import by_group, real, seen, visible

Form = Literal["exact", "value", "key", "cross", "joint"]


def deletion_cost(
    attention: Tensor,
    logits: Tensor,
    values: Tensor,
    row_valid: Tensor,
    looks: Tensor,
    *,
    form: Form = "exact",
    centre: bool = False,
    pair_weights: Tensor | None = None,
    metric: Tensor | None = None,
) -> Tensor:
    """Squared change of the output when each entry goes alone, summed over rows and query heads [B, Hkv, S].

    form: "exact" is the deletion itself, sum (A / (1 - A))^2 |v - o|^2. The others are the Gauss-Newton forms of
        Optimal Brain Damage in the manner of OBCache: the value, the key or both set to zero,
        "value" sum A^2 |v|^2; "key" sum (A z)^2 |v - o|^2; "cross" 2 sum A^2 z (|v|^2 - o v); "joint" their sum
    centre: take the mean over what a row may look at from its logits first. A key set to zero has logit 0, not minus
        infinity, so "key", "cross" and "joint" move with a common offset of the logits; "exact" and "value" do not
    pair_weights: [B, R, S] or [B, Hkv, R, S] factors of the squares, see `modality_weights`; None is all ones
    metric: [H, Dh, Dh] G = W^T W of each head's part W of the output projection, so that |x|^2 is x G x; None is |x|^2
    An entry that is all a row may look at costs the whole output |o|^2. Forms in |x|^2 are at least 0; "cross" and
    "joint" may be below. Cost: a few [B, H, R, S] tensors and one more product of attention and values.
    """
    weights = seen(attention, row_valid, looks)
    there = visible(row_valid, looks, attention.shape[1])
    heads = values.shape[1]
    held = real(values).to(weights.dtype)
    # every query head beside the values of its key head
    held = held.repeat_interleave(weights.shape[1] // heads, dim=1)
    if form == "exact":
        made = weights.square() * _far_from_rest(weights, held, metric)
    else:
        scored = real(logits).to(weights.dtype).masked_fill(~there, 0.0)
        if centre:
            mean = scored.sum(3, keepdim=True) / there.sum(3, keepdim=True).clamp(min=1)
            scored = (scored - mean).masked_fill(~there, 0.0)
        out = weights @ held
        size, overlap = _size(held, metric)[:, :, None], _product(out, held, metric)
        far = (size - 2 * overlap + _size(out, metric)[..., None]).clamp(min=0)
        parts = {
            "value": weights.square() * size,
            "key": (weights * scored).square() * far,
            "cross": 2 * weights.square() * scored * (size - overlap),
        }
        made = parts["value"] + parts["key"] + parts["cross"] if form == "joint" else parts[form]
    if pair_weights is not None:
        paired = pair_weights if pair_weights.dim() == 4 else pair_weights[:, None]
        made = made * paired.repeat_interleave(made.shape[1] // paired.shape[1], 1).to(made.dtype)
    return by_group(made.masked_fill(~there, 0.0).sum(2), heads)


def _far_from_rest(weights: Tensor, held: Tensor, metric: Tensor | None) -> Tensor:
    """|v_j - o_j|^2 [B, H, R, S] with o_j the output of the row without j: A_j^2 times this is the exact change.

    For most entries o_j = (o - A_j v_j) / (1 - A_j). Where A_j is near 1 that cancels, so the one entry that can be
    above a half is left out of the sum instead of taken from it.
    """
    if not weights.shape[3]:
        return weights
    top = weights.argmax(3, keepdim=True)
    others = weights.scatter(3, top, 0.0)
    out = weights @ held
    # v - o_j = (v - o) / (1 - A), and all but the top have A of at most a half
    left = (1 - weights).clamp(min=0.5)
    size = _size(held, metric)[:, :, None]
    far = (size - 2 * _product(out, held, metric) + _size(out, metric)[..., None]).clamp(min=0)
    far = far / left.square()
    rest = others.sum(3, keepdim=True)
    without = torch.where(rest > 0, (others / rest.clamp(min=torch.finfo(rest.dtype).tiny)) @ held, 0.0)
    best = held.gather(2, top.squeeze(3)[..., None].expand(*top.shape[:3], held.shape[3]))
    return far.scatter(3, top, _size(best - without, metric)[..., None])


def _size(x: Tensor, metric: Tensor | None) -> Tensor:
    """|x|^2 over the last dimension: [B, H, N, Dh] -> [B, H, N]."""
    return (x * _through(x, metric)).sum(-1)


def _product(x: Tensor, y: Tensor, metric: Tensor | None) -> Tensor:
    """Products of all pairs: [B, H, R, Dh], [B, H, S, Dh] -> [B, H, R, S]."""
    return _through(x, metric) @ y.transpose(2, 3)


def _through(x: Tensor, metric: Tensor | None) -> Tensor:
    return x if metric is None else x @ metric.to(x.dtype)


def modality_weights(beta: Tensor, row_modality: Tensor, key_modality: Tensor) -> Tensor:
    """Weight of each pair of row and key, beta[modality of key, modality of row] [B, R, S] or [B, Hkv, R, S].

    beta: [M, M], all ones for no preference; row_modality: [B, R]; key_modality: [B, S] or [B, Hkv, S]
    """
    if key_modality.dim() == 3:
        return beta[key_modality[:, :, None, :], row_modality[:, None, :, None]]
    return beta[key_modality[:, None, :], row_modality[:, :, None]]
