"""Methods that go on evicting while decoding: every choice of every step, told again from the attention of each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tests.contracts import checks_kv, kit
from tests.contracts.kv_kit import FOUR
from tests.kvcache.replayed import Told, chosen, told
from vlm_eff.core.plugin import Plugin
from vlm_eff.kvcache import h2o, scissorhands, streaming_llm, tova

STEPS, COUNT = 7, 11
Scores = Callable[[Told, int, int, int, int, list[int]], dict[int, float]]
"""(told, call before which a choice is made, layer, row, head, places alive) -> score of each"""


def accumulated(normalise: str) -> Scores:
    def scores(run: Told, call: int, layer: int, row: int, head: int, alive: list[int]) -> dict[int, float]:
        got, looked = dict.fromkeys(alive, 0.0), dict.fromkeys(alive, 0)
        for before in range(call):
            for query in run.rows(before, row):
                weights = run.weights(before, layer, row, head, query)
                there = [place for place in run.stored(before, layer, row, head) if place <= query]
                for place in alive:
                    if place <= query:
                        got[place] += float(weights[:, place].sum()) * (len(there) if normalise == "length" else 1)
                        looked[place] += 1
        return {place: got[place] / (1 if normalise == "none" else looked[place]) for place in alive}

    return scores


def newest(run: Told, call: int, layer: int, row: int, head: int, alive: list[int]) -> dict[int, float]:
    query = run.rows(call - 1, row)[-1]
    heads = [run.weights(call - 1, layer, row, group, query) for group in range(run.heads)]
    return {place: float(torch.cat(heads)[:, place].mean()) for place in alive}


def seldom(window: int) -> Scores:
    def scores(run: Told, call: int, layer: int, row: int, head: int, alive: list[int]) -> dict[int, float]:
        queries = [(before, query) for before in range(call) for query in run.rows(before, row)][-window:]
        made = dict.fromkeys(alive, 0.0)
        for before, query in queries:
            weights = run.weights(before, layer, row, head, query)
            there = [place for place in alive if place <= query]
            # over what is stored now
            share = weights / weights[:, there].sum(1, keepdim=True)
            for place in there:
                made[place] -= int((share[:, place] < 1 / len(alive) - 1e-6).sum())
        return made

    return scores


CASES: dict[str, tuple[Plugin, Scores, int, int, int]] = {
    # plugin, scores, newest that stay, more than the budget, count after a step that evicts
    "h2o": (h2o(keep_count=COUNT), accumulated("none"), 6, 1, COUNT),
    "h2o visible": (h2o(keep_count=COUNT, normalise="visible", every=2), accumulated("visible"), 6, 2, COUNT),
    "h2o length": (
        h2o(keep_count=COUNT, normalise="length", recent_share=0.2), accumulated("length"), 3, 1, COUNT
    ),
    "tova": (tova(keep_count=COUNT, every=3), newest, 1, 3, COUNT),
    "scissorhands": (scissorhands(keep_count=COUNT, window=9, recent=3, drop=0.3), seldom(9), 3, 1, 8),
}  # fmt: skip


@pytest.mark.parametrize(("family", "name"), list(zip((*FOUR, "llava"), CASES, strict=True)))
def test_every_step_chooses_by_the_definition(family: str, name: str) -> None:
    plugin, scores, recent, every, count = CASES[name]
    run = told(family, plugin, STEPS)
    chose = 0
    for call in range(1, STEPS):
        for layer in range(kit.LAYERS):
            for row in range(len(run.inputs["input_ids"])):
                for head in range(run.heads):
                    alive = run.stored(call - 1, layer, row, head)
                    wanted = alive
                    if call == 1 or len(alive) >= COUNT + every:
                        less = COUNT if call == 1 else count
                        wanted = chosen(scores(run, call, layer, row, head, alive), alive, less, recent)
                        chose += call > 1
                    got = run.stored(call, layer, row, head)
                    assert got == [*wanted, run.length + call - 1], f"call {call}, layer {layer}, row {row}, {head}"
    assert chose, "nothing was evicted while decoding"


@pytest.mark.parametrize("plugin", [h2o(keep_ratio=0.4, every=2), streaming_llm(keep_ratio=0.35, every=2)])
def test_rows_whose_budgets_grow_at_different_steps_do_not_wait_for_one_another(plugin: Plugin) -> None:
    checks_kv.kv_batch_equals_rows("llava", plugin, (1, 2, 0, 1))
