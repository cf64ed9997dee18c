"""Quantising and packing a prompt's keys and values in one pass, against the passes of eager PyTorch."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from vlm_eff.kernels.format import Format
from vlm_eff.kernels.quantise import Quantised, quantise

from .session import Goal, Session

OP = "pack"
# keys by channel in groups of 64 entries, values by token in groups of 64 numbers (KIVI's layout)
FORMATS = {
    f"{bits} bits by {axis}": Format(bits=bits, axis=axis, group=32 if bits == 2 else 64)  # type: ignore[arg-type]
    for bits, axis in itertools.product((8, 4, 2), ("channel", "token"))
}


def check_bits(session: Session) -> None:
    """Bit for bit what the definition makes, groups that are not full included."""
    length = session.size(1500, 150)
    for dtype, (name, format) in itertools.product(session.dtypes, FORMATS.items()):
        x = session.normal(2, 4, length, 128, dtype=dtype)
        want, got = (quantise(x, format, backend=form) for form in ("reference", session.backend))
        for part in ("codes", "scale", "lowest"):
            case = f"{str(dtype).removeprefix('torch.')} {name} {part}"
            session.exact(OP, case, getattr(got, part), getattr(want, part))


def eager(x: Tensor, format: Format) -> Quantised:
    """The definition in plain PyTorch, a dozen passes over the entries."""
    return quantise(x, format, backend="reference")


def time_layers(session: Session) -> None:
    """Keys and values of one layer of Qwen2.5-VL at 32k tokens and of LLaVA-NeXT at 2,944."""
    for name, (heads, full) in {"qwen 32768": (4, 32768), "next 2944": (32, 2944)}.items():
        length, heads = session.size(full, 128), session.size(heads, 1)
        key, value = (session.normal(1, heads, length, 128, dtype=torch.bfloat16) for _ in range(2))
        for bits in (4, 8, 2):
            by_channel, by_token = (FORMATS[f"{bits} bits by {axis}"] for axis in ("channel", "token"))

            def ours(k: Tensor = key, v: Tensor = value, c: Format = by_channel, t: Format = by_token) -> object:
                return quantise(k, c, backend=session.backend), quantise(v, t, backend=session.backend)

            def theirs(k: Tensor = key, v: Tensor = value, c: Format = by_channel, t: Format = by_token) -> object:
                return eager(k, c), eager(v, t)

            written = sum(one.bytes for one in ours())  # type: ignore[attr-defined]
            goals = (Goal(0.6, share="copy"),) if bits == 4 and "32768" in name else ()
            session.time(
                OP,
                f"{name} {bits} bits",
                ours,
                {"eager": theirs},
                numbers=float(2 * key.numel() * key.element_size() + written),
                goals=goals,
            )


STEPS = (check_bits, time_layers)
