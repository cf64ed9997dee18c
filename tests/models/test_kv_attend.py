"""A decode step over a packed cache: entries in few bits are attended to as they lie, others are read and merged."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlm_eff.kernels.format import Format
from vlm_eff.kernels.grouped_attention import attend_groups
from vlm_eff.kernels.quantise import Quantised, quantise
from vlm_eff.models.kv import attend
from vlm_eff.models.kv.attend import PackedAttention
from vlm_eff.models.kv.layer import Packed
from vlm_eff.models.kv.quantised import QuantisedSegment
from vlm_eff.models.kv.segments import RaggedSegment, Segment
from vlm_eff.models.kv.view import Traits

ROWS, HEADS, WIDTH, SCALING = 2, 2, 8, 0.3


def fresh(*shape: int) -> Tensor:
    return torch.randn(ROWS, HEADS, *shape, WIDTH)


def packed(*kinds: str) -> Packed:
    """A tail of 3 behind 6 entries for each kind: in 4 bits, or ragged."""
    segments: list[Segment] = []
    for kind in kinds:
        position = torch.arange(6, dtype=torch.int32).expand(ROWS, HEADS, 6).clone()
        if kind == "ragged":
            position[0, 1, 4:] = -1
            segments.append(RaggedSegment.of(fresh(6), fresh(6), position, None))
        else:
            made = (quantise(fresh(6), Format(4, axis)) for axis in ("channel", "token"))  # type: ignore[arg-type]
            segments.append(QuantisedSegment(position, None, *made))
    return Packed(tuple(segments), fresh(3), fresh(3))


def mask_of(of: Packed, rows: int) -> Tensor:
    """Fillers and a few others hidden, for each query head."""
    hidden = torch.rand(ROWS, 2 * HEADS, rows, of.count) > 0.7
    first = 0
    for segment in of.segments:
        hidden[..., first : first + segment.count] |= (segment.position < 0).repeat_interleave(2, 1)[:, :, None]
        first += segment.count
    return torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)


def attended(of: Packed, query: Tensor, mask: Tensor | None) -> Tensor:
    made = PackedAttention(of, Traits(SCALING, 2.0), None, whole=False)
    output, weights = made.attend(lambda *_, **__: None, torch.nn.Identity(), (query, of, of), mask, {})
    assert weights is None
    return output.transpose(1, 2)  # type: ignore[no-any-return]


def wanted(of: Packed, query: Tensor, mask: Tensor | None) -> Tensor:
    key, value = of.dense(None)
    bias = None if mask is None else mask.masked_fill(mask < -1, -torch.inf)
    return attend_groups(query, [(key, value, bias)], SCALING, 2.0)[0]


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("kinds", [("bits",), ("bits", "ragged"), ("ragged", "bits", "ragged", "bits"), ("ragged",)])
def test_a_step_is_attention_over_everything(kinds: tuple[str, ...], rows: int) -> None:
    of, query = packed(*kinds), torch.randn(ROWS, 2 * HEADS, rows, WIDTH)
    for mask in (mask_of(of, rows), None if "ragged" not in kinds else mask_of(of, 1)):
        torch.testing.assert_close(attended(of, query, mask), wanted(of, query, mask), rtol=1e-5, atol=1e-5)


def test_a_step_reads_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    of = packed("bits", "bits")
    monkeypatch.setattr(Quantised, "read", lambda *_: pytest.fail("read back"))
    attended(of, torch.randn(ROWS, 2 * HEADS, 1, WIDTH), None)
    # more rows than a step has are attended to part by part
    with pytest.raises(pytest.fail.Exception):
        attended(of, torch.randn(ROWS, 2 * HEADS, 40, WIDTH), None)


@pytest.mark.parametrize("what", ["columns", "merge"])
def test_what_breaks_a_step_is_noticed(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of, query = packed("bits", "ragged"), torch.randn(ROWS, 2 * HEADS, 1, WIDTH)
    mask = mask_of(of, 1)
    real = attend._columns
    if what == "columns":
        monkeypatch.setattr(attend, "_columns", lambda mask, first, *rest: real(mask, max(first - 1, 0), *rest))
    else:
        monkeypatch.setattr(attend, "merge", lambda output, total, *_: (output, total))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(attended(of, query, mask), wanted(of, query, mask), rtol=1e-5, atol=1e-5)
