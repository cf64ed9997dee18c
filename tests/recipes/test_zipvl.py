"""ZipVL whole: who took part in a layer's attention is stored in more bits, and nothing is looked at twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.contracts import checks_kv_cache, kit, kv_kit
from tests.contracts.checks_modes import words
from tests.contracts.kv_kit import FOUR, Talk
from tests.oracle import bypassed_tokens
from tests.recipes.cases import RECIPES
from tests.tiny import tiny_inputs, visual_mask
from vlm_eff import attach, methods, plugin
from vlm_eff.core.cache import CacheRows
from vlm_eff.core.config import from_dict
from vlm_eff.core.errors import ConfigError, ConflictError, StateError
from vlm_eff.core.plugin import BindContext
from vlm_eff.core.recipe import Recipe
from vlm_eff.core.resources import Resource
from vlm_eff.kvcache import kivi
from vlm_eff.models.kv import observing, view
from vlm_eff.models.kv.quantised import QuantisedSegment
from vlm_eff.recipes import zipvl
from vlm_eff.tokens import fastv

HARD = RECIPES["zipvl"][1]


def test_the_room_is_tested() -> None:
    assert set(RECIPES) == {name for name, method in methods().items() if method.room == "recipes"}


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FOUR)
def test_it_equals_bypassing_and_storing_so(family: str, attn: str) -> None:
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, (1, 2))
    for beams in (1, 2) if attn == "sdpa" else (1,):
        rows = {"input_ids": inputs["input_ids"].repeat_interleave(beams, 0)}

        def beside(handle: Any, rows: Any = rows) -> Any:
            return bypassed_tokens(model, kit.bypassed(handle, rows))

        act = kv_kit.generating(model, inputs, 6, num_beams=beams)
        handle, _ = kv_kit.hiding(model, act, *HARD, rewrites=True, beside=beside)
        assert [one.name for one in handle.plugins] == ["zipvl_attention", "zipvl_kv"]


@pytest.mark.parametrize("family", FOUR)
def test_who_took_part_has_more_bits(family: str) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    with attach(model, HARD) as handle:
        cache = Talk(model, inputs).decode(1).cache
    visual, fewer = visual_mask(inputs), 0
    for index, layer in enumerate(cache.layers):
        bits = {}
        for segment in layer.segments:
            assert isinstance(segment, QuantisedSegment)
            for row in range(2):
                for head in range(segment.position.shape[1]):
                    places = segment.position[row, head].tolist()
                    bits |= {(row, head, place): segment.key.format.bits for place in places if place >= 0}
        for row, attended in enumerate(handle.attended(index)):
            for head in range(layer.keys.shape[1]):
                for place in kv_kit.real_places(inputs, row):
                    took_part = place in set(attended.tolist())
                    assert bits.pop((row, head, place)) == (8 if took_part else 2)
                    fewer += not took_part
                    assert took_part or visual[row, place]
        assert not bits
    assert fewer


def test_nothing_is_looked_at_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache computes no attention at the end of a prompt, and keeps no query row but the newest."""
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    computed: list[CacheRows] = []
    kept: list[CacheRows] = []
    received, note, sums = view.Entries.received, observing.note_rows, observing.note_sums
    monkeypatch.setattr(view.Entries, "attention", lambda self, rule: pytest.fail("attention of rows was computed"))
    monkeypatch.setattr(view.Entries, "received", lambda self, rule: computed.append(rule) or received(self, rule))
    monkeypatch.setattr(
        "vlm_eff.models.kv.runtime.note_rows", lambda layer, rule, *rest: kept.append(rule) or note(layer, rule, *rest)
    )
    monkeypatch.setattr("vlm_eff.models.kv.runtime.note_sums", lambda *rest: pytest.fail(f"{sums} was called"))
    newest = CacheRows("last", 1, steps=True)
    with attach(model, HARD):
        talk = Talk(model, inputs).decode(3)
        assert not computed
        assert set(kept) == {newest}
        talk.decode(1)
        assert computed == [newest] * kit.LAYERS
    computed.clear()
    with attach(model, zipvl(every=None)):
        kept.clear()
        Talk(model, inputs).decode(5)
    assert not computed
    assert not kept


