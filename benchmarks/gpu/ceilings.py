"""What the device does at best, measured in the same run: a large copy and a large matrix product."""

from __future__ import annotations

import torch

from .session import Session

NAME = "ceilings"


def measure(session: Session) -> None:
    """Bytes a second of a copy, read and written; FLOPs a second of a bfloat16 product; on random numbers."""
    count = session.size(1 << 29, 1 << 12)
    source = torch.empty(count, dtype=torch.float16, device=session.device)
    # in pieces: random numbers of this many would take as many float32 beside them
    for piece in source.split(1 << 26):
        piece.copy_(session.normal(piece.numel()))
    goal = torch.empty_like(source)
    side = session.size(8192, 64)
    left, right = (session.normal(side, side, dtype=torch.bfloat16) for _ in range(2))
    timed = session.clock.times({"copy": lambda: goal.copy_(source), "matmul": lambda: left @ right})
    amounts = {"copy": 2.0 * source.numel() * source.element_size(), "matmul": 2.0 * side**3}
    for name, amount in amounts.items():
        session.ceilings[name] = amount / (timed[name].median * 1e-6)
        session.add(NAME, name, "time", per_second=session.ceilings[name], arms={name: timed[name].to_dict()})


STEPS = (measure,)
