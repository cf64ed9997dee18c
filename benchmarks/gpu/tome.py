"""Bipartite matching and merging of tokens, against the matrix of similarities and scatter_reduce."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_eff.kernels.bipartite_match import best_partner
from vlm_eff.kernels.merge import merge_tokens

from .checks import TOLERANCE
from .session import Session

OP = "tome"


def _sets(session: Session, count: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    tokens = session.normal(2, count, width, dtype=dtype)
    return tokens[:, ::2], tokens[:, 1::2]


def check_values(session: Session) -> None:
    """Similarity of the chosen partner and merged tokens against float64; the partner must be as good as the best."""
    count = session.size(1501, 61)
    for dtype in session.dtypes:
        source, goal = _sets(session, count, 64, dtype)
        name = str(dtype).removeprefix("torch.")
        want, _ = best_partner(source.double(), goal.double(), backend="reference")
        _, partner = best_partner(source, goal, backend=session.backend)
        session.check(
            OP, f"{name} best", lambda s=source, g=goal: best_partner(s, g, backend=session.backend)[0], want, 1e-3
        )
        chosen = goal.double().gather(1, partner[..., None].expand(-1, -1, goal.shape[2]))
        reached = F.cosine_similarity(source.double(), chosen, dim=-1)
        session.check(OP, f"{name} partner", lambda r=reached: r, want, 1e-3)
        into = partner % 40
        size = torch.rand(into.shape, generator=session.generator, device=session.device) + 0.5
        merged, _ = merge_tokens(source.double(), into, 40, size.double(), backend="reference")
        session.check(
            OP,
            f"{name} merge",
            lambda s=source, i=into, z=size: merge_tokens(s, i, 40, z, backend=session.backend)[0],
            merged,
            TOLERANCE[dtype],
        )


def matrix(source: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
    """What official code does: all similarities, then the best of each row."""
    scores = F.normalize(source, dim=-1) @ F.normalize(goal, dim=-1).transpose(-1, -2)
    return tuple(scores.max(-1))  # type: ignore[return-value]


def scattered(hidden: Tensor, into: Tensor, count: int, size: Tensor) -> Tensor:
    """What official code does: a weighted scatter-sum in the order in which threads arrive."""
    weighted = hidden.float() * size[..., None]
    place = into[..., None].expand_as(weighted)
    total = torch.zeros(hidden.shape[0], count, hidden.shape[2], device=hidden.device).scatter_add_(1, place, weighted)
    sizes = torch.zeros(hidden.shape[0], count, device=hidden.device).scatter_add_(1, into, size)
    return (total / sizes.clamp(min=1e-12)[..., None]).to(hidden.dtype)


def time_sizes(session: Session) -> None:
    """A CLIP tower of 577 tokens, and the 8,192 of a video."""
    for full in (577, 8192):
        count = session.size(full, 64)
        source, goal = (part[:1].contiguous() for part in _sets(session, count, 1024, torch.bfloat16))
        pairs = float(source.shape[1] * goal.shape[1])
        session.time(
            OP,
            f"match {full} tokens",
            lambda s=source, g=goal: best_partner(s, g, backend=session.backend),
            {"matrix": lambda s=source, g=goal: matrix(s, g)},
            flops=2.0 * pairs * 1024,
        )
        kept = count // 4
        into = torch.randint(0, kept, source.shape[:2], generator=session.generator, device=session.device)
        size = torch.ones(source.shape[:2], device=session.device)
        session.time(
            OP,
            f"merge {full} tokens",
            lambda s=source, i=into, k=kept, z=size: merge_tokens(s, i, k, z, backend=session.backend),
            {"scatter": lambda s=source, i=into, k=kept, z=size: scattered(s, i, k, z)},
            numbers=2.0 * 1024 * (source.shape[1] + kept),
        )


STEPS = (check_values, time_sizes)
