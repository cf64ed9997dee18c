"""Importance from one row of attention: softmax in float32, heads averaged."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor


def row_scores(logits: Tensor, columns: Tensor, valid: Tensor, *, over: Literal["all", "visual"]) -> Tensor:
    """Attention of one query to the candidates, mean over heads [B, V]; 0 for candidates that do not exist.

    logits:  [B, H, S] masked attention logits of the query over all keys (float32)
    columns: [B, V] key column of each candidate; valid: [B, V] which candidates exist
    over:    "all" takes the softmax over every visible key (FastV, PyramidDrop), "visual" over the candidates (FEATHER)
    """
    wanted = columns[:, None, :].expand(-1, logits.shape[1], -1)
    if over == "all":
        scores = logits.softmax(-1).gather(2, wanted)
    else:
        scores = logits.gather(2, wanted).masked_fill(~valid[:, None], float("-inf")).softmax(-1)
    # a row without candidates has no softmax
    return torch.where(valid, scores.nan_to_num(0.0).mean(1), 0.0)
