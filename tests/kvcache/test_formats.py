"""Cache entries in few bits: what is stored, when, in how many bytes, and that nothing is packed twice."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts import kit, kv_kit
from tests.contracts.checks_modes import words
from tests.contracts.kv_kit import FOUR, Talk
from tests.kv_oracle import recording
from tests.tiny import tiny_inputs, visual_mask
from vlm_eff import attach, plugin
from vlm_eff.core.config import from_dict
from vlm_eff.core.errors import ConfigError, ConflictError
from vlm_eff.core.plugin import Plugin
from vlm_eff.kernels.format import Format, effective_bits
from vlm_eff.kvcache import kivi, random_evict, saliency_precision, snapkv, visual_quant, zipvl_kv
from vlm_eff.kvcache.formats import CacheFormats, Tier
from vlm_eff.models.kv.quantised import QuantisedSegment
from vlm_eff.models.kv.view import CacheView

GROUP, RESIDUAL = 4, 8
SMALL = kivi(bits=4, group=GROUP, residual=RESIDUAL)


def packed(layer: Any) -> list[QuantisedSegment]:
    return [segment for segment in layer.segments if isinstance(segment, QuantisedSegment)]


def counts(layer: Any) -> Tensor:
    """Packed entries of each row and head [B, Hkv]."""
    none = torch.zeros(layer.keys.shape[:2], dtype=torch.long)
    return sum(((segment.position >= 0).sum(2) for segment in packed(layer)), none)


# ------------------------------------------------------------------ what is stored


def quantised(line: Tensor, bits: int, shrink: float = 1.0) -> Tensor:
    """One group written and read, in float64."""
    low, high = line.min(), line.max()
    middle, half = (low + high) / 2, (high - low) / 2 * shrink
    low, high = middle - half, middle + half
    step = (high - low) / (2**bits - 1)
    if step == 0:
        return line
    return ((line - low) / step).round().clamp(0, 2**bits - 1) * step + low


def by_channel(x: Tensor, bits: int, group: int | None, shrink: float = 1.0) -> Tensor:
    """[N, Dh] in groups along N."""
    made = x.clone()
    for start in range(0, len(x), group or len(x)):
        stop = start + (group or len(x))
        for channel in range(x.shape[1]):
            made[start:stop, channel] = quantised(x[start:stop, channel], bits, shrink)
    return made


def by_token(x: Tensor, bits: int, group: int | None) -> Tensor:
    """[N, Dh] in groups along Dh."""
    return by_channel(x.T, bits, group).T


def close(got: Tensor, want: Tensor, bits: int) -> None:
    """Equal, but for numbers so near the middle between two steps that float32 rounds them the other way."""
    step = float(want.max() - want.min()) / (2**bits - 1)
    off = (got - want).abs() > 1e-4 * step
    assert off.float().mean() < 0.01, f"{int(off.sum())} of {off.numel()} numbers are others"
    assert float((got - want).abs().max()) <= 1.01 * step


@pytest.mark.parametrize("family", FOUR)
def test_contents_are_those_of_an_independent_quantiser(family: str) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    full = Talk(model, inputs).decode(1).cache
    with attach(model, SMALL) as handle:
        talk = Talk(model, inputs).decode(1)
        said = [(handle.kv_positions(layer), *handle.kv_contents(layer)[:2]) for layer in range(kit.LAYERS)]
    for layer, (positions, keys, values) in enumerate(said):
        for row in range(2):
            real = kv_kit.real_places(inputs, row)
            count = len(real) // RESIDUAL * RESIDUAL
            assert counts(talk.cache.layers[layer])[row].tolist() == [count] * positions.shape[1]
            for head in range(positions.shape[1]):
                where = {place: seat for seat, place in enumerate(positions[row, head].tolist())}
                seats = torch.tensor([where[place] for place in real])
                key, value = (
                    getattr(full.layers[layer], name)[row, head, real].double() for name in ("keys", "values")
                )
                close(keys[row, head, seats[:count]].double(), by_channel(key[:count], 4, GROUP), 4)
                close(values[row, head, seats[:count]].double(), by_token(value[:count], 4, GROUP), 4)
                assert torch.equal(keys[row, head, seats[count:]], key[count:].float())
                assert torch.equal(values[row, head, seats[count:]], value[count:].float())


def test_visual_entries_in_one_bit_of_shrunk_ranges() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    full = Talk(model, inputs).decode(1).cache
    with attach(model, visual_quant()) as handle:
        talk = Talk(model, inputs).decode(1)
        assert talk.length
        said = [(handle.kv_positions(layer), *handle.kv_contents(layer)[:2]) for layer in range(kit.LAYERS)]
    for layer, (positions, keys, values) in enumerate(said):
        for row in range(2):
            visual = visual_mask(inputs)[row].nonzero()[:, 0].tolist()
            words = sorted(set(kv_kit.real_places(inputs, row)) - set(visual))
            where = {place: seat for seat, place in enumerate(positions[row, 0].tolist())}
            for name, got, shrink in (("keys", keys, 0.5), ("values", values, 0.3)):
                exact = getattr(full.layers[layer], name)[row, 0]
                there = torch.tensor([where[place] for place in visual])
                close(got[row, 0, there].double(), by_channel(exact[visual].double(), 1, None, shrink), 1)
                assert torch.equal(got[row, 0, [where[place] for place in words]], exact[words])


def test_eight_bits_are_close_and_one_bit_is_not() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    bare = Talk(model, inputs).decode(4).said[-1]
    for made in (kivi(bits=8, group=4, residual=4), zipvl_kv(8, 4, keep_mass=1.0, recent=4, random=4, every=2)):
        with attach(model, made):
            got = Talk(model, inputs).decode(4).said[-1]
        kit.same(got, bare, 3e-2)
        kit.differs(got, bare)
    with attach(model, kivi(bits=1, group=4, residual=4)):
        got = Talk(model, inputs).decode(4).said[-1]
    with pytest.raises(AssertionError, match="off by"):
        kit.same(got, bare, 3e-2)


# ------------------------------------------------------------------ when


def test_keys_leave_in_multiples_of_the_residual() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2, 0))
    real = kit.real(inputs).sum(1)
    with attach(model, SMALL):
        talk = Talk(model, inputs)
        for step in range(1, 20):
            talk.decode(1)
            # before a token comes in, those before it are packed
            wanted = (real + step - 1) // RESIDUAL * RESIDUAL
            for layer in talk.cache.layers:
                assert torch.equal(counts(layer), wanted[:, None].expand(-1, 2))


def test_the_last_tokens_stay_exact_where_asked() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    real = kit.real(inputs).sum(1)
    with attach(model, kivi(group=4, residual=4, recent=6)):
        talk = Talk(model, inputs)
        for step in range(1, 8):
            talk.decode(1)
            wanted = (real + step - 1 - 6) // 4 * 4
            assert torch.equal(counts(talk.cache.layers[2])[:, 0], wanted)


def test_less_than_a_residual_is_left_alone() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    with attach(model, kivi()) as handle:
        got = Talk(model, inputs).decode(3)
    assert not handle.stats().compressions
    assert torch.equal(got.said[-1], Talk(model, inputs).decode(3).said[-1])


def test_streamed_equals_one_shot() -> None:
    """P9: keys and values of the first layer, which no attention has touched, are stored alike."""
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    ids, made = words(2, 13, 5), []
    for chunks in ([ids], list(ids.split(1, 1)), [ids[:, :4], ids[:, 4:5], *ids[:, 5:].split(8, 1)]):
        with attach(model, SMALL) as handle:
            talk = Talk(model, inputs)
            for chunk in chunks:
                talk.hear(more={"input_ids": chunk})
            talk.decode(1)
            order = handle.kv_positions(0).sort(dim=-1, stable=True).indices
            contents = [one.gather(2, order[..., None].expand_as(one)) for one in handle.kv_contents(0)[:2]]
            there = handle.kv_positions(0).gather(2, order) >= 0
            made.append((counts(talk.cache.layers[0]), [one[there] for one in contents]))
    for held, contents in made[1:]:
        assert torch.equal(held, made[0][0])
        for got, want in zip(contents, made[0][1], strict=True):
            torch.testing.assert_close(got, want)


def contents(parts: Sequence[QuantisedSegment]) -> dict[tuple[int, int, int], tuple[Tensor, Tensor]]:
    """Row, head and position of each entry -> its key and value, as they are read."""
    made = {}
    for segment in parts:
        key, value = segment.read(torch.float32)
        for row, head, seat in (segment.position >= 0).nonzero().tolist():
            place = int(segment.position[row, head, seat])
            made[row, head, place] = (key[row, head, seat], value[row, head, seat])
    return made


def test_what_is_packed_is_never_packed_again() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    for made in (SMALL, zipvl_kv(recent=4, random=2, every=3), saliency_precision(window=4, group=4, every=3)):
        with attach(model, made):
            talk = Talk(model, inputs).decode(1)
            before = [contents(packed(layer)) for layer in talk.cache.layers]
            talk.decode(10).hear(5).decode(4)
            for layer, old in zip(talk.cache.layers, before, strict=True):
                now = contents(packed(layer))
                assert len(now) > len(old) > 0
                for place, (key, value) in old.items():
                    assert torch.equal(now[place][0], key)
                    assert torch.equal(now[place][1], value)


def test_a_step_that_packs_nothing_looks_at_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    seen: list[int] = []
    original = CacheView.entries
    monkeypatch.setattr(CacheView, "entries", lambda self, layer: seen.append(layer) or original(self, layer))
    with attach(model, zipvl_kv(recent=4, random=2, every=6)):
        talk = Talk(model, inputs).decode(1)
        seen.clear()
        talk.decode(5)
        assert not seen
        talk.decode(1)
        assert set(seen) == set(range(kit.LAYERS))


# ------------------------------------------------------------------ in how many bytes


def closed_form(layer: Any, forms: Sequence[tuple[Format, int]], exact: int, width: int) -> float:
    """Bytes of one row of a layer: numbers in their forms, exact ones, and a place for each entry."""
    heads = layer.keys.shape[1]
    made = sum(effective_bits(form, count, width, torch.float32) / 8 * count * width for form, count in forms)
    there = sum(count for _, count in forms) / 2 + exact
    return heads * (made + exact * 2 * width * 4 + 4 * there)


def test_bytes_are_those_of_the_closed_form() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (2,), text=(9, 30))
    length = inputs["input_ids"].shape[1]
    width = model.config.get_text_config().head_dim
    with attach(model, SMALL) as handle:
        layer = Talk(model, inputs).decode(1).cache.layers[0]
    count = length // RESIDUAL * RESIDUAL
    forms = [(Format(4, "channel", GROUP), count), (Format(4, "token", GROUP), count)]
    # the place of the one token that was decoded is not stored
    wanted = kit.LAYERS * (closed_form(layer, forms, length - count + 1, width) - 4 * layer.keys.shape[1])
    got = handle.stats().kv_bytes
    assert abs(got - wanted) <= 0.01 * wanted, f"{got} bytes, {wanted} by the closed form"


def test_bytes_of_two_tiers_are_those_of_the_closed_form() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (2,))
    width = model.config.get_text_config().head_dim
    with attach(model, zipvl_kv(8, 2, keep_mass=0.7, recent=4, random=4, every=None)) as handle:
        cache = Talk(model, inputs).decode(1).cache
    wanted = 0.0
    for layer in cache.layers:
        pairs = [(segment, segment.count) for segment in packed(layer)]
        assert [segment.key.format.bits for segment, _ in pairs] == [8, 2]
        forms = [(part.format, count) for segment, count in pairs for part in (segment.key, segment.value)]
        wanted += closed_form(layer, forms, 1, width) - 4 * layer.keys.shape[1]
    got = handle.stats().kv_bytes
    assert abs(got - wanted) <= 0.01 * wanted, f"{got} bytes, {wanted} by the closed form"


# ------------------------------------------------------------------ by what entries are


def test_each_modality_has_its_form() -> None:
    model, inputs = kit.model_of("qwen2_5_vl"), tiny_inputs("qwen2_5_vl", (1, 2))
    visual = visual_mask(inputs)
    made = kivi(bits=8, group=4, residual=4, visual_bits=2, visual_axis=("channel", "channel"))
    with attach(model, made):
        layer = Talk(model, inputs).decode(1).cache.layers[1]
    assert {segment.key.format.bits for segment in packed(layer)} == {2, 8}
    for segment in packed(layer):
        seen = segment.key.format.bits == 2
        assert segment.value.format.axis == ("channel" if seen else "token")
        for row in range(2):
            places = segment.position[row, 0][segment.position[row, 0] >= 0].long()
            assert (visual[row, places] == seen).all()
            # the image is there all at once, and packed all at once
            assert not seen or len(places) == int(visual[row].sum())


# ------------------------------------------------------------------ beside others


@pytest.mark.parametrize("family", FOUR)
@pytest.mark.parametrize("evicts", [snapkv(keep_ratio=0.6, window=4), random_evict(keep_ratio=0.5)])
def test_whoever_evicts_decides_first(family: str, evicts: Plugin) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    made = []
    for plugins in ((evicts, SMALL), (SMALL, evicts)):
        act = kv_kit.generating(model, inputs, 6)
        handle, record = kv_kit.hiding(model, act, *plugins, rewrites=True)
        assert [report.plugin for report in handle.stats().compressions[:2]] == [evicts.name, "kivi"]
        made.append(record[-1])
    with attach(model, evicts) as handle, recording(model, handle) as alone:
        kv_kit.generating(model, inputs, 6)()
    for one, other, evicted in zip(*made, alone[-1], strict=True):
        assert torch.equal(one.positions, other.positions)
        ordered = one.positions.sort(-1).values
        assert torch.equal(
            ordered[ordered >= 0], evicted.positions.sort(-1).values[evicted.positions.sort(-1).values >= 0]
        )


def test_two_forms_of_one_cache_are_refused() -> None:
    model = kit.model_of("llava")
    with pytest.raises(ConflictError, match="form in which"):
        attach(model, kivi(), visual_quant())
    # what evicts by giving no bits is a second one who evicts
    with pytest.raises(ConflictError, match="entries of the KV cache"):
        attach(model, snapkv(), saliency_precision())


# ------------------------------------------------------------------ the cache in the user's hands


@pytest.mark.parametrize("made", [SMALL, zipvl_kv(8, 1, recent=4, random=4, every=3, outliers=0.05)], ids=str)
def test_a_packed_cache_moves_and_is_copied(made: Plugin) -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    with attach(model, made):
        talk = Talk(model, inputs).decode(5)
        other = copy.deepcopy(talk)
        for layer in other.cache.layers:
            layer.offload()
            assert all(tensor.device.type == "cpu" for tensor in layer.buffers())
            layer.prefetch()
        # a copy shares nothing with what it was copied from
        for layer in talk.cache.layers:
            for segment in packed(layer):
                segment.key.scale.mul_(1.5)
        said = other.decode(4).said
        again = Talk(model, inputs).decode(9).said
        for one, wanted in zip(said, again, strict=True):
            assert torch.equal(one, wanted)
        kv_kit.moved(said[-2:], talk.decode(4).said[-2:])


# ------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: kivi(bits=3), "bits=3"),
        (lambda: kivi(bits=True), "bits=True"),
        (lambda: kivi(group=32, residual=100), "whole groups"),
        (lambda: kivi(group=0), "group=0"),
        (lambda: kivi(recent=-1), "recent=-1"),
        (lambda: kivi(text_axis="channel"), "two of"),
        (lambda: kivi(text_axis=("channel", "rows")), "axis"),
        (lambda: kivi(outliers=1.0), "outliers"),
        (lambda: zipvl_kv(high_bits=2, low_bits=2), "high and low"),
        (lambda: zipvl_kv(keep_mass=0.0), "keep_mass"),
        (lambda: zipvl_kv(recent=0), "recent"),
        (lambda: zipvl_kv(every=0), "every"),
        (lambda: zipvl_kv(visual_bits=(4,)), "high and low"),
        (lambda: saliency_precision(bits_budget=3.0, tau=1.0), "one of the three"),
        (lambda: saliency_precision(levels=(2, 4), bits_budget=1.0), "at least 2"),
        (lambda: saliency_precision(levels=(4, 2)), "ascending"),
        (lambda: saliency_precision(levels=()), "levels"),
        (lambda: saliency_precision(levels=(0, 3)), "bits=3"),
        (lambda: saliency_precision(high_share=1.5), "high_share"),
        (lambda: saliency_precision(window=0), "window"),
        (lambda: visual_quant(bits=5), "bits=5"),
        (lambda: Tier("packed", "exact"), "'packed'"),  # type: ignore[arg-type]
    ],
)
def test_what_does_not_exist_is_refused(make: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        make()


def test_specs_and_dicts() -> None:
    assert plugin("kivi:bits=4,group=16,residual=32") == kivi(4, 16, 32)
    assert plugin("zipvl_kv:high_bits=8,visual_bits=(4,1)") == zipvl_kv(8, visual_bits=(4, 1))
    for made in (kivi(visual_bits=0), zipvl_kv(), saliency_precision(tau=1.0), visual_quant()):
        assert from_dict(made.to_dict()) == made
        assert isinstance(made, CacheFormats)
        assert hash(made) == hash(from_dict(made.to_dict()))


def test_bits_of_the_sheet() -> None:
    """KIVI of 2 bits in groups of 32 takes 3 bits a number in half precision, 2.25 in groups of 128."""
    for bits, group, wanted in ((2, 32, 3.0), (2, 128, 2.25), (4, 32, 5.0)):
        made = kivi(bits, group, residual=group).tiers[0].text
        for form in (made.key, made.value):
            assert math.isclose(effective_bits(form, 1024, 128), wanted)
