"""Packed segments of one form are joined: few are left, and a model says what it would say without."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts import kit
from tests.contracts.kv_kit import Talk
from tests.tiny import tiny_inputs
from vlm_eff import attach
from vlm_eff.core.cache import CacheRows
from vlm_eff.core.plugin import Plugin
from vlm_eff.kernels.format import Format
from vlm_eff.kvcache import h2o, kivi, zipvl_kv
from vlm_eff.kvcache.allot import ByMass
from vlm_eff.kvcache.formats import CacheFormats, Tier
from vlm_eff.models.kv import joining, write
from vlm_eff.models.kv.joining import joined
from vlm_eff.models.kv.quantised import InBits, QuantisedSegment

# ------------------------------------------------------------------ the rule


@dataclass(frozen=True)
class Counted:
    """A segment of which only the number of entries and the form are known."""

    count: int
    form: str = "a"
    copied: list[int] = field(default_factory=list)

    def joins(self, later: Any) -> bool:
        return self.form == later.form != "never"

    def join(self, later: Any) -> Any:
        total = self.count + sum(one.count for one in later)
        self.copied.append(total)
        return Counted(total, self.form, self.copied)


def growing(count: int, size: int, forms: tuple[str, ...] = ("a",)) -> tuple[list[Counted], list[int]]:
    """Segments after `count` of `size` entries came, and how many entries each join copied."""
    stored: list[Any] = []
    copied: list[int] = []
    for number in range(count):
        new: Any = Counted(size, forms[number % len(forms)], copied)
        stored = [segment for segment, _ in joined([*stored, new])]
    return stored, copied


@pytest.mark.parametrize("count", [1, 2, 16, 1000])
def test_few_segments_are_left_and_entries_are_copied_few_times(count: int) -> None:
    stored, copied = growing(count, 32)
    assert sum(segment.count for segment in stored) == 32 * count
    assert len(stored) <= 4
    assert all(one.count > 8 * other.count for one, other in pairwise(stored))
    # joining all with each new one would copy 500 times as many as there are
    assert sum(copied) <= 30 * 32 * count


def test_a_prompt_is_left_alone_until_an_eighth_came() -> None:
    stored: list[Any] = [Counted(400)]
    for number in range(1, 6):
        stored = [segment for segment, _ in joined([*stored, Counted(10)])]
        assert [segment.count for segment in stored] == ([400, 10 * number] if number < 5 else [450])


def test_forms_are_joined_with_their_own_kind_where_the_oldest_stood() -> None:
    made = joined([Counted(5, "a"), Counted(5, "b"), Counted(5, "never"), Counted(5, "b"), Counted(5, "a")])  # type: ignore[list-item]
    assert [(segment.count, numbers) for segment, numbers in made] == [(10, (0, 4)), (10, (1, 3)), (5, (2,))]
    stored, _ = growing(100, 32, ("a", "b"))
    assert {form: sum(one.count for one in stored if one.form == form) for form in "ab"} == {"a": 1600, "b": 1600}
    assert len(stored) <= 6


# ------------------------------------------------------------------ on a model


def two_tiers() -> CacheFormats:
    """Two forms that come in turns, and whose segments can be joined."""
    tiers = [InBits(Format(bits, "token", 8), Format(bits, "token", 8)) for bits in (8, 4)]  # type: ignore[arg-type]
    rows = ByMass(CacheRows("last", 1, steps=True), 0.5)
    return CacheFormats("two", tuple(Tier(one, one) for one in tiers), rows, rows, every=4)


SMALL = kivi(bits=4, group=4, residual=8)
PLUGINS = {
    "kivi": (SMALL,),
    "kivi with outliers": (kivi(bits=2, group=4, residual=8, outliers=0.1),),
    "kivi by modality": (kivi(bits=8, group=4, residual=8, visual_bits=2),),
    "two tiers": (two_tiers(),),
    "two tiers beside sums": (h2o(keep_ratio=0.6, recent_share=0.02), two_tiers()),
}


def segments(layer: Any) -> list[QuantisedSegment]:
    return [segment for segment in layer.segments if isinstance(segment, QuantisedSegment)]


def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave every segment as it was packed."""
    monkeypatch.setattr(write, "joined", lambda parts: [(part, (number,)) for number, part in enumerate(parts)])


def told(family: str, rows: tuple[int, ...], plugins: tuple[Plugin, ...], steps: int) -> tuple[Talk, list[Any]]:
    """A talk of `steps` words, and by layer what is stored: contents and sums by position, and bytes of segments."""
    model, inputs = kit.model_of(family, dtype=torch.float64), tiny_inputs(family, rows).to(dtype=torch.float64)
    with attach(model, *plugins) as handle:
        talk = Talk(model, inputs).decode(steps)
        held = []
        for index, layer in enumerate(talk.cache.layers):
            positions = handle.kv_positions(index)
            order = positions.sort(dim=-1, stable=True).indices
            contents = list(handle.kv_contents(index)[:2]) + [sums.got for sums in layer.book.sums.values()]
            contents = [one.gather(2, order[..., None].expand(*order.shape, one.shape[3])) for one in contents]
            size = sum(segment.key.bytes + segment.value.bytes for segment in segments(layer))
            held.append((positions.gather(2, order), contents, size))
    return talk, held


