"""Importance of all keys from a few query rows, against the matrix that eager attention builds."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from vlm_eff.kernels.window_scores import window_lse, window_scores

from .checks import LSE_TOLERANCE
from .session import Goal, Session

OP = "window_scores"
# (heads, key heads, width): Vicuna, Qwen2.5-VL, SigLIP's width
_SHAPES = ((8, 8, 128), (7, 1, 128), (4, 4, 72))
_ROWS = 32


def _inputs(session: Session, dtype: torch.dtype, shape: tuple[int, int, int], length: int) -> tuple[Tensor, Tensor]:
    heads, key_heads, width = shape
    return (
        session.normal(2, heads, _ROWS, width, dtype=dtype),
        session.normal(2, key_heads, length, width, dtype=dtype),
    )


def check_values(session: Session) -> None:
    """Scores and sums against float64, odd length, left padding."""
    length = session.size(2943, 150)
    first = torch.tensor([0, 37], device=session.device, dtype=torch.int32)
    for dtype, shape in itertools.product(session.dtypes, _SHAPES):
        query, key = _inputs(session, dtype, shape, length)
        options = {"scaling": shape[2] ** -0.5, "first": first}
        want = window_scores(query.double(), key.double(), **options, backend="reference")
        lse = window_lse(query.double(), key.double(), **options, backend="reference")
        name = f"{dtype} {shape}".removeprefix("torch.")

        def scores(q: Tensor = query, k: Tensor = key, o: dict = options) -> Tensor:
            return window_scores(q, k, **o, backend=session.backend)

        def sums(q: Tensor = query, k: Tensor = key, o: dict = options) -> Tensor:
            return window_lse(q, k, **o, backend=session.backend)

        session.check(OP, name, scores, want, 1e-3)
        session.check("window_lse", name, sums, lse, LSE_TOLERANCE[dtype], absolute=True)


def eager(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """What official codes do: repeat the keys, build the float32 matrix of the rows, mask, softmax, sum."""
    groups = query.shape[1] // key.shape[1]
    rows, length = query.shape[2], key.shape[2]
    logits = (query @ key.repeat_interleave(groups, 1).transpose(-1, -2)) * scaling
    position = torch.arange(length - rows, length, device=query.device)[:, None]
    hidden = torch.arange(length, device=query.device) > position
    weights = logits.float().masked_fill(hidden, torch.finfo(torch.float32).min).softmax(-1)
    return weights.sum(2).unflatten(1, (-1, groups)).sum(2)


def time_layers(session: Session) -> None:
    """One layer of Qwen2.5-VL at 32k tokens and of LLaVA-NeXT at 2,944."""
    cases = {"qwen 32768": (28, 4, 128, 32768), "next 2944": (32, 32, 128, 2944)}
    for name, (heads, key_heads, width, length) in cases.items():
        length = session.size(length, 200)
        heads, key_heads = session.heads(heads, key_heads)
        query = session.normal(1, heads, _ROWS, width, dtype=torch.bfloat16)
        key = session.normal(1, key_heads, length, width, dtype=torch.bfloat16)
        scaling = width**-0.5
        lse = window_lse(query, key, scaling=scaling, backend=session.backend)
        goals = (Goal(60.0, most_us=True), Goal(5.0, faster_than="eager")) if "32768" in name else ()
        session.time(
            OP,
            f"{name} rows {_ROWS}",
            lambda q=query, k=key, s=scaling: window_scores(q, k, scaling=s, backend=session.backend),
            {
                "eager": lambda q=query, k=key, s=scaling: eager(q, k, s),
                "ours, sums known": lambda q=query, k=key, s=scaling, n=lse: window_scores(
                    q, k, scaling=s, lse=n, backend=session.backend
                ),
                "ours, torch": lambda q=query, k=key, s=scaling: window_scores(q, k, scaling=s, backend="torch"),
            },
            # the keys are read in both passes
            numbers=2.0 * key.numel() * key.element_size() + 4.0 * key_heads * length,
            flops=4.0 * heads * _ROWS * length * width,
            goals=goals,
        )


STEPS = (check_values, time_layers)
