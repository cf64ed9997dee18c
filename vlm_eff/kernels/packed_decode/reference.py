"""What decoding over packed entries means: read every segment back, attend to each, merge."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlm_eff.kernels.grouped_attention import attend_groups
from vlm_eff.kernels.packed_decode.pairs import Pair


def packed_decode(
    query: Tensor, segments: Sequence[Pair], *, scaling: float, softcap: float | None = None, return_lse: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """See `op.py`; numbers are read back in float32, in float64 for a float64 query, and not rounded on the way."""
    kind = torch.promote_types(query.dtype, torch.float32)
    groups = ((*pair.read(kind), pair.bias) for pair in segments)
    output, total = attend_groups(query, groups, scaling, softcap)
    return (output, total) if return_lse else output