# rows of different lengths have fillers; without them, sizes are equal to the byte: one of each kind shows that
TALKS = [*((name, (1, 2)) for name in PLUGINS), ("kivi", (2,)), ("two tiers", (2,))]


@pytest.mark.parametrize(("name", "rows"), TALKS, ids=str)
def test_a_model_says_the_same_with_segments_joined(
    name: str, rows: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    talk, held = told("llava", rows, PLUGINS[name], 34)
    with monkeypatch.context() as patch:
        apart(patch)
        other, wanted = told("llava", rows, PLUGINS[name], 34)
    few, many = (max(len(segments(layer)) for layer in one.cache.layers) for one in (talk, other))
    assert few < many
    assert few <= (3 if name.startswith("kivi") and "modality" not in name else 6)
    for got, want in zip(talk.said, other.said, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
    for (positions, contents, size), (places, there, bytes_) in zip(held, wanted, strict=True):
        assert torch.equal(positions, places)
        real = positions >= 0
        for one, another in zip(contents, there, strict=True):
            torch.testing.assert_close(one[real], another[real], rtol=1e-6, atol=1e-6)
        # where rows have fillers, segments that had none have to say so
        assert size == bytes_ if len(rows) == 1 else bytes_ <= size <= 1.02 * bytes_
    assert all(torch.equal(*(one[0][1][at] * (one[0][0] >= 0)[..., None] for one in (held, wanted))) for at in (0, 1))


@pytest.mark.parametrize("how", ["reorder_cache", "batch_select_indices", "batch_repeat_interleave", "crop", "copy"])
def test_operations_of_the_cache_reach_what_is_joined(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {"batch_select_indices": [1], "batch_repeat_interleave": [0, 0, 1, 1]}.get(how, [1, 0])
    model, inputs = (
        kit.model_of("qwen2_5_vl", dtype=torch.float64),
        tiny_inputs("qwen2_5_vl", (1, 2)).to(dtype=torch.float64),
    )

    def end() -> Tensor:
        with attach(model, two_tiers()):
            talk = Talk(model, inputs).decode(22)
            if how == "copy":
                kept = copy.deepcopy(talk)
                talk.decode(3)
                talk = kept
            elif how == "crop":
                talk.forget(1)
            else:
                talk.take(torch.tensor(rows), how)
            for layer in talk.cache.layers:
                layer.offload()
                layer.prefetch()
            return talk.decode(12).said[-1]

    got = end()
    apart(monkeypatch)
    torch.testing.assert_close(got, end(), rtol=0, atol=1e-9)


def test_a_layer_holds_no_more_than_it_says() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (2,))
    with attach(model, SMALL) as handle:
        talk = Talk(model, inputs).decode(40)
        layers = talk.cache.layers
        assert handle.stats().kv_bytes == sum(layer.bytes for layer in layers)
    for layer in layers:
        assert len(segments(layer)) <= 2
        held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in layer.buffers() if t.numel()}
        assert sum(held.values()) == layer.bytes
        for one in segments(layer):
            assert one.key.bytes == sum(t.untyped_storage().nbytes() for t in one.key.buffers())


def test_what_divides_channels_by_sizes_of_its_own_stays_apart() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (2,))
    with attach(model, zipvl_kv(8, 2, recent=4, random=2, every=3)):
        layer = Talk(model, inputs).decode(13).cache.layers[1]
    assert len(segments(layer)) > 4


def forgets_columns(original: Any) -> Any:
    """Segments are joined, and what was observed of entries stays where it was."""
    return lambda parts: [(one, tuple(range(len(parts)))[at : at + 1]) for at, (one, _) in enumerate(original(parts))]


def mixes_up(original: Any) -> Any:
    """The newest entries come first, and keep the places of the oldest."""

    def joined(parts: Any) -> Any:
        made = []
        for one, numbers in original(parts):
            whole = parts[numbers[0]]
            if len(numbers) > 1:
                turned = parts[numbers[-1]].join([parts[number] for number in reversed(numbers[:-1])])
                whole = QuantisedSegment(one.position, one.weight, turned.key, turned.value)
            made.append((whole, numbers))
        return made

    return joined


@pytest.mark.parametrize("broken", [forgets_columns, mixes_up])
def test_a_join_that_is_wrong_is_found_out(broken: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "joined", broken(joining.joined))
    with pytest.raises((AssertionError, RuntimeError, IndexError)):
        test_a_model_says_the_same_with_segments_joined("two tiers beside sums", (2,), pytest.MonkeyPatch())
