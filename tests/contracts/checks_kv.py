"""Exactness of the compressed cache: keeping everything changes nothing, and evicting equals hiding in a full cache."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from tests.contracts import kit, kv_kit
from tests.contracts.kv_kit import Talk
from tests.kv_oracle import recording, replaying, slides
from tests.oracle import bypassed_tokens, decoder_layers, hidden_columns
from tests.tiny import row, tiny_inputs
from vlm_eff import attach
from vlm_eff.core.handle import Handle
from vlm_eff.core.plugin import Plugin
from vlm_eff.core.resources import Resource

Rows = tuple[int, ...]


def kv_keeping_everything_changes_no_bit(family: str, attn: str, plugin: Plugin, rows: Rows = (1, 2)) -> None:
    """P1: a budget of everything changes no bit of prefill and decoding, and stores everything."""
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, rows)
    tokens, logits = kit.generate(model, inputs, 4)
    with attach(model, plugin) as handle:
        got_tokens, got = kit.generate(model, inputs, 4)
        positions = [handle.kv_positions(layer) for layer in range(kit.LAYERS)]
    assert handle.stats().calls == 4
    assert torch.equal(got, logits)
    assert torch.equal(got_tokens, tokens)
    total = inputs["input_ids"].shape[1] + 3
    for layer, stored in enumerate(positions):
        wanted = torch.cat([kit.real(inputs), torch.ones(len(rows), 3, dtype=torch.bool)], 1)
        for index in range(len(rows)):
            for head in range(stored.shape[1]):
                there = set(stored[index, head].tolist())
                missing = set(wanted[index].nonzero()[:, 0].tolist()) - there
                assert not missing or slides(decoder_layers(model)[layer].self_attn), f"{missing} of {total} are gone"


def kv_evicting_equals_hiding(
    family: str, attn: str, plugin: Plugin, rows: Rows = (1, 2), rewrites: bool = False, **mode: Any
) -> None:
    """P4: `generate` equals the full cache with hidden entries, in a padded batch, with beams, samples, candidates."""
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, rows)
    act = kv_kit.generating(model, inputs, **mode)
    handle, record = kv_kit.hiding(model, act, plugin, rewrites=rewrites)
    assert handle.stats().calls == len(record)


def kv_defaults_equal_hiding(family: str, plugin: Plugin, rewrites: bool = False) -> None:
    """P4 with settings made for longer prompts, which may keep all of a tiny one."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    act = kv_kit.generating(model, inputs, 4)
    with attach(model, plugin) as handle, recording(model, handle, rewrites) as record:
        got = act()
    with replaying(model, record):
        want = act()
    kit.same(got[0], want[0])
    assert torch.equal(got[1], want[1])


def kv_candidates_equal_hiding(family: str, plugin: Plugin, rewrites: bool = False, steps: int = 14) -> None:
    """P4 in assisted decoding, where candidates are judged together and cropped."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1,))
    # a model of random weights does not always repeat itself at once
    for count in (steps, 3 * steps):
        act = kv_kit.generating(model, inputs, count, prompt_lookup_num_tokens=3)
        _, record = kv_kit.hiding(model, act, plugin, rewrites=rewrites)
        ends = [int(call[0].positions.max()) for call in record]
        if any(after != before + 1 for before, after in pairwise(ends)):
            return
    raise AssertionError("there were no candidates")


def kv_candidates_are_no_prompt(family: str, plugin: Plugin, candidates: int = 3) -> None:
    """Candidates that come with a prompt move no choice among its entries, and are no part of it once accepted."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1,))
    length = inputs["input_ids"].shape[1]
    plain = kv_kit.compressed(model, inputs, plugin)[1]
    with attach(model, plugin) as handle, recording(model, handle) as record:
        Talk(model, inputs, candidates=candidates).forget(candidates - 1).decode(1)
    for one, other in zip(kv_kit.each(record[1], model), kv_kit.each(plain, model), strict=True):
        assert one[3] == [*(place for place in other[3] if place < length), length, length + 1]


def kv_turns_equal_hiding(family: str, attn: str, plugin: Plugin, rewrites: bool = False) -> None:
    """P4 over turns: a prompt, an answer, a question, an answer; what the first turn lost stays lost."""
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, (1, 2))

    def act() -> list[Tensor]:
        return Talk(model, inputs).decode(3).hear(6, 1).decode(3).said

    _, record = kv_kit.hiding(model, act, plugin, rewrites=rewrites)
    length = inputs["input_ids"].shape[1]
    for before, after in pairwise(record[1:]):
        for one, other in zip(kv_kit.each(before, model), kv_kit.each(after, model), strict=True):
            old = {place for place in other[3] if place < length}
            assert old <= set(one[3]), "an evicted entry came back"


