"""Decoding over packed entries: every form against float64, and every property against something that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.kit import BACKENDS, LSE_TOLERANCE, TOLERANCE, fresh, normal, relative
from tests.kernels.packed_decode.oracle import Case, arguments, rounded, wanted
from vlm_eff.kernels.format import Format
from vlm_eff.kernels.packed_decode import ExactPair, PackedPair, fast, launch, packed_decode
from vlm_eff.kernels.quantise import quantise

CASES = {
    "int4": Case(count=300),
    "int4 odd": Case(count=151, width=64, heads=7, shared=1),
    "int8": Case(8, count=150, width=80, batch=2, heads=2, shared=1),
    "int2": Case(2, count=300, width=64, heads=4),
    "int1 by channel": Case(1, value="channel", count=304),
    "by token": Case(4, key="token", width=72, rows=3),
    "groups of 32": Case(4, group=32, count=320, heads=7, shared=1),
    "groups of 32 by token": Case(2, key="token", group=32, count=150, heads=1, shared=1),
    "groups of 64 by channel": Case(4, value="channel", group=64, count=192, batch=2, heads=1, shared=1),
    "groups of 20": Case(8, key="token", value="channel", group=20, count=110, width=80, heads=1, shared=1),
    "filled up": Case(2, group=32, count=160, heads=2, shared=1, batch=2, fillers=True),
    "filled up by channel": Case(4, "token", "channel", group=64, count=128, batch=2, heads=1, shared=1, fillers=True),
    "tail": Case(count=128, tail=37, width=80, rows=2, bias="shared"),
    "capped": Case(count=128, tail=70, heads=4, bias="query heads", softcap=3.0),
    "weights": Case(8, value="channel", count=128, width=64, heads=4, bias="key heads"),
    "wide": Case(count=64, width=256, heads=1, shared=1),
    "narrow": Case(4, key="token", count=64, width=16),
    "one": Case(count=1, tail=1, heads=1, shared=1),
}
BOTH = (torch.float32, torch.float16)


def run(backend: str, **call: Any) -> tuple[Tensor, Tensor]:
    made = packed_decode(**call, return_lse=True, backend=backend)
    assert isinstance(made, tuple)
    return made


def off(got: tuple[Tensor, Tensor], call: dict[str, Any], dtype: torch.dtype, backend: str) -> list[str]:
    """What is farther from float64 than it may be: a fixed share, and what `rounded` says of these very operands.

    The kernel rounds factors to the type of the query, all else is float32; `torch` adds codes that are never negative.
    """
    want, inside = wanted(**call), dtype if backend == "triton" else torch.float32
    moved, far = rounded(**call, at_once=backend != "torch")
    error = float((got[0].double() - want[0]).norm())
    allowed = TOLERANCE[dtype] * float(want[0].norm()) + TOLERANCE[inside] * float(moved.norm())
    wrong = [] if error <= allowed else [f"output off by {error:.1e}, more than {allowed:.1e}"]
    apart = (got[1].double() - want[1]).abs().masked_fill(got[1] == want[1], 0.0)
    if not (apart <= LSE_TOLERANCE[inside] + TOLERANCE[inside] * far).all():
        wrong.append(f"log-sum-exp off by {float(apart.max()):.1e}")
    return wrong


@pytest.fixture(autouse=True)
def nothing_is_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Caches of a test are small, and would be read back."""
    monkeypatch.setattr(fast, "FEW", 0)


def test_a_few_entries_of_two_bits_are_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    call = arguments(Case(2, count=64, heads=1, shared=1), torch.float32, fresh())
    folded = run("torch", **call)
    monkeypatch.setattr(fast, "FEW", 1 << 16)
    monkeypatch.setattr(fast, "across", lambda *given: pytest.fail("not read back"))
    assert relative(run("torch", **call)[0], folded[0]) < 1e-5