def test_who_took_part_is_known_over_turns() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    later = tiny_inputs("llava", (1, 1), text=(3, 6), seed=8)
    length = inputs["input_ids"].shape[1]
    with attach(model, *HARD) as handle:
        talk = Talk(model, inputs)
        first = [one.tolist() for one in handle.attended(1)]
        book = talk.cache.layers[1].book
        assert [row.nonzero()[:, 0].tolist() for row in book.attended] == first
        talk.hear(more={"input_ids": words(2, 3, 1)}).hear(more=dict(later))
        new = [[length + 3 + place for place in one.tolist()] for one in handle.attended(1)]
        between = list(range(length, length + 3))
        got = [row.nonzero()[:, 0].tolist() for row in book.attended]
        assert got == [old + between + more for old, more in zip(first, new, strict=True)]
        talk.cache.crop(-4)
        assert book.attended.shape[1] == talk.length - 4
        talk.cache.reorder_cache(torch.tensor([1, 0]))
        rows = talk.cache.layers[1].book.attended
        assert [row.nonzero()[:, 0].tolist()[: len(one)] for row, one in zip(rows, first[::-1], strict=True)] == first[
            ::-1
        ]


def test_low_bits_of_nothing_evict() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    with attach(model, zipvl(keep_mass=0.7, low_bits=0, recent=0.1, random=0.2)) as handle:
        Talk(model, inputs).decode(1)
        for layer in range(kit.LAYERS):
            length = inputs["input_ids"].shape[1]
            kept = sorted(place for place in handle.kv_positions(layer)[0, 0].tolist() if 0 <= place < length)
            assert kept == sorted(handle.attended(layer)[0].tolist())


def test_everything_in_full_changes_no_bit() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    with attach(model, zipvl(keep_mass=1.0, high_bits=16)):
        got = kit.generate(model, inputs, 4)[1]
    assert torch.equal(got, kit.generate(model, inputs, 4)[1])


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_detach_restores(attn: str) -> None:
    checks_kv_cache.kv_detach_restores("llava", attn, HARD)


# ------------------------------------------------------------------ recipes


def test_a_recipe_stands_for_its_plugins() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    made = []
    for given in ((HARD,), tuple(HARD), (Recipe("outer", (HARD,)),)):
        with attach(model, *given) as handle:
            made.append(kit.generate(model, inputs, 4)[1])
        assert [one.name for one in handle.plugins] == ["zipvl_attention", "zipvl_kv"]
    assert torch.equal(made[0], made[1])
    assert torch.equal(made[0], made[2])


def test_recipes_have_names_specs_and_dicts() -> None:
    spec = "zipvl:keep_mass=0.7,high_bits=8,recent=0.1,random=0.2,every=3,seed=5"
    assert plugin(spec) == HARD == from_dict(HARD.to_dict())
    assert hash(HARD) == hash(plugin(spec))
    assert HARD.name == "zipvl"
    assert HARD.writes == {Resource.ATTENTION_TOKENS, Resource.CACHE_FORM}
    bound = HARD.bind(BindContext("test", 4))
    assert len(bound.sites) == 4 + 2
    assert bound.asked(9, 4) == [9.0] * 4
    assert HARD.needs


def test_what_a_recipe_cannot_be() -> None:
    model = kit.model_of("llava")
    with pytest.raises(ConfigError, match="one plugin or more"):
        Recipe("empty", ())
    with pytest.raises(ConfigError, match="one plugin or more"):
        Recipe("wrong", ("fastv",))  # type: ignore[arg-type]
    with pytest.raises(ConflictError, match="both change"):
        attach(model, HARD, kivi())
    with pytest.raises(StateError, match="its plugins"):
        HARD.at(None, None)
    with attach(model, HARD, fastv()) as handle:
        assert len(handle.plugins) == 3
        kit.generate(model, tiny_inputs("llava", (1,)), 3)
