"""The cache in the user's hands: cropped, copied, reordered, and used without the handle it was made with."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from tests.contracts import kit
from tests.contracts.checks_modes import next_turn, words
from tests.oracle import hidden_columns
from tests.tiny import tiny_inputs
from vlm_eff import attach
from vlm_eff.core.errors import StateError
from vlm_eff.core.plugin import Plugin


def crop_stops_at_the_image(family: str, plugin: Plugin) -> None:
    """Text behind the last dropped token may be cropped and asked anew; cropping into the image raises."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    length = inputs["input_ids"].shape[1]
    gone = kit.dropped(kit.attached(model, inputs, plugin).handle, inputs)
    last = int(torch.stack(list(gone.values())).nonzero()[:, -1].max())

    def ask() -> Tensor:
        cache = kit.forward(model, inputs, use_cache=True).past_key_values
        # sliding layers can be cropped only when they were told beforehand
        cache.activate_past_recording()
        more = next_turn(model, inputs, family, length, {"input_ids": words(2, 4, 1)})
        kit.forward(model, more, past_key_values=cache, use_cache=True)
        cache.crop(-4)
        again = next_turn(model, inputs, family, length, {"input_ids": words(2, 4, 2)})
        return kit.forward(model, again, past_key_values=cache, use_cache=True).logits  # type: ignore[no-any-return]

    with attach(model, plugin):
        got = ask()
        cache = kit.forward(model, inputs, use_cache=True).past_key_values
        cache.activate_past_recording()
        with pytest.raises(StateError, match="visual tokens that were dropped"):
            cache.crop(-(length - last))
    with hidden_columns(model, gone):
        kit.same(got, ask())
    kit.differs(got, ask())


def a_refused_crop_changes_nothing(family: str, plugin: Plugin) -> None:
    """After a crop that was refused all layers still hold what they held, and answer the same."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    with attach(model, plugin):
        cache = kit.forward(model, inputs, use_cache=True).past_key_values
        cache.activate_past_recording()
        before = [(layer.get_seq_length(), layer.keys.shape) for layer in cache.layers]
        with pytest.raises(StateError):
            cache.crop(-(inputs["input_ids"].shape[1] // 2))
    assert [(layer.get_seq_length(), layer.keys.shape) for layer in cache.layers] == before


def a_cache_needs_its_handle(family: str, plugin: Plugin) -> None:
    """A cache that lacks tokens is refused by the bare model instead of being misread."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1,))
    more = next_turn(model, inputs, family, inputs["input_ids"].shape[1], {"input_ids": words(1, 1, 1)})
    with attach(model, plugin) as handle:
        cache = kit.forward(model, inputs, use_cache=True).past_key_values
        want = kit.forward(model, more, past_key_values=copy.deepcopy(cache), use_cache=True).logits
        with handle.paused(), pytest.raises(StateError, match="without its handle"):
            kit.forward(model, more, past_key_values=copy.deepcopy(cache), use_cache=True)
    with pytest.raises(StateError, match="without its handle"):
        kit.forward(model, more, past_key_values=copy.deepcopy(cache), use_cache=True)
    with attach(model, plugin):
        assert torch.equal(kit.forward(model, more, past_key_values=cache, use_cache=True).logits, want)


def cache_rows_follow(family: str, plugin: Plugin) -> None:
    """Rows of a cache taken in another order, or twice, answer as in their old place; rows lack different tokens."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    more = next_turn(model, inputs, family, inputs["input_ids"].shape[1], {"input_ids": words(2, 1, 4)})
    every = {name: (1 if name == "position_ids" else 0) for name in more}

    def ask(order: list[int], take: str) -> Tensor:
        cache = kit.forward(model, inputs, use_cache=True).past_key_values
        rows = torch.tensor(order)
        if take == "repeat":
            cache.batch_repeat_interleave(2)
        else:
            getattr(cache, take)(rows)
        asked = {name: value.index_select(every[name], rows) for name, value in more.items()}
        if family.startswith("qwen"):
            model.model.rope_deltas = model.model.rope_deltas[:1].repeat(len(order), 1)
        return kit.forward(model, asked, past_key_values=cache, use_cache=True).logits  # type: ignore[no-any-return]

    with attach(model, plugin):
        want = ask([0, 1], "reorder_cache")
        for order, take in (([1, 0], "reorder_cache"), ([1], "batch_select_indices"), ([0, 0, 1, 1], "repeat")):
            kit.same(ask(order, take), want[order])
    kit.differs(want, ask([0, 1], "reorder_cache"))


def guests_leave_the_window_whole(plugin: Plugin, steps: int = 14) -> None:
    """Sliding layers keep their whole window beside registers, also where it reaches back into the image."""
    model, inputs = kit.model_of("gemma3"), tiny_inputs("gemma3", (1, 2), text=(1, 2))
    run = kit.attached_generate(model, inputs, plugin, steps=steps)
    tokens, logits = kit.reference_generate(model, inputs, plugin, run.handle, steps)
    kit.same(run.logits, logits)
    assert torch.equal(run.tokens, tokens)
