"""Entries as coefficients times a basis: exact with all directions, the best with few, right in every mode."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts import kit, kv_kit
from tests.contracts.kv_kit import FOUR, Talk
from tests.kvcache.open_cache import entries_behind_prompt
from tests.oracle import decoder_layers
from tests.tiny import TinyInputs, tiny_inputs, visual_mask
from vlm_eff import attach, plugin
from vlm_eff.core.cache import IMAGE, TEXT
from vlm_eff.core.errors import ConfigError
from vlm_eff.importance.low_rank import factorise
from vlm_eff.kvcache import cross_modal_low_rank, snapkv
from vlm_eff.kvcache.factorise import LowRankCache
from vlm_eff.models.kv.factorised import LowRankSegment, factorise_entries
from vlm_eff.models.kv.view import Entries

WIDTH = 16


def all_directions(**changes: Any) -> LowRankCache:
    """Factorised, though it takes more memory."""
    return replace(LowRankCache("cross_modal_low_rank", ("image",), WIDTH, None, rows=5, always=True), **changes)


def seen(family: str, method: LowRankCache, rows: tuple[int, ...] = (1, 2)) -> dict[int, Entries]:
    """The open entries of every layer right after a prompt."""
    model = kit.model_of(family)
    with attach(model, method) as handle:
        cache = kit.forward(model, dict(tiny_inputs(family, rows)), use_cache=True).past_key_values
        return entries_behind_prompt(handle, cache)


def turns(entries: Entries) -> Tensor:
    """The rotation of every entry as a matrix [B, Hkv, N, Dh, Dh], T k = turned k."""
    assert entries._rotary is not None
    columns = [
        entries._rotary.forth(one.expand_as(entries.key).contiguous(), entries.position) for one in torch.eye(WIDTH)
    ]
    return torch.stack(columns, -1)


# ------------------------------------------------------------------ the metric


@pytest.mark.parametrize("family", FOUR)
def test_the_metric_is_the_mean_of_every_query_turned_back_to_every_entry(family: str) -> None:
    method = all_directions()
    for entries in list(seen(family, method).values())[:2]:
        among = entries.present & (entries.modality == IMAGE)
        looked = entries.attention(method.rule)
        matrices = turns(entries)
        for row in range(len(entries.key)):
            for head in range(entries.key.shape[1]):
                queries = looked.rows.query[row, 2 * head : 2 * head + 2][:, looked.rows.valid[row]].flatten(0, 1)
                moment = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(3))
                moment = moment @ moment.mT + queries.mT @ queries
                brute = torch.stack([t.mT @ moment @ t for t in matrices[row, head][among[row, head]]]).mean(0)
                full = moment.expand(*entries.key.shape[:2], -1, -1)
                got = entries.metric_before_rotation(full, among)[row, head]
                torch.testing.assert_close(got, brute, rtol=2e-5, atol=2e-5 * float(brute.abs().max()))


def independent(entries: Entries, method: LowRankCache, row: int, head: int, rank: int) -> tuple[Tensor, Tensor]:
    """Keys without rotation and values of the image at a rank, in float64, from the pairs of query and entry."""
    among = entries.present[row, head] & (entries.modality[row, head] == IMAGE)
    looked = entries.attention(method.rule)
    valid = looked.rows.valid[row]
    assert bool((looked.rows.modality[row][valid] == TEXT).all())
    share = looked.weight.shape[1] // entries.key.shape[1]
    heads = slice(share * head, share * head + share)
    queries = looked.rows.query[row, heads][:, valid].flatten(0, 1).double()
    # the small part of the identity, as the metric before it is turned has it
    moment = sum(torch.outer(q, q) for q in queries) / len(queries)
    moment = moment + 1e-4 * moment.trace() / WIDTH * torch.eye(WIDTH)
    there = turns(entries)[row, head][among].double()
    metric = sum(t.mT @ moment @ t for t in there) / len(there)
    keys = (torch.linalg.inv(there) @ entries.key[row, head][among].double()[..., None])[..., 0]
    root = torch.linalg.cholesky(metric)
    left, sigma, right = torch.linalg.svd(keys @ root, full_matrices=False)
    made = left[:, :rank] * sigma[:rank] @ right[:rank] @ torch.linalg.inv(root)
    got = looked.weight[row, heads][:, valid][..., among].sum((0, 1)).double()
    weight = (got + 1e-4 * got.mean()).sqrt()[:, None]
    left, sigma, right = torch.linalg.svd(weight * entries.value[row, head][among].double(), full_matrices=False)
    return made, left[:, :rank] * sigma[:rank] @ right[:rank] / weight


@pytest.mark.parametrize("family", FOUR)
def test_keys_and_values_are_the_best_of_their_rank(family: str) -> None:
    method = all_directions()
    for entries in list(seen(family, method).values())[1:3]:
        made = factorise_entries(entries, IMAGE, method.rule, 4, None)
        for row in range(len(entries.key)):
            for head in range(entries.key.shape[1]):
                among = made.among[row, head]
                assert int(among.sum()) > 4
                pairs = zip((made.key, made.value), independent(entries, method, row, head, 4), strict=True)
                for one, wanted in pairs:
                    got = one.read()[row, head][among].double()
                    assert float((got - wanted).abs().max()) <= 1e-3 * float(wanted.abs().max())


@pytest.mark.parametrize("family", FOUR)
def test_the_metric_beats_plain_svd_and_the_error_falls_with_rank(family: str) -> None:
    method = all_directions()
    ours, plain = [0.0] * (WIDTH + 1), [0.0] * (WIDTH + 1)
    for entries in seen(family, method).values():
        looked, keys = entries.attention(method.rule), entries.unrotated()
        for rank in range(1, WIDTH + 1):
            made = factorise_entries(entries, IMAGE, method.rule, rank, None)
            other = factorise(keys, rank=rank, valid=made.among)
            for errors, one in ((ours, made.key), (plain, other)):
                errors[rank] += logit_error(entries, looked, one.read(), made.among)
            missed = made.key.spectrum.sum(-1) - made.key.spectrum.cumsum(-1)[..., rank - 1]
            assert bool((missed >= -1e-6 * made.key.spectrum.sum(-1)).all())
    assert all(less < more for less, more in zip(ours[1:WIDTH], plain[1:WIDTH], strict=True))
    assert all(later < before for before, later in pairwise(ours[1:]))
    assert ours[WIDTH] <= 1e-8 * ours[1]


def logit_error(entries: Entries, looked: Any, keys: Tensor, among: Tensor) -> float:
    """Mean squared error of logits of the observed rows over the entries, with keys given before rotation."""
    assert entries._rotary is not None
    wrong = (entries._rotary.forth(keys, entries.position) - entries.key).masked_fill(~among[..., None], 0.0)
    share = looked.rows.query.shape[1] // wrong.shape[1]
    logits = looked.rows.query @ wrong.repeat_interleave(share, 1).mT
    return float((logits * looked.rows.valid[:, None, :, None]).square().mean())


# ------------------------------------------------------------------ on models


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FOUR)
def test_all_directions_change_nothing(family: str, attn: str) -> None:
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, (1, 2))
    tokens, logits = kit.generate(model, inputs, 6)
    with attach(model, all_directions()):
        got_tokens, got = kit.generate(model, inputs, 6)
        cache = Talk(model, inputs).decode(1).cache
    assert all([type(one) for one in layer.segments] == [LowRankSegment] for layer in cache.layers)
    assert float((got - logits).abs().max()) <= 5e-6 * float(logits.abs().max())
    assert torch.equal(got_tokens, tokens)


MODES: dict[str, dict[str, Any]] = {
    "batch": {},
    "beams": {"num_beams": 3},
    "chunks": {"prefill_chunk_size": 9},
    "lookup": {"prompt_lookup_num_tokens": 3, "steps": 16},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FOUR)
def test_what_is_stored_is_what_is_attended_to(family: str, attn: str, mode: str) -> None:
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, (1,) if mode == "lookup" else (2, 1))
    act = kv_kit.generating(model, inputs, **({"steps": 5} | MODES[mode]))
    kv_kit.hiding(model, act, cross_modal_low_rank(rank=3, rows=5), rewrites=True)


@pytest.mark.parametrize("family", FOUR)
def test_turns_with_another_image_and_text_factorised_too(family: str) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    later = tiny_inputs(family, (1, 1), text=(3, 6), seed=8)

    def act() -> list[Tensor]:
        return Talk(model, inputs).decode(2).hear(more=dict(later)).decode(2).hear(5, 1).decode(2).said

    method = cross_modal_low_rank(rank=2, rows=5, modalities=("image", "text"))
    handle, _ = kv_kit.hiding(model, act, method, rewrites=True)
    assert len(handle.stats().compressions) == 3


@pytest.mark.parametrize(("family", "attn"), [("qwen2_5_vl", "sdpa"), ("llava", "eager")])
def test_entries_are_evicted_first_and_factorised_then(family: str, attn: str) -> None:
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, (1, 2))
    plugins = (snapkv(keep_ratio=0.6, window=4), cross_modal_low_rank(rank=2, rows=5))
    handle, record = kv_kit.hiding(model, kv_kit.generating(model, inputs, 5), *plugins, rewrites=True)
    assert {one.plugin for one in handle.stats().compressions} == {"snapkv", "cross_modal_low_rank"}
    assert record[-1][0].positions.shape[2] < inputs["input_ids"].shape[1]


# ------------------------------------------------------------------ memory


@pytest.mark.parametrize("family", FOUR)
def test_a_head_takes_r_times_n_plus_width_numbers(family: str) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (2,))
    count = image_count(inputs)
    rank = 3
    with attach(model, cross_modal_low_rank(rank=rank, rows=5)) as handle:
        (segment,) = Talk(model, inputs).decode(1).cache.layers[1].segments
        heads = segment.position.shape[1]
        got = sum(tensor.numel() for tensor in segment.contents())
        last = handle.stats().compressions[-1]
    assert got == 2 * heads * rank * (count + WIDTH)
    bare = 2 * heads * count * WIDTH
    layers = len(decoder_layers(model))
    # positions of all entries are held by head now; those of rotation once, by the first layer
    positions = heads * inputs["input_ids"].shape[1] * 4 * layers
    assert last.bytes_before - last.bytes_after == 4 * (bare - got) * layers - positions


def image_count(inputs: TinyInputs) -> int:
    """Visual tokens of the first row."""
    return int(visual_mask(inputs)[0].sum())


def test_entries_stay_where_it_would_take_more_memory() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    count = image_count(inputs)
    most = math.ceil(count * WIDTH / (count + WIDTH)) - 1
    logits = kit.generate(model, inputs, 4)[1]
    for rank, packed in ((most, True), (most + 1, False)):
        with attach(model, cross_modal_low_rank(rank=rank, rows=5)) as handle:
            got = kit.generate(model, inputs, 4)[1]
            assert bool(handle.stats().compressions) == packed
            assert bool(Talk(model, inputs).decode(1).cache.layers[0].segments) == packed
        assert torch.equal(got, logits) != packed


def test_a_row_decides_by_its_own_entries() -> None:
    # two images are worth it at a rank at which one is not
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    one = image_count(tiny_inputs("llava", (1,)))
    rank = math.ceil(one * WIDTH / (one + WIDTH))
    with attach(model, cross_modal_low_rank(rank=rank, rows=5)):
        (segment,) = Talk(model, inputs).decode(1).cache.layers[0].segments
    there = (segment.position >= 0).sum(-1)
    assert there[0].tolist() == [0, 0]
    assert there[1].tolist() == [2 * one] * 2


@pytest.mark.parametrize("energy", [0.6, 0.9])
def test_energy_is_held_by_every_head(energy: float) -> None:
    method = all_directions(rank=None, energy=energy)
    for entries in seen("qwen3_vl", method).values():
        made = factorise_entries(entries, IMAGE, method.rule, None, energy)
        for one in (made.key, made.value):
            held = one.spectrum.cumsum(-1) / one.spectrum.sum(-1, keepdim=True)
            at = (one.rank - 1)[..., None]
            assert bool((held.gather(-1, at) >= energy - 1e-6).all())
            before = held.gather(-1, (at - 1).clamp(min=0))
            assert bool(((before < energy) | (at == 0)).all())


# ------------------------------------------------------------------ arguments


def test_what_is_refused() -> None:
    for wrong in (
        {"rank": 3, "energy": 0.5}, {"rank": 0}, {"rank": 2.5}, {"energy": 0.0}, {"energy": 1.5}, {"rows": 0},
        {"modalities": ()}, {"modalities": ("sound",)}, {"modalities": ("image", "image")},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            cross_modal_low_rank(**wrong)  # type: ignore[arg-type]


def test_a_spec_string_makes_it() -> None:
    assert plugin("cross_modal_low_rank:rank=8") == cross_modal_low_rank(rank=8)
    assert plugin("cross_modal_low_rank") == cross_modal_low_rank(energy=0.95)
