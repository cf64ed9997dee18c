"""Links in diffusers' registry come and go in any order, and leave nothing behind."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from vlm_eff.core.handle import Undo
from vlm_eff.models.denoise.chain import NAME, Chains


class Adds(ModelHook):
    """Adds to what the forward gives, by a forward of its own as caches have, or behind it."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        return self.fn_ref.original_forward(*args, **kwargs) + self.number


class AddsBehind(ModelHook):
    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = number

    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        return output + self.number


def doubled(module: nn.Module, inner: Any, args: Any, kwargs: Any) -> Tensor:
    return 2 * inner(*args, **kwargs)


def value(module: nn.Module) -> float:
    return float(module(torch.zeros(1)))


@pytest.fixture
def module() -> nn.Module:
    return nn.Identity()


@pytest.mark.parametrize("kind", [Adds, AddsBehind])
@pytest.mark.parametrize("first", ["ours", "theirs below", "theirs above"])
def test_hooks_leave_in_any_order(module: nn.Module, kind: Any, first: str) -> None:
    undo = Undo()
    registry = HookRegistry.check_if_exists_or_initialize(module)
    registry.register_hook(kind(1.0), "below")
    chains = Chains()
    chains.around(module, doubled, undo)
    registry.register_hook(kind(5.0), "above")
    assert value(module) == 7.0
    if first == "ours":
        undo.run()
        # diffusers' own removal would have lost the hook above
        assert value(module) == 6.0
    elif first == "theirs above":
        registry.remove_hook("above")
        assert value(module) == 2.0
        undo.run()
        assert value(module) == 1.0
    else:
        registry.remove_hook("below")
        chains.mend()
        assert value(module) == 5.0
        undo.run()
        assert value(module) == 5.0
    assert NAME not in registry.hooks


def test_nothing_is_left(module: nn.Module) -> None:
    before = dict(vars(module))
    undo = Undo()
    chains = Chains()
    chains.around(module, doubled, undo)
    chains.around(module, lambda m, inner, args, kwargs: inner(*args, **kwargs) + 1, undo, order=1)
    assert value(module) == 2.0
    undo.run()
    assert vars(module).keys() == before.keys() and value(module) == 0.0


def test_a_copy_is_bare(module: nn.Module) -> None:
    undo = Undo()
    module = nn.Linear(1, 1)
    module.requires_grad_(False)
    want = float(module(torch.ones(1)))
    Chains().around(module, doubled, undo)
    assert float(module(torch.ones(1))) == 2 * want
    assert float(copy.deepcopy(module)(torch.ones(1))) == want
    undo.run()


def test_somebody_elses_forward_stays(module: nn.Module) -> None:
    module.forward = lambda x: x + 3  # as offloading does
    mine = module.forward
    undo = Undo()
    Chains().around(module, doubled, undo)
    assert value(module) == 6.0
    undo.run()
    assert module.forward is mine and value(module) == 3.0
