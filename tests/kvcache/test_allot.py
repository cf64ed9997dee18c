"""Who gets which precision, on attention written down by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts import kit
from tests.contracts.kv_kit import Talk
from tests.oracle import attention_rows
from tests.tiny import tiny_inputs
from vlm_eff import attach
from vlm_eff.core.cache import CacheRows
from vlm_eff.kvcache import saliency_precision, zipvl_kv
from vlm_eff.kvcache.allot import ByMass, BySaliency
from vlm_eff.models.kv import observing, view
from vlm_eff.models.kv.book import Asked

ROWS = CacheRows("last", 4)


@dataclass
class Entries:
    """Entries that got attention `weight` [B, H, R, N]; heads of a group are next to each other."""

    weight: Tensor
    looks: Tensor
    heads: int

    @property
    def key(self) -> Tensor:
        return torch.zeros(self.weight.shape[0], self.heads, self.weight.shape[3], 2)

    @property
    def position(self) -> Tensor:
        return torch.arange(self.weight.shape[3]).expand(self.weight.shape[0], self.heads, -1)

    def received(self, rule: CacheRows) -> Tensor:
        assert rule == ROWS
        return self.weight.sum(2).unflatten(1, (self.heads, -1)).sum(2)

    def looking(self, rule: CacheRows) -> Tensor:
        assert rule == ROWS
        return self.looks.sum(2)

    @property
    def ready(self) -> Tensor:
        return torch.ones(self.weight.shape[0], self.heads, self.weight.shape[3], dtype=torch.bool)


def golden(rows: slice = slice(4, 8)) -> Entries:
    """The sheet's causal attention of eight tokens."""
    row, column = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    logits = ((7 * row + 3 * column) % 11).double() / 4
    looks = column <= row
    weight = logits.masked_fill(~looks, -torch.inf).softmax(-1)
    return Entries(weight[None, None, rows].float(), looks[None, None, rows], 1)


def high(tier: Tensor, head: int = 0) -> set[int]:
    return set((tier[0, head] == 0).nonzero()[:, 0].tolist())


def test_zipvl_counts_by_mass_and_chooses_by_looks() -> None:
    entries = golden()
    assert high(ByMass(ROWS, 0.57)(entries, entries.ready)) == {1, 4, 5}
    # by mass alone the first token would be there in place of the sixth
    assert set(entries.weight[0, 0].sum(0).topk(3).indices.tolist()) == {0, 1, 4}


@pytest.mark.parametrize(("mass", "count"), [(0.57, 3), (0.6, 4), (0.8, 5), (0.9, 6), (0.9999, 8), (1.0, 8)])
def test_zipvl_takes_more_for_more_mass(mass: float, count: int) -> None:
    entries = golden()
    assert len(high(ByMass(ROWS, mass)(entries, entries.ready))) == count


def test_attention_on_one_entry_takes_one() -> None:
    weight = torch.zeros(1, 2, 4, 8)
    weight[:, :, :, 3] = 1.0
    entries = Entries(weight, torch.ones(1, 1, 4, 8, dtype=torch.bool), 1)
    assert high(ByMass(ROWS, 0.96)(entries, entries.ready)) == {3}


def test_heads_of_a_row_take_equally_many_of_their_own() -> None:
    torch.manual_seed(0)
    weight = torch.randn(2, 4, 5, 12).mul(3).softmax(-1)
    entries = Entries(weight, torch.ones(2, 2, 5, 12, dtype=torch.bool), 2)
    tier = ByMass(ROWS, 0.8)(entries, entries.ready)
    for row in range(2):
        mass = weight[row].sum(1).view(2, 2, 12).sum(1)
        ordered = mass.sort(-1, descending=True).values.sum(0).cumsum(0)
        count = int((ordered < 0.8 * float(mass.sum())).sum()) + 1
        for head in range(2):
            wanted = set(mass[head].topk(count).indices.tolist())
            assert set((tier[row, head] == 0).nonzero()[:, 0].tolist()) == wanted


