"""Promises that every method of the room keeps on every pipeline that carries it."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import pytest
import torch
from torch import Tensor

from tests.contracts.snapshot import assert_unchanged, snapshot
from tests.tiny.pipelines import TinyPipeline, make_pipeline, tiny_pipeline
from vlm_eff import attach
from vlm_eff.core.plugin import Plugin

STEPS = 6


def relative(got: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want||."""
    return float((got - want).double().norm() / want.double().norm())


def scheduler_state(pipe: Any) -> dict[str, Any]:
    """What attaching may leave on a scheduler."""
    return {name: type(value) for name, value in vars(pipe.scheduler).items()}


_KNOWN: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()


def bare(tiny: TinyPipeline) -> Tensor:
    """What the pipeline makes without a plugin, computed once for all that compare with it."""
    if tiny.pipe not in _KNOWN:
        _KNOWN[tiny.pipe] = tiny(STEPS)
    return _KNOWN[tiny.pipe]


@functools.cache
def another(family: str) -> TinyPipeline:
    """A second pipeline of a family, with other weights; whoever attaches detaches."""
    made = make_pipeline(family)
    with torch.no_grad():
        for parameter in made.denoiser.parameters():
            parameter.mul_(1.1)
    return made


@contextmanager
def unchanged(tiny: TinyPipeline) -> Iterator[None]:
    """The denoiser's modules, the scheduler object, the pipeline's own attributes and its picture are as before."""
    want = tiny(STEPS)
    before, scheduler = snapshot(tiny.denoiser), tiny.pipe.scheduler
    kinds, own = scheduler_state(tiny.pipe), {name: id(value) for name, value in vars(tiny.pipe).items()}
    yield
    assert torch.equal(tiny(STEPS), want)
    assert_unchanged(before, tiny.denoiser)
    assert tiny.pipe.scheduler is scheduler and scheduler_state(tiny.pipe) == kinds
    assert type(tiny.pipe).__dict__.get("__call__") is not None
    now = {name: id(value) for name, value in vars(tiny.pipe).items() if not name.startswith("_")}
    assert now == {name: value for name, value in own.items() if not name.startswith("_")}


def nothing_is_bit_identical(tiny: TinyPipeline, plugin: Plugin) -> None:
    want = bare(tiny)
    with attach(tiny.pipe, plugin) as handle:
        assert torch.equal(tiny(STEPS), want)
    assert handle.stats().calls > 0


def it_changes_something_and_says_so(tiny: TinyPipeline, plugin: Plugin, primed: bool = False) -> None:
    want = bare(tiny)
    with attach(tiny.pipe, plugin) as handle:
        if primed:
            tiny(STEPS, seed=7)
        got = tiny(STEPS)
    assert torch.isfinite(got).all()
    assert 0 < relative(got, want) < (2 if primed else 1)
    run = handle.stats().runs[-1]
    assert run.evaluations < run.evaluations_bare or "tokens" in run.notes or "scheduler" in run.notes


def detach_restores(tiny: TinyPipeline, plugin: Plugin) -> None:
    with unchanged(tiny), attach(tiny.pipe, plugin):
        tiny(STEPS)


def every_run_is_the_same(tiny: TinyPipeline, plugin: Plugin) -> None:
    with attach(tiny.pipe, plugin):
        first = tiny(STEPS)
        tiny(STEPS - 2, seed=3)
        assert torch.equal(tiny(STEPS), first)


def an_interrupted_run_harms_nothing(tiny: TinyPipeline, plugin: Plugin) -> None:
    with attach(tiny.pipe, plugin):
        first = tiny(STEPS)
        calls = [0]

        def stop(*args: Any, **kwargs: Any) -> None:
            calls[0] += 1
            # two steps were computed by then: what they left would be continued
            if calls[0] == 5:
                raise KeyboardInterrupt

        hook = tiny.denoiser.register_forward_pre_hook(stop)
        with pytest.raises(KeyboardInterrupt):
            tiny(STEPS, seed=5)
        hook.remove()
        assert torch.equal(tiny(STEPS), first)


def two_pipelines_do_not_meet(family: str, plugin: Plugin) -> None:
    one, other = tiny_pipeline(family), another(family)
    want = bare(other)
    with attach(one.pipe, plugin):
        alone = one(STEPS)
        assert torch.equal(other(STEPS), want)
        with attach(other.pipe, plugin):
            here = other(STEPS)
            assert torch.equal(one(STEPS), alone)
            assert torch.equal(other(STEPS), here)
        assert torch.equal(one(STEPS), alone)
        assert torch.equal(other(STEPS), want)


def paused_is_bare(tiny: TinyPipeline, plugin: Plugin) -> None:
    want = bare(tiny)
    with attach(tiny.pipe, plugin) as handle:
        with handle.paused():
            assert torch.equal(tiny(STEPS), want)
        tiny(STEPS)


def each_branch_is_its_own(tiny: TinyPipeline, plugin: Plugin) -> None:
    """plugin: reuses the whole output at every second step, on a pipeline that calls once for each branch."""
    made: list[Tensor] = []
    hook = tiny.denoiser.register_forward_hook(lambda module, args, output: made.append(output[0].clone()))
    try:
        with attach(tiny.pipe, plugin):
            tiny(STEPS)
    finally:
        hook.remove()
    for first, second, third, fourth in zip(*(made[place::4] for place in range(4)), strict=True):
        assert torch.equal(first, third) and torch.equal(second, fourth) and not torch.equal(first, second)


def nobody_writes_into_what_is_kept(tiny: TinyPipeline, plugin: Plugin) -> None:
    """Whoever gets the denoiser's output may do with it what he likes."""
    with attach(tiny.pipe, plugin):
        want = tiny(STEPS)

        def spoil(module: Any, args: Any, output: Any) -> Any:
            given = output[0].clone()
            output[0].fill_(float("nan"))
            return (given,)

        hook = tiny.denoiser.register_forward_hook(spoil)
        try:
            assert torch.equal(tiny(STEPS), want)
        finally:
            hook.remove()
