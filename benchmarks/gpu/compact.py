"""Keeping some rows of several tensors at once, against one gather each."""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_eff.kernels.compact import compact

from .selected_attention import chosen
from .session import Session

OP = "compact"


def _layer(session: Session, length: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    return [
        session.normal(1, length, width, dtype=dtype),
        session.normal(1, length, 128, dtype=dtype),
        session.normal(1, length, 128, dtype=dtype),
        torch.arange(length, device=session.device)[None],
    ]


def check_bits(session: Session) -> None:
    """Rows of a layer's tensors and of a cache by head, bit for bit."""
    length = session.size(1501, 151)
    for dtype in session.dtypes:
        tensors, index = _layer(session, length, 1152, dtype), chosen(session, 1, length, 0.5)
        name = str(dtype).removeprefix("torch.")
        made = compact(tensors, index, backend=session.backend)
        for number, (got, tensor) in enumerate(zip(made, tensors, strict=True)):
            session.exact(OP, f"{name} tensor {number}", got, tensor.index_select(1, index[0]))
        key = session.normal(2, 4, length, 72, dtype=dtype)
        heads = torch.stack([chosen(session, 4, length, 0.3) for _ in range(2)])
        want = key.gather(2, heads[..., None].expand(-1, -1, -1, 72))
        session.exact(OP, f"{name} by head", compact([key], heads, backend=session.backend)[0], want)


def time_layers(session: Session) -> None:
    """Hidden states, two rotary tables and positions of one layer, half of the tokens kept; a cache by head."""
    for full in (2944, 32768):
        length = session.size(full, 100)
        tensors, index = _layer(session, length, 4096, torch.bfloat16), chosen(session, 1, length, 0.5)
        moved = sum(tensor[:, : index.shape[1]].numel() * tensor.element_size() for tensor in tensors)
        session.time(
            OP,
            f"layer {full}",
            lambda t=tensors, i=index: compact(t, i, backend=session.backend),
            {"index_select each": lambda t=tensors, i=index: [one.index_select(1, i[0]) for one in t]},
            numbers=2.0 * moved,
        )
        key = session.normal(1, 8, length, 128, dtype=torch.bfloat16)
        heads = chosen(session, 8, length, 0.5)[None]
        wide = heads[..., None].expand(-1, -1, -1, 128)
        session.time(
            OP,
            f"cache by head {full}",
            lambda k=key, h=heads: compact([k], h, backend=session.backend),
            {"gather": lambda k=key, w=wide: k.gather(2, w)},
            numbers=2.0 * key.element_size() * heads.numel() * 128,
        )


STEPS = (check_bits, time_layers)