def test_entries_that_are_not_ready_count_for_nothing() -> None:
    entries = golden()
    ready = entries.ready
    ready[..., 1] = False
    tier = ByMass(ROWS, 0.57)(entries, ready)
    mass = entries.weight[0, 0].sum(0).masked_fill(~ready[0, 0], 0.0)
    ordered = mass.sort(descending=True).values.cumsum(0)
    assert len(high(tier)) == int((ordered < 0.57 * float(mass.sum())).sum()) + 1
    assert 1 not in high(tier)


# ------------------------------------------------------------------ bits by saliency


def bits_of(weight: Tensor, heads: int = 2, per_head: bool = True, rule: Any = "mean", value: float = 3.0) -> Tensor:
    looks = torch.ones(weight.shape[0], heads, *weight.shape[2:], dtype=torch.bool)
    entries = Entries(weight, looks, heads)
    levels = (0, 2, 4, 8)
    tier = BySaliency(ROWS, levels, rule, value, per_head)(entries, entries.ready)
    return torch.tensor(levels)[tier]


@pytest.mark.parametrize("budget", [0.5, 2.0, 3.0, 6.5])
@pytest.mark.parametrize("per_head", [True, False])
def test_the_budget_of_bits_is_met(budget: float, per_head: bool) -> None:
    torch.manual_seed(1)
    made = bits_of(torch.randn(2, 4, 5, 30).mul(2).softmax(-1), per_head=per_head, value=budget)
    total = made.sum((1, 2)) if per_head else made[:, 0].sum(1) * 2
    assert (total <= budget * 60).all()
    # less than one step is left over, for every head where heads share their choice
    assert (total > budget * 60 - (4 if per_head else 8)).all()


@pytest.mark.parametrize(("rule", "value"), [("mean", 3.0), ("tau", 1.0), ("share", 0.3)])
def test_more_attention_never_means_fewer_bits(rule: str, value: float) -> None:
    torch.manual_seed(2)
    weight = torch.randn(1, 4, 5, 20).mul(2).softmax(-1)
    before = bits_of(weight, rule=rule, value=value)
    for entry in range(20):
        for more in (0.01, 0.5, 3.0):
            raised = weight.clone()
            raised[:, :2, :, entry] += more
            assert bits_of(raised, rule=rule, value=value)[0, 0, entry] >= before[0, 0, entry]


def test_two_levels_are_a_threshold() -> None:
    torch.manual_seed(3)
    weight = torch.randn(1, 4, 5, 20).mul(2).softmax(-1)
    made = bits_of(weight, rule="share", value=0.25)
    mass = weight.sum(2).view(1, 2, 2, 20).sum(2)
    for head in range(2):
        assert set((made[0, head] == 8).nonzero()[:, 0].tolist()) == set(mass[0, head].topk(5).indices.tolist())
    above = bits_of(weight, rule="tau", value=1.5)
    assert torch.equal(above == 8, mass > 1.5 * mass.mean(-1, keepdim=True))


def test_heads_that_agree_choose_one_set() -> None:
    torch.manual_seed(4)
    made = bits_of(torch.randn(2, 4, 5, 30).mul(2).softmax(-1), per_head=False)
    assert torch.equal(made[:, 0], made[:, 1])
    apart = bits_of(torch.randn(2, 4, 5, 30).mul(2).softmax(-1), per_head=True)
    assert not torch.equal(apart[:, 0], apart[:, 1])


# ------------------------------------------------------------------ on a model


def test_the_high_tier_is_what_the_probes_look_at() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (2,))
    length = inputs["input_ids"].shape[1]
    with attach(model, zipvl_kv(8, 2, keep_mass=0.6, recent=length, random=0)):
        cache = Talk(model, inputs).decode(1).cache
    for index, layer in enumerate(cache.layers):
        weights = attention_rows(model, inputs, index)[0].double()
        mass = weights.sum(1).view(2, -1, length).sum(1)
        ordered = mass.sort(-1, descending=True).values.sum(0).cumsum(0)
        count = int((ordered < 0.6 * float(mass.sum())).sum()) + 1
        share = mass / torch.arange(length, 0, -1)
        assert layer.segments[0].key.format.bits == 8
        for head in range(2):
            wanted = sorted(share[head].topk(count).indices.tolist())
            assert layer.segments[0].position[0, head].tolist() == wanted


