"""Methods that evict by attention: rows that look, pooling, counts, budgets in bytes, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import vlm_eff
from tests.contracts import kit, kv_kit
from tests.contracts.checks_kv_sets import Planted
from tests.contracts.kv_kit import FOUR
from tests.kvcache.open_cache import entries_behind_prompt
from tests.kvcache.replayed import chosen
from tests.oracle import attention_rows
from tests.tiny import tiny_inputs, visual_mask
from vlm_eff import attach
from vlm_eff.core.errors import ConfigError
from vlm_eff.core.plugin import Plugin
from vlm_eff.kvcache import adakv, h2o, prefixkv, pyramidkv, scissorhands, snapkv, tova, vl_cache
from vlm_eff.kvcache.policy import CachePolicy
from vlm_eff.kvcache.scores import Accumulated, ReadOften
from vlm_eff.models.kv.view import Entries

METHODS = (adakv, h2o, prefixkv, pyramidkv, scissorhands, snapkv, tova, vl_cache)
ROOMY = {"window": 3, "recent": 1}


def small(make: Any, **budget: Any) -> Plugin:
    """A method whose windows fit into the budgets of tiny prompts."""
    names = make.__code__.co_varnames[: make.__code__.co_argcount]
    return make(**{name: value for name, value in ROOMY.items() if name in names}, **budget)


def prompt(family: str, plugin: Plugin, rows: tuple[int, ...] = (1, 2)) -> tuple[dict[int, Entries], CachePolicy]:
    """The entries of every layer right after a prompt, and the policy."""
    model = kit.model_of(family)
    with attach(model, plugin) as handle:
        cache = kit.forward(model, dict(tiny_inputs(family, rows)), use_cache=True).past_key_values
        return entries_behind_prompt(handle, cache), plugin  # type: ignore[return-value]


# ------------------------------------------------------------------ SnapKV


@pytest.mark.parametrize(("family", "rows"), [("llava", "text"), ("qwen3_vl", "last")])
def test_the_rows_that_look_are_text_or_simply_the_last(family: str, rows: Any) -> None:
    window, count = 6, 14
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2), text=(2, 4))
    record = kv_kit.compressed(model, inputs, snapkv(keep_count=count, window=window, rows=rows, kernel=1))
    visual = visual_mask(inputs)
    assert bool(visual[:, -window:].any()), "the last rows hold no image"
    for layer in range(kit.LAYERS):
        weights = attention_rows(model, inputs, layer).double()
        for index, row in enumerate(weights):
            real = kv_kit.real_places(inputs, index)
            looking = [place for place in real if rows == "last" or not visual[index, place]][-window:]
            for head, group in enumerate(row.chunk(2, 0)):
                mass = group[:, looking].sum((0, 1)).tolist()
                wanted = chosen(dict(enumerate(mass)), real, count, window)
                assert kv_kit.kept(record[-1][layer], index, head)[:-1] == wanted


@pytest.mark.parametrize("pool", ["avg", "max"])
@pytest.mark.parametrize("family", FOUR[:2])
def test_the_neighbours_of_a_needle_rank_next(family: str, pool: Any) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 1))
    needle = torch.stack([row.nonzero()[:, 0][8] for row in visual_mask(inputs)])
    plugin = snapkv(keep_count=4 + 5, window=4, pool=pool)
    with kv_kit.changed_keys(model, Planted(needle, 4)):
        record = kv_kit.compressed(model, inputs, plugin)
    for _, index, _, kept in kv_kit.each(record[-1], model):
        place, real = int(needle[index]), kv_kit.real_places(inputs, index)
        assert kept[:-1] == [*range(place - 2, place + 3), *real[-4:]]


def test_the_window_is_no_neighbour() -> None:
    entries, policy = prompt("llava", snapkv(keep_ratio=0.5, window=4, kernel=5, pool="max"))
    louder = False
    for layer in entries.values():
        raw = replace(policy.score, kernel=1)(layer)  # type: ignore[type-var]
        before = raw[:, :, -7:-4].amax(2)
        louder |= bool((raw[:, :, -4:-2].amax(2) > before).any())
        assert torch.equal(policy.score(layer)[:, :, -5], before)
    assert louder, "the window is never looked at more than what is before it"


# ------------------------------------------------------------------ H2O and Scissorhands


def stub(weight: Tensor) -> Any:
    """Entries of one head with the attention [R, N] of causal rows at their end."""
    rows, count = weight.shape
    place = torch.arange(count)
    looks = (place[None] <= torch.arange(count - rows, count)[:, None])[None, None]
    asked = SimpleNamespace(valid=torch.ones(1, rows, dtype=torch.bool))
    seen = SimpleNamespace(weight=weight[None, None], looks=looks, rows=asked)
    sums = SimpleNamespace(got=weight.sum(0)[None, None, :, None], looks=looks.sum(2)[..., None])
    return SimpleNamespace(
        key=torch.zeros(1, 1, count, 2),
        present=torch.ones(1, 1, count, dtype=torch.bool),
        closed=torch.zeros(1, 1, dtype=torch.long),
        attention=lambda rule: seen,
        sums=lambda kind: sums,
    )


def test_counts_are_no_masses() -> None:
    # entry 1 is read once and heavily, entry 2 is read a little by everybody
    weight = torch.tensor([[0.05, 0.90, 0.05, 0, 0], [0.37, 0.01, 0.30, 0.32, 0], [0.20, 0.01, 0.29, 0.30, 0.20]])
    counts, mass = ReadOften()(stub(weight))[0, 0], Accumulated()(stub(weight))[0, 0]
    assert counts.tolist() == [-1, -2, -1, 0, 0]
    assert float(mass[1]) > float(mass[2])
    assert float(counts[1]) < float(counts[2])


def test_even_attention_reads_everything() -> None:
    assert not bool(ReadOften()(stub(torch.full((3, 8), 1 / 8))).any())


@pytest.mark.parametrize(("normalise", "ratio"), [("none", "T H"), ("visible", "H"), ("length", "1")])
def test_even_attention_favours_the_first_unless_normalised(normalise: Any, ratio: str) -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))

    def blank(attention: Any, layer: int, states: Tensor, call: Any) -> Tensor:
        return torch.zeros_like(states)

    plugin = h2o(keep_count=9, normalise=normalise)
    with kv_kit.changed_keys(model, blank):
        entries, policy = prompt("llava", plugin, (1,))
    count = inputs["input_ids"].shape[1]
    harmonic = sum(1 / n for n in range(1, count + 1))
    wanted = {"T H": count * harmonic, "H": harmonic, "1": 1.0}[ratio]
    for layer in entries.values():
        score = policy.score(layer)
        torch.testing.assert_close(score[..., 0] / score[..., -1], torch.full((1, 2), wanted), rtol=1e-4, atol=0)


def test_the_budget_is_never_passed_and_many_go_at_once() -> None:
    model, inputs = kit.model_of("qwen2_5_vl"), tiny_inputs("qwen2_5_vl", (1, 2))
    plugin = scissorhands(keep_count=12, window=6, recent=3, drop=0.5)
    record = kv_kit.compressed(model, inputs, plugin, steps=16)
    stored = [{len(kept) for _, _, _, kept in kv_kit.each(call, model)} for call in record[1:]]
    # the newest entry comes on top of what was stored when the step began
    assert stored == [{13}, *({count} for count in range(7, 14)), *({count} for count in range(7, 14)), {7}]


# ------------------------------------------------------------------ budgets


@pytest.mark.parametrize("make", METHODS, ids=lambda make: make.__name__)
def test_a_budget_in_bytes_is_met(make: Any) -> None:
    family = FOUR[METHODS.index(make) % 4]
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    entry, length = 2 * 2 * 16 * 4, inputs["input_ids"].shape[1]
    # no whole number of entries a layer, and not of entries
    wanted = 77 * entry + 50
    record = kv_kit.compressed(model, inputs, small(make, keep_bytes=wanted))[-1]
    for row in range(2):
        stored = [
            [place for place in kept if place < length] for _, r, _, kept in kv_kit.each(record, model) if r == row
        ]
        assert sum(map(len, stored)) == 2 * 77


@pytest.mark.parametrize("make", METHODS, ids=lambda make: make.__name__)
def test_more_room_than_entries_changes_no_bit(make: Any) -> None:
    family = FOUR[(METHODS.index(make) + 1) % 4]
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    tokens, logits = kit.generate(model, inputs, 4)
    run = kit.attached_generate(model, inputs, make(keep_count=500), steps=4)
    assert run.tokens is not None
    assert torch.equal(run.logits, logits)
    assert torch.equal(run.tokens, tokens)
    assert not run.handle.stats().compressions


# ------------------------------------------------------------------ what is refused

REFUSED: dict[str, dict[str, Any]] = {
    "snapkv": {"window": 0, "rows": "words", "kernel": 4, "pool": "mean", "keep_ratio": 1.5},
    "h2o": {"recent_share": 1.5, "normalise": "rows", "every": 0, "keep_count": 0},
    "scissorhands": {"window": 0, "recent": -1, "drop": 1.0, "keep_bytes": 0},
    "tova": {"every": 0.5},
    "pyramidkv": {"beta": 0.5, "adaptive_share": -0.1, "window": -1, "kernel": 2},
    "adakv": {"floor": 1.1, "kernel": 0, "rows": "image"},
    "vl_cache": {"recent_share": -1, "threshold": 2, "rows": 0, "adaptive_share": 2, "head_adaptive": "yes"},
    "prefixkv": {"sinks": -1, "adaptive_share": "all", "normalise": "sum"},
}


@pytest.mark.parametrize(("name", "argument"), [(name, one) for name, bad in REFUSED.items() for one in bad])
def test_wrong_arguments_are_refused_with_a_sentence(name: str, argument: str) -> None:
    make = vlm_eff.methods()[name].make
    with pytest.raises(ConfigError, match=r"Accepted: .*\w") as said:
        make(**{argument: REFUSED[name][argument]})
    assert repr(REFUSED[name][argument]) in str(said.value) or str(REFUSED[name][argument]) in str(said.value)


@pytest.mark.parametrize("make", METHODS, ids=lambda make: make.__name__)
def test_two_budgets_are_refused_and_spec_strings_work(make: Any) -> None:
    with pytest.raises(ConfigError, match="exactly one of"):
        make(keep_ratio=0.5, keep_count=3)
    made = vlm_eff.plugin(f"{make.__name__}:keep_ratio=0.3")
    assert made == make(keep_ratio=0.3)
    assert vlm_eff.core.config.from_dict(made.to_dict()) == made
    assert hash(made) == hash(make(keep_ratio=0.3))
