"""What every key gets from all rows, against chunks of the matrix and against the backward pass of SDPA."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from vlm_eff.kernels.column_scores import column_scores
from vlm_eff.kernels.window_scores import window_lse

from .session import Session

OP = "column_scores"
_SHAPES = ((4, 4, 128), (7, 1, 128), (4, 4, 64))
_CHUNK = 256


def check_values(session: Session) -> None:
    """Against float64, as sums and divided by the rows that see a key; left padding."""
    length = session.size(1501, 151)
    first = torch.tensor([0, 41], device=session.device, dtype=torch.int32)
    for dtype, shape, normalise in itertools.product(session.dtypes, _SHAPES, ("none", "visible")):
        heads, key_heads, width = shape
        query = session.normal(2, heads, length, width, dtype=dtype)
        key = session.normal(2, key_heads, length, width, dtype=dtype)
        options = {"scaling": width**-0.5, "first": first, "normalise": normalise}
        want = column_scores(query.double(), key.double(), **options, backend="reference")

        def run(q: Tensor = query, k: Tensor = key, o: dict = options) -> Tensor:
            return column_scores(q, k, **o, backend=session.backend)

        session.check(OP, f"{str(dtype).removeprefix('torch.')} {shape} {normalise}", run, want, 2e-3)


def chunked(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Plain PyTorch without the whole matrix: softmax of some rows at a time, added up."""
    groups, length = query.shape[1] // key.shape[1], key.shape[2]
    keys = key.repeat_interleave(groups, 1).transpose(-1, -2)
    total = torch.zeros(query.shape[0], query.shape[1], length, device=query.device)
    place = torch.arange(length, device=query.device)
    for begin in range(0, length, _CHUNK):
        rows = query[:, :, begin : begin + _CHUNK]
        hidden = place > place[begin : begin + _CHUNK, None]
        total += ((rows @ keys).float() * scaling).masked_fill(hidden, float("-inf")).softmax(-1).sum(2)
    return total.unflatten(1, (-1, groups)).sum(2)


def by_backward(query: Tensor, key: Tensor) -> Tensor:
    """The gradient of attention's first output channel by the values is the column sum: SDPA's own two passes."""
    groups = query.shape[1] // key.shape[1]
    keys = key.repeat_interleave(groups, 1)
    with torch.enable_grad():
        value = torch.zeros_like(keys).requires_grad_()
        made = F.scaled_dot_product_attention(query, keys, value, is_causal=True)
        (gradient,) = torch.autograd.grad(made[..., 0].sum(), value)
    return gradient[..., 0].unflatten(1, (-1, groups)).sum(2)


def time_lengths(session: Session) -> None:
    """LLaVA-NeXT at 2,944 tokens and Qwen2.5-VL at 8k and 32k, sums of rows known or not."""
    cases = {"next 2944": (32, 32, 2944), "qwen 8192": (28, 4, 8192), "qwen 32768": (28, 4, 32768)}
    if session.quick:
        del cases["qwen 8192"]
    for name, (heads, key_heads, full) in cases.items():
        length = session.size(full, 200)
        heads, key_heads = session.heads(heads, key_heads)
        query = session.normal(1, heads, length, 128, dtype=torch.bfloat16)
        key = session.normal(1, key_heads, length, 128, dtype=torch.bfloat16)
        scaling = 128**-0.5
        lse = window_lse(query, key, scaling=scaling, backend=session.backend)
        rivals = {
            "ours, sums unknown": lambda q=query, k=key, s=scaling: column_scores(
                q, k, scaling=s, backend=session.backend
            ),
            "sdpa backward": lambda q=query, k=key: by_backward(q, k),
        }
        if full < 32768:
            # at 32k its chunks take a second
            rivals["chunks of rows"] = lambda q=query, k=key, s=scaling: chunked(q, k, s)
        session.time(
            OP,
            name,
            lambda q=query, k=key, s=scaling, n=lse: column_scores(q, k, scaling=s, lse=n, backend=session.backend),
            rivals,
            # only what lies below the diagonal
            flops=float(heads * 128 * length**2),
        )


STEPS = (check_values, time_lengths)
