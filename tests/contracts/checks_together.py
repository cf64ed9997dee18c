"""Several plugins on one model: each does its part, and what is dropped together equals what is masked together."""

import torch

from tests.contracts import kit
from tests.oracle import masked_generate, masked_logits
from tests.tiny import tiny_inputs
from vlm_eff.core.plugin import Plugin


def plugins_together_equal_masking(family: str, entry: Plugin, later: Plugin, pad: str = "left") -> None:
    """A reduction before the language model and one between its layers, attached in either order, at prefill."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0), pad=pad)  # type: ignore[arg-type]
    run = kit.attached(model, inputs, entry, later)
    assert torch.equal(run.logits, kit.attached(model, inputs, later, entry).logits)
    report = run.handle.stats().last
    assert report is not None
    assert {stage.plugin for stage in report.stages} == {entry.name, later.name}
    # one account for both: what the second finds is what the first left
    assert report.stages[1].before == report.stages[0].got
    left = kit.survivors(run.handle, inputs)[-1] & kit.real(inputs)
    kit.same(run.logits[left], masked_logits(model, inputs, kit.dropped(run.handle, inputs))[left])
    kit.differs(run.logits[left], kit.attached(model, inputs, entry).logits[left])


def plugins_together_decode_as_masked(family: str, entry: Plugin, later: Plugin) -> None:
    """The same while decoding: the layers' caches lack what the first plugin dropped, or what both did."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    run = kit.attached_generate(model, inputs, entry, later)
    tokens, logits = masked_generate(model, inputs, kit.dropped(run.handle, inputs), kit.STEPS)
    kit.same(run.logits, logits)
    assert run.tokens is not None and torch.equal(run.tokens, tokens)