def test_what_was_generated_is_judged_by_the_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    length, seen = inputs["input_ids"].shape[1], []
    asked: list[Any] = []
    original = view.Entries.received

    def noted(self: view.Entries, rule: CacheRows) -> Tensor:
        asked.append(self.attention(rule))
        return original(self, rule)

    monkeypatch.setattr(view.Entries, "received", noted)
    with attach(model, zipvl_kv(8, 2, keep_mass=0.3, recent=4, random=4, every=5)):
        talk = Talk(model, inputs).decode(6)
        for layer in talk.cache.layers:
            seen.append(layer.segments[2:])
            assert [segment.key.format.bits for segment in seen[-1]] == [8, 2]
            places = torch.cat([segment.position for segment in seen[-1]], 2).sort(-1).values
            assert (places == torch.arange(length, length + 5)).all()
    # once a layer for the prompt, by eight rows, once for five tokens, by the last one
    assert [rows.rows.position.shape[1] for rows in asked] == [8] * kit.LAYERS + [1] * kit.LAYERS
    for layer, rows in enumerate(asked[kit.LAYERS :]):
        assert (rows.rows.position == length + 4).all()
        mass = rows.weight.sum(2).view(2, 2, -1, 5).sum(2)
        best = mass.argmax(-1, keepdim=True) + length
        assert (seen[layer][0].position == best).any(-1).all()


def test_a_budget_of_bits_is_what_is_stored() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    real = kit.real(inputs).sum(1)
    with attach(model, saliency_precision(bits_budget=2.5, window=4, group=4)):
        cache = Talk(model, inputs).decode(1).cache
    for layer in cache.layers:
        total = sum((s.position >= 0).sum((1, 2)) * s.key.format.bits for s in layer.segments)
        assert (total <= 2.5 * 2 * real).all()
        assert (total > 2.5 * 2 * real - 8).all()


def test_the_newest_row_is_kept_without_asking_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows as by the general rule, and no count that would have to be brought to the host."""
    rule, counted = CacheRows("last", 1, steps=True), [0]
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))

    def rows(cache: Any) -> list[Tensor]:
        asked = [layer.book.asked[rule] for layer in cache.layers]
        return [getattr(one, name) for one in asked for name in ("query", "position", "ordinal", "valid", "looks")]

    original = observing.from_mask
    monkeypatch.setattr(observing, "from_mask", lambda mask: (counted.append(1), original(mask))[1])
    plugin = zipvl_kv(8, 4, recent=4, random=4, every=5)
    with attach(model, plugin):
        talk = Talk(model, inputs)
        counted.clear()
        fast = rows(talk.decode(4).cache)
        assert not counted
        monkeypatch.setattr(observing, "CacheRows", lambda *rest, **named: None)
        slow = rows(Talk(model, inputs).decode(4).cache)
        assert counted
    assert (fast[1] == inputs["input_ids"].shape[1] + 3).all()
    for one, other in zip(fast, slow, strict=True):
        assert torch.equal(one, other)


def test_a_row_without_a_newer_token_keeps_its_old_one() -> None:
    def asked(place: int, valid: list[bool], width: int) -> Asked:
        index = torch.full((2, 1), place)
        mark = torch.tensor(valid)[:, None]
        looks = torch.ones(2, 1, width, dtype=torch.bool)
        return Asked(torch.full((2, 4, 1, 3), float(place)), index, index, index, mark, looks)

    made = asked(5, [True, True], 6).replaced(asked(6, [False, True], 7))
    assert made.position[:, 0].tolist() == [5, 6]
    assert made.query[:, 0, 0, 0].tolist() == [5.0, 6.0]
    assert made.valid.all()
    assert made.looks.sum(-1)[:, 0].tolist() == [6, 7]