def kv_second_image_equals_hiding(family: str, plugin: Plugin, rewrites: bool = False, attn: str = "sdpa") -> None:
    """P4 with a padded turn that brings another image."""
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, (1, 2))
    later = tiny_inputs(family, (1, 1), text=(3, 6), seed=8)

    def act() -> list[Tensor]:
        return Talk(model, inputs).decode(2).hear(more=dict(later)).decode(2).said

    kv_kit.hiding(model, act, plugin, rewrites=rewrites)


def kv_beside_tokens_that_go(family: str, attn: str, plugin: Plugin, other: Plugin, rewrites: bool = False) -> None:
    """P4 beside a plugin that drops or merges tokens: what either of them took away is hidden."""
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, (1, 2))
    act = kv_kit.generating(model, inputs, 5)

    @contextmanager
    def without(handle: Handle) -> Iterator[None]:
        gone, idle = kit.dropped(handle, inputs), kit.bypassed(handle, inputs)
        with kit.pooled(model, inputs, other, handle), bypassed_tokens(model, idle), hidden_columns(model, gone):
            yield

    handle, record = kv_kit.hiding(model, act, plugin, other, rewrites=rewrites, beside=without)
    for layer, index, _, kept in kv_kit.each(record[-1], model):
        alive = set(handle.survivors(layer)[index].tolist())
        assert {place for place in kept if place < inputs["input_ids"].shape[1]} <= alive


def kv_batch_equals_rows(family: str, plugin: Plugin, rows: Rows = (1, 2, 0), relative: float = kit.RELATIVE) -> None:
    """P8: a padded batch keeps what its rows keep alone, and computes the same logits."""
    model, inputs = kit.model_of(family), tiny_inputs(family, rows)
    width, less = inputs["input_ids"].shape[1], False

    def run(given: Any) -> tuple[Tensor, list[Any]]:
        with attach(model, plugin) as handle, recording(model, handle) as record:
            logits = kit.generate(model, given, 4)[1]
        return logits, record[-1]

    logits, stored = run(inputs)
    for index in range(len(rows)):
        alone = row(inputs, index)
        single, entries = run(alone)
        kit.same(logits[index], single[0], relative)
        shift = width - alone["input_ids"].shape[1]
        for layer in range(kit.LAYERS):
            if slides(decoder_layers(model)[layer].self_attn):
                continue
            for head in range(entries[layer].positions.shape[1]):
                own = kv_kit.kept(entries[layer], 0, head)
                assert kv_kit.kept(stored[layer], index, head) == [place + shift for place in own]
                less |= len(own) < alone["input_ids"].shape[1] + 3
    assert less or Resource.CACHE_ENTRIES not in plugin.writes, "nothing was evicted"


def kv_eager_equals_sdpa(family: str, plugin: Plugin, relative: float = kit.RELATIVE) -> None:
    """Both attention implementations evict the same entries and compute the same logits."""
    inputs, made = tiny_inputs(family, (1, 2)), []
    for attn in ("sdpa", "eager"):
        model = kit.model_of(family, attn)
        with attach(model, plugin) as handle, recording(model, handle) as record:
            logits = kit.generate(model, inputs, 4)[1]
        made.append((logits, list(kv_kit.each(record[-1], model))))
    kit.same(made[0][0], made[1][0], relative)
    assert made[0][1] == made[1][1]


def kv_chunks_equal_one_prompt(family: str, plugin: Plugin, relative: float = kit.RELATIVE) -> None:
    """P9: a prompt that comes in chunks keeps the same entries and computes the same logits.

    A last chunk of a single token cannot be told from a decode step: the prompt then ends before it.
    """
    model, inputs, made = kit.model_of(family), tiny_inputs(family, (1, 2)), []
    chunk = next(size for size in range(7, 30) if inputs["input_ids"].shape[1] % size in (2, 3))
    for mode in ({}, {"prefill_chunk_size": chunk}):
        with attach(model, plugin) as handle, recording(model, handle) as record:
            logits = kit.generate(model, inputs, 4, **mode)[1]
        made.append((logits, list(kv_kit.each(record[-1], model))))
    kit.same(made[1][0], made[0][0], relative)
    assert made[0][1] == made[1][1]
    kit.differs(made[0][0], kit.generate(model, inputs, 4)[1])
