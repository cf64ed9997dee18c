"""One decode step over a packed cache, against attention over the same cache in 16 bits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import Tensor

from vlm_eff.kernels.packed_decode import ExactPair, PackedPair, launch, packed_decode
from vlm_eff.kernels.quantise import quantise

from .checks import LSE_TOLERANCE, TOLERANCE
from .pack import FORMATS
from .rivals import Rivals, sdpa
from .session import Goal, Session
from .timing import captured

OP = "packed_decode"
# (heads, key heads, width): Vicuna, Qwen2.5-VL, Mistral, narrow heads
_SHAPES = ((8, 8, 128), (7, 1, 128), (8, 2, 128), (4, 2, 64), (4, 4, 80))
_TAIL = 37


@contextmanager
def unpacking(asm: bool) -> Iterator[None]:
    """Whether words are unpacked by inline PTX or by portable code."""
    with mock.patch.object(launch, "ASM", asm):
        yield


def packed(key: Tensor, value: Tensor, bits: int) -> PackedPair:
    """Keys by channel, values by token."""
    return PackedPair(
        quantise(key, FORMATS[f"{bits} bits by channel"], backend="torch"),
        quantise(value, FORMATS[f"{bits} bits by token"], backend="torch"),
    )


def _states(session: Session, batch: int, heads: int, length: int, width: int, dtype: torch.dtype) -> list[Tensor]:
    return [session.normal(batch, heads, length, width, dtype=dtype) for _ in range(2)]


def check_values(session: Session) -> None:
    """Each width in bits alone, and all of them beside a tail in 16 bits, against float64 on what is stored."""
    length = session.size(2048, 128)
    for dtype, (heads, key_heads, width) in itertools.product(session.dtypes, _SHAPES):
        query = session.normal(2, heads, 1, width, dtype=dtype)
        pairs = {bits: packed(*_states(session, 2, key_heads, length, width, dtype), bits) for bits in (8, 4, 2)}
        tail = ExactPair(*_states(session, 2, key_heads, _TAIL, width, dtype))
        cases = {f"{bits} bits": [pair] for bits, pair in pairs.items()} | {"mixed": [*pairs.values(), tail]}
        for case, segments in cases.items():
            # what is stored, read exactly: the error of quantising is none of the kernel's
            exact = [ExactPair(*one.read(torch.float64)) for one in segments]
            options = {"scaling": width**-0.5, "return_lse": True}
            want, lse = packed_decode(query.double(), exact, **options, backend="reference")
            name = f"{str(dtype).removeprefix('torch.')} {(heads, key_heads, width)} {case}"

            def run(part: int, q: Tensor = query, s: list = segments, o: dict = options) -> Tensor:
                return packed_decode(q, s, **o, backend=session.backend)[part]

            session.check(OP, name, lambda r=run: r(0), want, TOLERANCE[dtype])
            session.check(OP, f"{name} lse", lambda r=run: r(1), lse, 4 * LSE_TOLERANCE[dtype], absolute=True)


def check_unpacking(session: Session) -> None:
    """Inline PTX against portable code, bit for bit."""
    for dtype, bits in itertools.product(session.dtypes, (8, 4, 2)):
        query = session.normal(2, 8, 1, 128, dtype=dtype)
        pair = packed(*_states(session, 2, 2, session.size(4096, 128), 128, dtype), bits)
        made = []
        for asm in (False, True):
            with unpacking(asm):
                made.append(packed_decode(query, [pair], scaling=0.1, backend=session.backend))
        session.exact(OP, f"{str(dtype).removeprefix('torch.')} {bits} bits asm equals portable", made[1], made[0])


def check_graph(session: Session) -> None:
    """Captured as a CUDA graph, replayed on another query: bit for bit what a call gives."""
    query = session.normal(2, 8, 1, 128)
    pair = packed(*_states(session, 2, 2, session.size(4096, 128), 128, torch.float16), 4)
    tail = ExactPair(*_states(session, 2, 2, _TAIL, 128, torch.float16))
    made: list[Tensor] = []

    def run() -> None:
        made[:] = [packed_decode(query, [pair, tail], scaling=0.1, backend=session.backend)]

    run()
    graph = None if session.dry else captured(run)
    if graph is None and not session.dry:
        session.add(OP, "graph", "check", error=float("inf"), right=False, text="cannot be captured")
        return
    query.copy_(session.normal(2, 8, 1, 128))
    run() if graph is None else graph.replay()
    got = made[0].clone()
    session.exact(OP, "graph", got, packed_decode(query, [pair, tail], scaling=0.1, backend=session.backend))


def rows_of_groups(query: Tensor, key: Tensor, value: Tensor) -> Rivals:
    """Attention that takes the heads of a group for query rows, so that keys are read once: the best dense form."""
    rows = query.reshape(query.shape[0], key.shape[1], -1, query.shape[3])
    return sdpa(rows, key, value, causal=False).renamed(", heads as rows")


def time_steps(session: Session) -> None:
    """Qwen2.5-VL at 32k tokens, batches of 1 and 8; LLaVA-NeXT at 2,944."""
    cases = [("qwen", 28, 4, 32768, 1), ("qwen", 28, 4, 32768, 8)]
    if not session.quick:
        cases += [("next", 32, 32, 2944, 1), ("next", 32, 32, 2944, 8)]
    for name, heads, key_heads, full, batch in cases:
        length = session.size(full, 256)
        heads, key_heads = session.heads(heads, key_heads)
        query = session.normal(batch, heads, 1, 128)
        key, value = _states(session, batch, key_heads, length, 128, torch.float16)
        rivals = sdpa(query, key, value, causal=False, math=session.dry) | rows_of_groups(query, key, value)
        exact = ExactPair(key, value)
        rivals.calls["ours, 16 bits"] = lambda q=query, e=exact: packed_decode(
            q, [e], scaling=0.0884, backend=session.backend
        )
        for bits, asm in ((4, True), (4, False), (8, False), (2, False)):
            pair = packed(key, value, bits)
            goals = (Goal(2.2, faster_than="sdpa"), Goal(0.65, share="copy")) if bits == 4 and full == 32768 else ()
            with unpacking(asm):
                session.time(
                    OP,
                    f"{name} {length} batch {batch} INT{bits}{' asm' if asm else ''}",
                    lambda q=query, p=pair: packed_decode(q, [p], scaling=0.0884, backend=session.backend),
                    rivals,
                    numbers=float(pair.key.bytes + pair.value.bytes),
                    flops=4.0 * batch * heads * length * 128,
                    goals=goals,
                )


STEPS = (check_values, check_unpacking, check_graph, time_steps)