@pytest.mark.parametrize("dtype", BOTH, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_it_is_one_softmax_over_what_the_codes_say(name: str, backend: str, dtype: torch.dtype, poisoned: None) -> None:
    call = arguments(CASES[name], dtype, fresh())
    got = run(backend, **call)
    assert got[0].dtype == dtype and got[1].dtype == torch.float32
    assert not (wrong := off(got, call, dtype, backend)), wrong


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_see_nothing_get_zeros(backend: str, poisoned: None) -> None:
    call = arguments(Case(count=70, tail=5, heads=4, rows=2, bias="query heads"), torch.float32, fresh())
    first, second = call["segments"]
    hidden = first.bias.clone()
    hidden[:, 1] = -torch.inf
    nothing = torch.zeros(1, 4, 2, 5)
    nothing[:, 1] = -torch.inf
    call["segments"] = [replace(first, bias=hidden), replace(second, bias=nothing)]
    output, share = run(backend, **call)
    assert (output[:, 1] == 0).all() and (share[:, 1] == -torch.inf).all()
    assert not off((output, share), call, torch.float32, backend)
    none, known = run(backend, query=call["query"], segments=[], scaling=1.0)
    assert (none == 0).all() and (known == -torch.inf).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_segment_without_entries_adds_nothing(backend: str) -> None:
    call = arguments(Case(count=64, heads=1, shared=1, width=64, tail=3), torch.float32, fresh())
    key = call["segments"][1].key
    empty = ExactPair(key[:, :, :0], key[:, :, :0])
    form = Format(4, "token")
    packed = PackedPair(quantise(key[:, :, :0], form), quantise(key[:, :, :0], form))
    alone = run(backend, **call)
    more = run(backend, **{**call, "segments": [empty, *call["segments"], packed]})
    assert all(torch.equal(one, other) for one, other in zip(alone, more, strict=True))


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_batch_is_its_rows_and_every_run_the_same(backend: str, poisoned: None) -> None:
    call = arguments(Case(group=32, count=96, batch=2, heads=2, shared=1, tail=9, bias="shared"), BOTH[0], fresh())
    together = run(backend, **call)
    assert all(torch.equal(one, other) for one, other in zip(together, run(backend, **call), strict=True))
    for row in range(2):
        here = torch.tensor([row])
        first, second = call["segments"]
        mine = [
            PackedPair(first.key.select(here), first.value.select(here), first.bias[here]),
            ExactPair(second.key[here], second.value[here]),
        ]
        alone = run(backend, **{**call, "query": call["query"][here], "segments": mine})
        assert relative(together[0][here], alone[0]) < 1e-6 and (together[1][here] - alone[1]).abs().max() < 1e-5


def test_spans_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    call = arguments(Case(count=650, heads=1, shared=1, width=64, tail=130), torch.float32, fresh())
    got = []
    for span in (1 << 20, 256, 1):
        monkeypatch.setattr(launch, "SPAN", span)
        got.append(run("triton", **call))
    for other in got[1:]:
        assert relative(other[0], got[0][0]) < 1e-6 and (other[1] - got[0][1]).abs().max() < 1e-5


def test_scales_of_half_types_are_read(poisoned: None) -> None:
    # bfloat16 is only loaded and made float32 here, which the interpreter does right
    call = arguments(Case(count=64, heads=1, shared=1), torch.float16, fresh())
    entries = normal(fresh(), 1, 1, 64, 128, dtype=torch.float16) / 300
    pair = PackedPair(*(quantise(entries, Format(4, axis)) for axis in ("channel", "token")))  # type: ignore[arg-type]
    assert pair.key.scale.dtype == torch.bfloat16
    call["segments"] = [pair]
    got = launch.packed_decode(call["query"], [pair], scaling=0.1, return_lse=True)
    assert isinstance(got, tuple)
    # values far below 1 must not fall out of float16 together with their weights
    assert not off(got, {**call, "scaling": 0.1}, torch.float16, "triton")


def forget_bias(patch: pytest.MonkeyPatch) -> None:
    real = launch._describe
    patch.setattr(launch, "_describe", lambda pair, *rest: real(replace(pair, bias=None), *rest))


def forget_order(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(launch.Quantised, "order", lambda self: None)


def drop_the_last_tile(patch: pytest.MonkeyPatch) -> None:
    real = launch._plan
    patch.setattr(launch, "_plan", lambda *args: replace(real(*args), tiles=max(real(*args).tiles - 1, 0)))


def forget_the_divisor(patch: pytest.MonkeyPatch) -> None:
    real = launch._read

    def read(*args: Any) -> Any:
        made = real(*args)
        return replace(made, constants={**made.constants, "HAS": False})

    patch.setattr(launch, "_read", read)


SABOTEURS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Case]] = {
    "bias": (forget_bias, Case(count=64, heads=2, bias="shared")),
    "order": (forget_order, Case(2, group=32, count=64, heads=1, shared=1, fillers=True)),
    "last tile": (drop_the_last_tile, Case(count=200, heads=1, shared=1)),
    "divisor": (forget_the_divisor, Case(count=64, heads=1, shared=1)),
}


@pytest.mark.parametrize("name", SABOTEURS)
def test_what_breaks_it_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sabotage, case = SABOTEURS[name]
    call = arguments(case, torch.float32, fresh())
    assert not off(run("triton", **call), call, torch.float32, "triton")
    sabotage(monkeypatch)
    assert off(launch.packed_decode(**call, return_lse=True), call, torch.float32, "triton")  # type: ignore[arg-type]
