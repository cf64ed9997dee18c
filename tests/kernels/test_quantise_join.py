"""Packed entries laid behind one another are read as each of them was, in the same bytes."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.kernels.kit import BACKENDS, fresh, normal, relative
from vlm_eff.kernels.format import Format
from vlm_eff.kernels.pack import pack
from vlm_eff.kernels.packed_decode import PackedPair, packed_decode
from vlm_eff.kernels.quantise import Quantised, can_join, join, joining, quantise

FORMATS = [
    Format(2, "channel", 8), Format(4, "channel", 4, shrink=0.5), Format(8, "channel", 3), Format(1, "channel", 8),
    Format(2, "channel", 8, outliers=0.2), Format(2, "token", 8), Format(4, "token", 5), Format(1, "token"),
    Format(8, "token", outliers=0.1),
]  # fmt: skip


def parts_of(format: Format, counts: tuple[int, ...], fillers: bool = False) -> tuple[list[Tensor], list[Quantised]]:
    draw = fresh()
    entries = [normal(draw, 2, 3, count, 12, dtype=torch.float16) for count in counts]
    valid = [torch.ones(2, 3, count, dtype=torch.bool) for count in counts]
    if fillers:
        for there in valid[1:]:
            there[1] = torch.rand(3, there.shape[2], generator=draw) < 0.6
    return entries, [quantise(one, format, there) for one, there in zip(entries, valid, strict=True)]


@pytest.mark.parametrize("fillers", [False, True])
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_what_is_joined_is_read_as_it_was(format: Format, fillers: bool) -> None:
    _, parts = parts_of(format, (24, 48, 24), fillers)
    assert all(can_join(one, other) for one, other in pairwise(parts))
    whole = join(parts)
    assert whole.count == 96
    for dtype in (torch.float16, torch.float32):
        assert torch.equal(whole.read(dtype), torch.cat([part.read(dtype) for part in parts], 2))
    known = whole.present is not None
    assert known == (fillers and format.axis == "channel")
    # a bit for each entry of the part without fillers, once others have them
    assert whole.bytes == sum(part.bytes for part in parts) + known * 2 * 3 * 24 // 8
    assert sum(buffer.untyped_storage().nbytes() for buffer in whole.buffers()) == whole.bytes
    rows = torch.tensor([1, 1, 0])
    assert torch.equal(whole.select(rows).read(torch.float32), whole.read(torch.float32)[rows])
    # and again, from either side
    (more,) = parts_of(format, (24,), fillers)[1]
    halves = (join([whole, more]), join([parts[0], join([*parts[1:], more])]))
    want = torch.cat([whole.read(torch.float32), more.read(torch.float32)], 2)
    assert all(torch.equal(half.read(torch.float32), want) for half in halves)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_joined_whole_groups_are_what_is_quantised_at_once(format: Format) -> None:
    entries, parts = parts_of(format, (24, 48, 24))
    whole, wanted = join(parts), quantise(torch.cat(entries, 2), format)
    for got, want in zip(whole.buffers(), wanted.buffers(), strict=True):
        assert torch.equal(got, want)


def test_the_last_part_need_not_fill_its_groups() -> None:
    for format in (Format(2, "channel", 8), Format(4, "token", 5)):
        _, parts = parts_of(format, (16, 8, 5))
        assert torch.equal(join(parts).read(torch.float32), torch.cat([part.read(torch.float32) for part in parts], 2))


@pytest.mark.parametrize(
    ("format", "counts"),
    [
        (Format(4, "token", separable=True), (8, 8)),  # each divides channels by sizes of its own
        (Format(2, "channel"), (8, 8)),  # a group is the whole channel
        (Format(2, "channel", 8), (12, 8)),  # the last group has room left
        (Format(2, "channel", 3), (3, 3)),  # so has the last byte
        (Format(2, "channel", 8, outliers=0.3), (8, 4)),  # shorter groups keep fewer outliers
        (Format(2, "token", 8), (0, 8)),
    ],
    ids=str,
)
def test_what_cannot_be_laid_behind_one_another_is_known(format: Format, counts: tuple[int, int]) -> None:
    assert not can_join(*parts_of(format, counts)[1])


def test_other_forms_types_and_widths_stay_apart() -> None:
    format = Format(2, "channel", 8)
    x = normal(fresh(), 1, 2, 16, 12)
    one = quantise(x, format)
    assert can_join(one, one)
    for other in (
        quantise(x, Format(4, "channel", 8)), quantise(x.half(), format), quantise(x[..., :8], format),
        quantise(x[:, :1], format),
    ):  # fmt: skip
        assert not can_join(one, other) and not can_join(other, one)
    # bytes of what says which entries are fillers
    three = Format(8, "channel", 3)
    x, gap = normal(fresh(), 1, 2, 12, 12), torch.ones(1, 2, 12, dtype=torch.bool)
    gap[0, 1, 3] = False
    one, filled = quantise(x, three), quantise(x, three, gap)
    assert can_join(one, one) and not can_join(one, filled) and not can_join(filled, one)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_BY_LINE", ("codes", "scale")),
        ("pack", lambda codes, bits: pack(1 - codes, bits)),
        ("_runs", lambda parts: ()),
        ("can_join", None),
    ],
)
def test_a_broken_join_is_found_out(name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, parts = parts_of(
        Format(2, "channel", 8), (24, 12, 24) if name == "can_join" else (24, 24, 24), name in ("pack", "_runs")
    )
    if value is not None:
        monkeypatch.setattr(joining, name, value)
    want = torch.cat([part.read(torch.float32) for part in parts], 2)
    with pytest.raises((AssertionError, RuntimeError)):
        assert torch.equal(join(parts).read(torch.float32), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_decoding_over_joined_entries_is_decoding_over_each(backend: str) -> None:
    draw, parts = fresh(), []
    for count, fillers in ((64, True), (32, False), (64, True)):
        there = torch.rand(2, 2, count, generator=draw) < (0.6 if fillers else 2)
        key, value = (
            quantise(normal(draw, 2, 2, count, 64), Format(4, axis, 32), there)  # type: ignore[arg-type]
            for axis in ("channel", "token")
        )
        parts.append(PackedPair(key, value, torch.zeros(2, 2, 1, count).masked_fill(~there[:, :, None], -torch.inf)))
    keys, values = ([getattr(part, side) for part in parts] for side in ("key", "value"))
    whole = PackedPair(join(keys), join(values), torch.cat([part.bias for part in parts if part.bias is not None], -1))
    query = normal(draw, 2, 4, 1, 64)
    got = packed_decode(query, [whole], scaling=0.125, backend=backend)
    want = packed_decode(query, parts, scaling=0.125, backend="reference")
    assert relative(got, want) < 1e-5
