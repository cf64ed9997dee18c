"""The contracts of plugins that act inside the vision tower."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.contracts.cases import EASY, HARD
from tests.contracts.checks_life import leaves_nothing
from tests.contracts.kit import attached, bare, differs, forward, model_of, real, same
from tests.tiny import row, tiny_inputs
from tests.tower_oracle import dropped, merged
from vlm_eff import attach
from vlm_eff.core.plugin import Plugin
from vlm_eff.models.adapter import adapter_for

ROWS = (1, 2)


def nothing_is_bit_identical(family: str, attn: str, nothing: Plugin) -> None:
    """A plugin that merges and drops nothing leaves every bit."""
    model, inputs = model_of(family, attn), tiny_inputs(family, ROWS)
    run = attached(model, inputs, nothing)
    assert torch.equal(run.logits, bare(model, inputs))
    assert run.handle.stats().towers, "the tower was not seen"


def full_length_oracle(family: str, attn: str, plugin: Plugin) -> None:
    """Merging equals copies of the means at full length, which nobody made shorter."""
    model, inputs = model_of(family, attn), tiny_inputs(family, ROWS)
    adapter = adapter_for(model)
    run = attached(model, inputs, plugin)
    groups = [run.handle.tower_groups(block) for block in range(len(adapter.blocks))]
    with merged(adapter.blocks, groups):
        want = bare(model, inputs)
    keep = real(inputs)
    same(run.logits[keep], want[keep])
    differs(run.logits[keep], bare(model, inputs)[keep])


def drop_equals_hiding(family: str, attn: str, plugin: Plugin) -> None:
    """Dropping equals hiding the same tokens from everybody at full length; they keep their last state."""
    model, inputs = model_of(family, attn), tiny_inputs(family, ROWS)
    adapter = adapter_for(model)
    run = attached(model, inputs, plugin)
    bound = run.handle.plugins[0]
    groups = [run.handle.tower_groups(block) for block in range(len(adapter.blocks))]
    with dropped(adapter.blocks, groups, {site.block: site.when for site in bound.sites}):
        want = bare(model, inputs)
    keep = real(inputs)
    same(run.logits[keep], want[keep], 1e-4)
    differs(run.logits[keep], bare(model, inputs)[keep])


def tower_batch_equals_rows(family: str, plugin: Plugin, pad: str = "left") -> None:
    """A row of a batch is what it is alone."""
    model, inputs = model_of(family), tiny_inputs(family, (1, 2), pad=pad)
    run = attached(model, inputs, plugin)
    for index in range(2):
        single = row(inputs, index)
        alone = attached(model, single, plugin).logits[0]
        same(run.logits[index][real(inputs)[index]], alone[real(single)[0]])


def tower_eager_equals_sdpa(family: str, plugin: Plugin) -> None:
    """The attention implementation does not matter."""
    inputs = tiny_inputs(family, ROWS)
    keep = real(inputs)
    want = attached(model_of(family), inputs, plugin).logits
    same(attached(model_of(family, "eager"), inputs, plugin).logits[keep], want[keep], 1e-4)


def tower_detach_restores(family: str, plugin: Plugin) -> None:
    """Afterwards the model is what it was, bit for bit."""
    model, inputs = model_of(family), tiny_inputs(family, ROWS)
    leaves_nothing(model, inputs, lambda: differs(attached(model, inputs, plugin).logits, bare(model, inputs)))


def sizes_are_conserved(family: str, plugin: Plugin) -> None:
    """Behind every block all original tokens are part of some token that is left, and each of these is a place once."""
    model, inputs = model_of(family), tiny_inputs(family, ROWS)
    blocks = len(adapter_for(model).blocks)
    handle = attached(model, inputs, plugin).handle
    for block in range(blocks):
        for slot, place in handle.tower_groups(block):
            counts = torch.bincount(slot, minlength=len(place))
            assert counts.sum() == len(slot) and (counts > 0).all() and len(counts) == len(place)
            assert len(place.unique()) == len(place)
            assert torch.equal(slot[place], torch.arange(len(place)))


def flops_are_measured(family: str, plugin: Plugin) -> None:
    """What the report says was saved is what the FLOP counter misses."""
    model, inputs = model_of(family), tiny_inputs(family, ROWS)

    def counted() -> int:
        with FlopCounterMode(display=False) as counter:
            forward(model, inputs)
        return int(counter.get_total_flops())

    own = []

    def choosing(self: Any, site: Any, view: Any) -> Any:
        with FlopCounterMode(display=False) as counter:
            made = chooses(self, site, view)
        own.append(int(counter.get_total_flops()))
        return made

    full, chooses = counted(), type(plugin).at
    with mock.patch.object(type(plugin), "at", choosing), attach(model, plugin) as handle:
        used = counted() - sum(own)
    report = handle.stats().towers[-1]
    saved, said = full - used, report.flops_bare - report.flops
    assert own and said > 0
    assert abs(saved - said) <= 1e-6 * full, (saved, said)


def composes(family: str, plugin: Plugin) -> None:
    """A tower plugin, a reduction before the language model and one inside it, in either order of attaching."""
    model, inputs = model_of(family), tiny_inputs(family, ROWS)
    others = (EASY["uniform_grid"], HARD["fastv"])
    first = attached(model, inputs, plugin, *others)
    again = attached(model, inputs, *others, plugin)
    assert torch.equal(first.logits, again.logits)
    stats = first.handle.stats()
    assert stats.towers[-1].flops < stats.towers[-1].flops_bare
    assert stats.last is not None and stats.last.flops < stats.last.flops_bare
    differs(first.logits, attached(model, inputs, *others).logits)


def generation_equals_forward(family: str, plugin: Plugin) -> None:
    """`generate` encodes images outside the model's forward: the first token is the same."""
    model, inputs = model_of(family), tiny_inputs(family, ROWS)
    want = attached(model, inputs, plugin).logits[:, -1]
    with attach(model, plugin):
        out = model.generate(**inputs, max_new_tokens=2, output_logits=True, return_dict_in_generate=True)
        beams = model.generate(**inputs, max_new_tokens=2, num_beams=2, do_sample=False)
    same(out.logits[0], want)
    assert len(beams) == len(want)
