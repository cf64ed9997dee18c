"""Attach and detach: what a handle leaves behind, whatever happened while it was on."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from tests.contracts import kit
from tests.contracts.snapshot import assert_unchanged, snapshot
from tests.oracle import decoder_layers
from tests.tiny import TinyInputs, tiny_inputs
from vlm_eff import attach
from vlm_eff.core.action import Action
from vlm_eff.core.handle import HandleNeverFired
from vlm_eff.core.plugin import BindContext, Plugin, Site
from vlm_eff.core.resources import Resource


def leaves_nothing(model: Any, inputs: TinyInputs, act: Callable[[], None]) -> None:
    """`act` runs between two bare forwards; the model and its logits are bit for bit as before."""
    kit.bare(model, inputs)
    logits, before = kit.bare(model, inputs), snapshot(model)
    act()
    assert_unchanged(before, model)
    assert torch.equal(kit.bare(model, inputs), logits)
    # the bare forward itself must not have been what cleaned up
    assert_unchanged(before, model)


def detach_restores(family: str, attn: str, plugin: Plugin) -> None:
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, (1, 2))

    def act() -> None:
        with attach(model, plugin):
            kit.bare(model, inputs)
            kit.generate(model, inputs, 2)

    kit.generate(model, inputs, 2)
    leaves_nothing(model, inputs, act)


def error_in_block_restores(family: str, plugin: Plugin) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))

    def act() -> None:
        with pytest.raises(ZeroDivisionError), attach(model, plugin):
            kit.bare(model, inputs)
            raise ZeroDivisionError

    leaves_nothing(model, inputs, act)


def error_in_forward_restores(family: str, plugin: Plugin) -> None:
    """An error deep inside a forward: the next attached call is right, and detach restores."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    want = kit.attached(model, inputs, plugin).logits

    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    def act() -> None:
        with attach(model, plugin):
            hook = decoder_layers(model)[4].mlp.register_forward_pre_hook(fail)
            with pytest.raises(ZeroDivisionError):
                kit.bare(model, inputs)
            hook.remove()
            assert torch.equal(kit.bare(model, inputs), want)
            assert torch.equal(kit.bare(model, inputs), want)

    leaves_nothing(model, inputs, act)


@dataclass(frozen=True)
class Broken(Plugin):
    """A plugin of somebody else that fails when it is asked."""

    layer: int = 2

    @property
    def name(self) -> str:
        return "broken"

    @property
    def sites(self) -> tuple[Site, ...]:
        return (Site(self.layer),)

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset({Resource.DECODER_TOKENS})

    def bind(self, context: BindContext) -> Plugin:
        return self

    def at(self, site: Site, view: Any) -> Action | None:
        raise ZeroDivisionError("broken on purpose")


class Pipe:
    """What attach needs of a transformers pipeline."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model


def error_in_plugin_restores(family: str) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))

    def act() -> None:
        # a handle whose only calls failed may say that it never finished one
        with warnings.catch_warnings(), attach(model, Broken()):
            warnings.simplefilter("ignore", HandleNeverFired)
            for _ in range(2):
                with pytest.raises(ZeroDivisionError):
                    kit.bare(model, inputs)

    leaves_nothing(model, inputs, act)


def refused(
    family: str, error: type[Exception], match: str, act: Callable[[Any, TinyInputs], object], rows: Any = (1, 2)
) -> None:
    """`act` is refused with a message that says what was got, what is accepted and what to do; nothing is left."""
    model, inputs = kit.model_of(family), tiny_inputs(family, rows)

    def attempt() -> None:
        with pytest.raises(error, match=match) as caught:
            act(model, inputs)
        assert "Accepted: " in str(caught.value)

    leaves_nothing(model, inputs, attempt)


def detach_any_number_of_times(family: str, plugin: Plugin) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))

    def act() -> None:
        handle = attach(model, plugin)
        kit.bare(model, inputs)
        handle.detach()
        handle.detach()
        with attach(model, plugin) as second:
            kit.bare(model, inputs)
            handle.detach()
            assert second.attached
            kit.differs(kit.bare(model, inputs)[:, -1], bare[:, -1])

    bare = kit.bare(model, inputs)
    leaves_nothing(model, inputs, act)


def paused_is_bare(family: str, attn: str, plugin: Plugin) -> None:
    """Inside `paused` the model is bare bit for bit; afterwards the plugins work again."""
    model, inputs = kit.model_of(family, attn), tiny_inputs(family, (1, 2))
    bare, (_, decoded) = kit.bare(model, inputs), kit.generate(model, inputs, 3)
    with attach(model, plugin) as handle:
        on = kit.bare(model, inputs)
        calls = handle.stats().calls
        with handle.paused():
            assert torch.equal(kit.bare(model, inputs), bare)
            assert torch.equal(kit.generate(model, inputs, 3)[1], decoded)
        assert handle.stats().calls == calls
        assert torch.equal(kit.bare(model, inputs), on)
    kit.differs(on[:, -1], bare[:, -1])


def copy_is_bare(family: str, plugin: Plugin) -> None:
    """A deep copy made while attached behaves like the bare model, and the original goes on dropping."""
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2))
    bare, (_, decoded) = kit.bare(model, inputs), kit.generate(model, inputs, 3)
    with attach(model, plugin) as handle:
        on = kit.bare(model, inputs)
        twin = copy.deepcopy(model)
        calls = handle.stats().calls
        assert torch.equal(kit.bare(twin, inputs), bare)
        assert torch.equal(kit.generate(twin, inputs, 3)[1], decoded)
        assert handle.stats().calls == calls
        assert torch.equal(kit.bare(model, inputs), on)
    assert torch.equal(kit.bare(twin, inputs), bare)
    assert torch.equal(kit.bare(model, inputs), bare)


def two_models_do_not_meet(first: str, second: str, plugins: tuple[Plugin, Plugin]) -> None:
    """Handles on two models, detached in the order they came: neither notices the other."""
    models, inputs = [kit.model_of(f) for f in (first, second)], [tiny_inputs(f, (1, 2)) for f in (first, second)]
    alone = [kit.attached(*pair).logits for pair in zip(models, inputs, plugins, strict=True)]
    bare = [kit.bare(*pair) for pair in zip(models, inputs, strict=True)]
    states = [snapshot(model)["modules"] for model in models]
    handles = [attach(*pair) for pair in zip(models, plugins, strict=True)]
    assert all(torch.equal(kit.bare(models[i], inputs[i]), alone[i]) for i in (0, 1, 0))
    handles[0].detach()
    assert torch.equal(kit.bare(models[0], inputs[0]), bare[0])
    assert torch.equal(kit.bare(models[1], inputs[1]), alone[1])
    handles[1].detach()
    assert torch.equal(kit.bare(models[1], inputs[1]), bare[1])
    assert [snapshot(model)["modules"] for model in models] == states


def threads_do_not_meet(family: str, plugin: Plugin, rounds: int = 6) -> None:
    """Two threads on one attached model get what each of them would get alone."""
    model = kit.model_of(family)
    prompts = [tiny_inputs(family, (1,), seed=1), tiny_inputs(family, (2, 1), seed=2)]
    wanted = [kit.attached(model, inputs, plugin).logits for inputs in prompts]
    with attach(model, plugin):
        kit.meet(lambda index: torch.equal(kit.bare(model, prompts[index]), wanted[index]), rounds)
