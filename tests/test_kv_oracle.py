"""The full-cache oracle against itself: keeping everything, evicting by hand, counting an entry twice."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from tests.contracts import kit
from tests.contracts.checks_modes import next_turn, words
from tests.kv_oracle import Entries, Record, everything, replaying
from tests.oracle import decoder_layers
from tests.tiny import TinyInputs, tiny_inputs

FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "internvl")
HEADS, STEPS = 2, 4


def lengths(inputs: TinyInputs, steps: int = STEPS) -> list[int]:
    return [inputs["input_ids"].shape[1] + step for step in range(steps)]


def thinned(inputs: TinyInputs, share: float = 0.5, steps: int = STEPS, seed: int = 0) -> Record:
    """The record of a cache that lacks entries at random, other ones in every row, layer and head."""
    generator = torch.Generator().manual_seed(seed)
    rows, length = inputs["input_ids"].shape
    stays = [torch.rand(rows, HEADS, length, generator=generator) < share for _ in range(kit.LAYERS)]
    record = everything(kit.model_of(inputs.family), rows, HEADS, lengths(inputs, 1))
    for total in lengths(inputs, steps)[1:]:
        places = torch.arange(total).expand(rows, HEADS, -1)
        tail = torch.ones(rows, HEADS, total - length, dtype=torch.bool)
        record.append([Entries(places.where(torch.cat([kept, tail], -1), -1)) for kept in stays])
    return record


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_seeing_everything_is_the_bare_model(family: str, attn: str) -> None:
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, (1, 2))
    tokens, logits = kit.generate(model, inputs, STEPS)
    with replaying(model, everything(model, 2, HEADS, lengths(inputs))):
        seen, again = kit.generate(model, inputs, STEPS)
    kit.same(again, logits)
    assert torch.equal(seen, tokens)


@pytest.mark.parametrize("mode", ["beams", "chunks", "candidates"])
def test_seeing_everything_is_the_bare_model_in_other_modes(mode: str) -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,) if mode == "candidates" else (1, 2))
    options: dict[str, Any] = {
        "beams": {"num_beams": 3}, "chunks": {"prefill_chunk_size": 10}, "candidates": {"prompt_lookup_num_tokens": 3}
    }[mode]  # fmt: skip
    made: list[int] = []
    hook = model.register_forward_hook(lambda _, args, out: made.append(out.past_key_values.get_seq_length()))
    tokens, logits = kit.generate(model, inputs, 12, **options)
    hook.remove()
    rows = len(inputs["input_ids"]) * options.get("num_beams", 1)
    with replaying(model, everything(model, rows, HEADS, made)):
        seen, again = kit.generate(model, inputs, 12, **options)
    kit.same(again, logits)
    assert torch.equal(seen, tokens)


@pytest.mark.parametrize("family", FAMILIES)
def test_evicting_is_seen_and_eager_equals_sdpa(family: str) -> None:
    inputs, made = tiny_inputs(family, (1, 2)), []
    for attn in ("sdpa", "eager"):
        model = kit.model_of(family, attn)
        with replaying(model, thinned(inputs)):
            made.append(kit.generate(model, inputs, STEPS)[1])
    bare = kit.generate(kit.model_of(family), inputs, STEPS)[1]
    kit.same(made[0], made[1])
    kit.same(made[0][:, 0], bare[:, 0])
    for step in range(1, STEPS):
        kit.differs(made[0][:, step], bare[:, step])


@pytest.mark.parametrize("what", ["row", "layer", "head"])
def test_it_matters_whose_entries_go(what: str) -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 1))
    record, other = thinned(inputs), copy.deepcopy(thinned(inputs))
    for call in other:
        if what == "layer":
            call.reverse()
        else:
            axis = 0 if what == "row" else 1
            call[:] = [Entries(entries.positions.flip(axis)) for entries in call]
    made = []
    for each in (record, other):
        with replaying(model, each):
            made.append(kit.generate(model, inputs, STEPS)[1])
    kit.differs(made[0][:, 1:], made[1][:, 1:])


def test_padding_may_be_called_stored_or_not() -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2))
    record, without = thinned(inputs, 0.8), []
    padding = ~kit.real(inputs)
    for call in record:
        hidden = torch.nn.functional.pad(padding, (0, call[0].positions.shape[-1] - padding.shape[1]))
        without.append([Entries(one.positions.masked_fill(hidden[:, None], -1)) for one in call])
    made = []
    for each in (record, without):
        with replaying(model, each):
            made.append(kit.generate(model, inputs, STEPS)[1])
    assert torch.equal(*made)


def by_hand(family: str, attn: str, choose: Any) -> tuple[Tensor, Tensor]:
    """Logits of a decode step on a cache whose entries were really gathered, and of the oracle; batch 1, no padding.

    choose(length, layer): the entries [Hkv, P] that are there, in any order and any number of times.
    """
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, (1,))
    length = inputs["input_ids"].shape[1]
    step = next_turn(model, inputs, family, length, {"input_ids": words(1, 1, 4)})
    full = kit.forward(model, inputs, use_cache=True).past_key_values
    short, record = copy.deepcopy(full), everything(model, 1, HEADS, (length,))
    record.append([])
    for index, layer in enumerate(short.layers):
        places = choose(length, index)
        head = torch.arange(HEADS)[:, None]
        layer.keys, layer.values = layer.keys[:, head, places], layer.values[:, head, places]
        counts = torch.stack([row.bincount(minlength=length) for row in places])
        there = torch.arange(length).where(counts > 0, -1)
        there, counts = (
            torch.nn.functional.pad(one, (0, 1), value=value) for one, value in ((there, length), (counts, 1))
        )
        padded = [
            torch.nn.functional.pad(part, (0, 0, 0, 1)) for part in (full.layers[index].keys, full.layers[index].values)
        ]
        record[1].append(Entries(there[None], (padded[0], padded[1], counts.clamp(min=1).log()[None])))
    # the mask's length and the default positions would be those of the short cache
    alone = {"position_ids": torch.tensor([[length]])} | {k: v for k, v in step.items() if k != "attention_mask"}
    got = kit.forward(model, alone, past_key_values=short, use_cache=True).logits
    with replaying(model, record):
        cache = DynamicCache(config=model.config.get_text_config())
        kit.forward(model, inputs, past_key_values=cache, use_cache=True)
        want = kit.forward(model, step, past_key_values=cache, use_cache=True).logits
    kit.differs(want, kit.forward(model, step, past_key_values=full, use_cache=True).logits)
    return got, want


def some(attn: str, length: int, layer: int) -> Tensor:
    """Other entries in every head; in sdpa, which does without a mask here, another number in every layer."""
    generator = torch.Generator().manual_seed(layer)
    count = 6 + 3 * layer if attn == "sdpa" else 12
    return torch.stack([torch.randperm(length, generator=generator)[:count] for _ in range(HEADS)])


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_evicting_equals_gathering_by_hand(family: str, attn: str) -> None:
    kit.same(*by_hand(family, attn, partial(some, attn)))


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_an_entry_that_is_there_twice_counts_twice(attn: str) -> None:
    kit.same(*by_hand("llava", attn, lambda *at: torch.cat([some(attn, *at)] * 2, 1)[:, :-2]))


def test_what_is_said_to_be_stored_is_seen() -> None:
    """Contents are taken over at stored places alone, from the call after the one that made them."""
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    record = thinned(inputs)
    cache = kit.forward(model, inputs, use_cache=True).past_key_values
    with replaying(model, record):
        want = kit.generate(model, inputs, STEPS)[1]
    outcomes = []
    for size in (0.0, 0.1):
        told: Record = [list(record[0])]
        layers = []
        for one, layer in zip(record[1], cache.layers, strict=True):
            # the decoded entry is the model's own, whatever is said of it; of evicted ones nothing is taken over
            gone = (one.positions < 0)[..., None]
            key, value = (
                torch.nn.functional.pad(part, (0, 0, 0, 1), value=math.inf) for part in (layer.keys, layer.values)
            )
            layers.append(Entries(one.positions, ((key + size).masked_fill(gone, math.inf), value, None)))
        told.append(layers)
        with replaying(model, told):
            outcomes.append(kit.generate(model, inputs, 2)[1])
    kit.same(outcomes[0], want[:, :2])
    kit.same(outcomes[1][:, 0], want[:, 0])
    kit.differs(outcomes[1][:, 1], want[:, 1])


@pytest.mark.parametrize("calls", [STEPS - 1, STEPS + 1])
def test_another_number_of_calls_is_noticed(calls: int) -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    record = everything(model, 1, HEADS, lengths(inputs, calls))
    with pytest.raises(AssertionError, match="call"), replaying(model, record):
        kit.generate(model, inputs, STEPS)
    assert not decoder_layers(model)[0].self_attn._forward_pre_hooks
