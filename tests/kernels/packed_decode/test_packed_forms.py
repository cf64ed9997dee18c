"""Unpacking bit for bit, what torch knows of the kernel, and what is refused with which words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.kit import fresh, normal, relative
from tests.kernels.packed_decode.oracle import Case, arguments
from tests.kernels.packed_decode.planes_kernel import unpack_kernel
from vlm_eff.core.errors import CapabilityError, InputError
from vlm_eff.kernels import why_not
from vlm_eff.kernels.format import Format
from vlm_eff.kernels.packed_decode import ExactPair, PackedPair, fast, launch, packed_decode
from vlm_eff.kernels.quantise import quantise

SMALL = Case(count=64, tail=3, width=64, heads=1, shared=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize(("bits", "word"), [(1, 8), (2, 8), (2, 16), (4, 8), (4, 16), (8, 8), (8, 16)])
def test_every_word_is_unpacked_exactly(bits: int, word: int, dtype: torch.dtype, poisoned: None) -> None:
    words = torch.arange(2**word)
    stored = words.to(torch.uint8) if word == 8 else words.to(torch.int16)
    room = word // bits
    made = torch.empty(2**word, room, dtype=dtype)
    unpack_kernel[(1,)](stored, made, bits, room, 2**word, False)
    codes = (words[:, None] >> (bits * torch.arange(room))) & (2**bits - 1)
    assert torch.equal(made.double(), codes.double() - (2 ** (bits - 1) if bits > 1 else 0))


def test_torch_knows_the_kernel() -> None:
    call = arguments(replace(SMALL, bias="shared"), torch.float32, fresh())
    tensors: list[torch.Tensor] = []
    layout: list[int] = []
    for pair in call["segments"]:
        launch._describe(pair, tensors, layout)
    given = (call["query"], tensors, layout, 0.1, None)
    torch.library.opcheck(launch.LAUNCHED, given, test_utils=("test_schema", "test_faketensor"))
    with FlopCounterMode(display=False) as counter:
        launch.LAUNCHED(*given)
    assert counter.get_total_flops() == 4 * 64 * 67
    first, second = call["segments"]

    def through(query: torch.Tensor) -> torch.Tensor:
        made = packed_decode(query + 0, [first, second], scaling=0.1, backend="triton")
        assert isinstance(made, torch.Tensor)
        return made + 1

    whole = torch.compile(through, fullgraph=True, backend="aot_eager")
    assert relative(whole(call["query"]), through(call["query"])) < 1e-6


def test_the_compiled_form_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    # the whole in one graph; making machine code of it takes half a minute, and benchmarks/kernels_cpu.py does
    graph = torch.compile(fast._decode, fullgraph=True, backend="eager")
    monkeypatch.setattr(fast, "_compiled", lambda: graph)
    call = arguments(replace(SMALL, group=32, bias="shared"), torch.float32, fresh())
    made = packed_decode(**call, backend="compiled")
    assert isinstance(made, torch.Tensor)
    assert relative(made, packed_decode(**call, backend="reference")) < 1e-5  # type: ignore[arg-type]


def pair(bits: int = 4, key: str = "channel", value: str = "token", **other: Any) -> PackedPair:
    entries, there = normal(fresh(), 1, 2, 64, 64), other.pop("there", None)
    forms = (Format(bits, axis, **other) for axis in (key, value))  # type: ignore[arg-type]
    return PackedPair(*(quantise(entries, form, there) for form in forms))


def test_what_the_kernel_does_not_take_is_said() -> None:
    query = normal(fresh(), 1, 4, 1, 64)

    def reason(*segments: PackedPair | ExactPair, asked: torch.Tensor = query) -> str:
        return why_not(packed_decode, asked, segments, scaling=1.0) or ""

    assert not reason(pair())
    assert "outliers" in reason(pair(outliers=0.1))
    mixed = replace(pair(4, value="channel"), value=pair(8, "token", "channel").value)
    assert "different bits" in reason(mixed)
    there = torch.arange(64).expand(1, 2, 64) < 50
    filled = pair(4, "channel", "channel", group=16, there=there)
    assert not reason(filled)
    assert "different orders" in reason(replace(filled, value=pair(4, "token", "channel").value))
    assert "66 query rows" in reason(pair(), asked=normal(fresh(), 1, 4, 33, 64))
    assert "float64" in reason(pair(), asked=query.double())
    exact = torch.zeros(1, 2, 5, 64)
    assert "several types" in reason(ExactPair(exact.half(), exact.half()))
    assert "stride" in reason(ExactPair(exact.transpose(2, 3).contiguous().transpose(2, 3), exact))
    assert "width 32" in reason(ExactPair(exact, exact[..., :32]))
    with pytest.raises(CapabilityError, match="outliers"):
        packed_decode(query, [pair(outliers=0.1)], scaling=1.0, backend="triton")
    # and the other forms take all of these
    for segment in (pair(outliers=0.1), mixed, filled):
        want = packed_decode(query, [segment], scaling=0.1, backend="reference")
        got = packed_decode(query, [segment], scaling=0.1, backend="torch")
        assert relative(got, want) < 1e-5  # type: ignore[arg-type]


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    query, fine = normal(fresh(), 1, 4, 1, 64), pair()
    exact = torch.zeros(1, 2, 5, 64)
    wrong: list[tuple[torch.Tensor, Any]] = [
        (query[0], fine),
        (query, (fine.key, fine.value)),
        (query[:, :3], fine),
        (query[..., :32], fine),
        (query.expand(2, -1, -1, -1), fine),
        (query, ExactPair(exact, exact[:, :, :4])),
        (query, replace(fine, bias=torch.zeros(1, 3, 1, 64))),
        (query, replace(fine, bias=torch.zeros(1, 1, 1, 63))),
        (query, replace(fine, bias=torch.zeros(1, 1, 1, 64, dtype=torch.bool))),
    ]
    for asked, segment in wrong:
        with pytest.raises(InputError):
            packed_decode(asked, [segment], scaling=1.0)
    with pytest.raises(InputError, match="width"):
        packed_decode(query, [fine, ExactPair(exact, exact[..., :32])], scaling=1.0)
