"""Modules inside blocks are computed or predicted one by one, in their own branch, and counted for what they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.diffusion.checks import STEPS, relative
from tests.tiny.pipelines import SEQUENTIAL, TinyPipeline, make_pipeline, tiny_pipeline
from vlm_eff import attach
from vlm_eff.diffusion import fora, taylorseer
from vlm_eff.models.denoise.branch import Branches
from vlm_eff.models.denoise.parts import find_parts
from vlm_eff.models.denoise.rows import Streams


@contextmanager
def spy(modules: list[nn.Module], seen: list[nn.Module]) -> Iterator[None]:
    """Modules that really compute: their innermost piece is asked, which no cache of outputs replaces."""
    hooks = [next(iter(_leaves(m))).register_forward_hook(lambda leaf, a, out, m=m: seen.append(m)) for m in modules]
    yield
    for hook in hooks:
        hook.remove()


def _leaves(module: nn.Module) -> Iterator[nn.Module]:
    yield from (leaf for leaf in module.modules() if isinstance(leaf, nn.Linear) and leaf is not module)
    yield module


def computed_by_branch(tiny: TinyPipeline, plugin: Any) -> dict[int, list[int]]:
    """Steps at which the first attention computed, a branch."""
    attention = find_parts(tiny.denoiser, ("self",))[0].module
    calls: list[int] = []
    found: dict[int, list[int]] = {0: [], 1: []}
    roots = tiny.denoiser.register_forward_pre_hook(lambda m, args: calls.append(1))
    inside = attention.to_q.register_forward_pre_hook(
        lambda m, args: found[(len(calls) - 1) % 2].append((len(calls) - 1) // 2)
    )
    with attach(tiny.pipe, plugin):
        tiny(STEPS)
    roots.remove()
    inside.remove()
    return found


@pytest.mark.parametrize("family", SEQUENTIAL)
def test_both_branches_are_computed(family: str) -> None:
    # a counter of calls would compute one branch at every step and the other never
    assert computed_by_branch(tiny_pipeline(family), fora(interval=2)) == {0: [0, 2, 4], 1: [0, 2, 4]}


def what_the_last_gives(tiny: TinyPipeline, plugin: Any) -> list[Tensor]:
    """Outputs of the last module that can be skipped, call by call, of two steps."""
    found: list[Tensor] = []
    module = find_parts(tiny.denoiser)[-1].module
    hook = module.register_forward_hook(lambda m, args, out: found.append(Streams(out).tensors[0].clone()))
    with attach(tiny.pipe, plugin):
        tiny(2)
    hook.remove()
    return found


@pytest.mark.parametrize("family", SEQUENTIAL)
def test_each_branch_reuses_its_own(family: str) -> None:
    one, other, one_again, other_again = what_the_last_gives(tiny_pipeline(family), fora(interval=2))
    bare = what_the_last_gives(tiny_pipeline(family), fora(interval=1))
    assert not torch.equal(one, other)
    assert torch.equal(one, bare[0]) and torch.equal(one_again, one)
    assert torch.equal(other, bare[1]) and torch.equal(other_again, other)


@pytest.mark.parametrize("family", SEQUENTIAL)
def test_branches_that_are_mixed_up_are_seen(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Branches, "of", lambda self, *args: 0)
    one, other, one_again, _ = what_the_last_gives(tiny_pipeline(family), fora(interval=2))
    assert not torch.equal(one_again, one) and torch.equal(one_again, other)


@pytest.mark.parametrize("family", ["sd", "flux", "sd3"])
def test_skipped_modules_do_not_compute(family: str) -> None:
    tiny = tiny_pipeline(family)
    parts = find_parts(tiny.denoiser)
    modules = [module for part in parts for module in (part.module, *part.before) if module is not None]
    seen: list[nn.Module] = []
    linear = [m for module in modules for m in module.modules() if isinstance(m, nn.Linear)]
    with attach(tiny.pipe, fora(interval=3)) as handle:
        with spy(linear, seen):
            tiny(3, guided=False)
        run = handle.stats().runs[-1]
    # hooks of torch run outside of links on a module itself, so only those deeper inside tell
    deep = [m for m in linear if m not in modules]
    assert {m for m in deep if seen.count(m) != 1} == set()
    assert run.computed_steps == [0] and 0 < run.calls[1].computed < 1


@pytest.mark.parametrize("family", ["sd", "flux", "wan"])
def test_work_is_counted(family: str) -> None:
    tiny = tiny_pipeline(family)
    with attach(tiny.pipe, fora(interval=2)) as handle:
        tiny(2, guided=False)
        all_kinds = handle.stats().runs[-1]
    with attach(tiny.pipe, fora(interval=2, kinds=("mlp",))) as handle:
        tiny(2, guided=False)
        mlps = handle.stats().runs[-1]
    with attach(tiny.pipe, fora(interval=2, kinds=("self",))) as handle:
        tiny(2, guided=False)
        attention = handle.stats().runs[-1]
    assert all_kinds.calls[1].computed < min(mlps.calls[1].computed, attention.calls[1].computed) < 1
    assert all_kinds.state_bytes > 0 and all_kinds.flops < all_kinds.flops_bare


def test_what_is_kept_is_counted_to_the_byte() -> None:
    tiny = tiny_pipeline("dit")
    with attach(tiny.pipe, fora(interval=2)) as handle:
        tiny(2)
        one = handle.stats().runs[-1].state_bytes
    with attach(tiny.pipe, taylorseer(interval=2, max_order=2)) as handle:
        tiny(4)
        three = handle.stats().runs[-1].state_bytes
    # 2 images, both halves of the guidance, 16 tokens of 16 numbers, float32: one output of each of 6 modules
    assert one == 6 * 4 * 16 * 16 * 4 and three == 3 * one


def test_a_module_called_in_chunks_is_several_units() -> None:
    tiny = make_pipeline("dit")
    want = tiny(3)
    for block in tiny.denoiser.transformer_blocks:
        block.set_chunk_feed_forward(4, dim=1)
    whole, chunks = fora(interval=2, kinds=("mlp",)), tiny(3)
    assert relative(chunks, want) < 1e-5
    with attach(tiny.pipe, whole) as handle:
        got = tiny(3)
        assert handle.stats().runs[-1].mismatches == 0
    with attach(tiny_pipeline("dit").pipe, whole):
        assert relative(got, tiny_pipeline("dit")(3)) < 1e-5


def test_only_some_blocks() -> None:
    tiny, seen = tiny_pipeline("wan"), []
    modules = [part.module for part in find_parts(tiny.denoiser, ("self",))]
    with attach(tiny.pipe, fora(interval=2, kinds=("self",), blocks=(1,))), spy(modules, seen):
        tiny(2, guided=False)
    assert [seen.count(module) for module in modules] == [2, 1, 2]
