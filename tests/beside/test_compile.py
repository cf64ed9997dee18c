"""torch.compile: what is refused before attach, and what is compiled afterwards answers as it did."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tests.contracts import kit
from tests.contracts.snapshot import assert_unchanged, snapshot
from tests.tiny import tiny_inputs, tiny_vlm
from vlm_eff import attach
from vlm_eff.core.errors import CompiledModelError
from vlm_eff.core.handle import HandleNeverFired
from vlm_eff.core.plugin import Plugin
from vlm_eff.models import refusals
from vlm_eff.tokens import random_drop, visionzip

PLUGIN = random_drop(layer=2, keep_ratio=0.3)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Compiled code of one test is none of the next one's."""
    yield
    torch._dynamo.reset()


def parts(model: Any, name: str) -> list[nn.Module]:
    layers = model.model.language_model.layers
    return {
        "model": [model],
        "decoder": [model.model.language_model],
        "tower": [model.model.vision_tower],
        "MLPs": [layer.mlp for layer in layers],
    }[name]


def compile_forward(model: Any, name: str) -> None:
    for part in parts(model, name):
        part.forward = torch.compile(part.forward, backend="eager")


@pytest.mark.parametrize("part", ["model", "decoder", "tower", "MLPs"])
def test_a_compiled_forward_is_refused(part: str) -> None:
    """As transformers' own pages compile: the module does not say so, its forward does."""
    model = tiny_vlm("llava", layers=3)
    compile_forward(model, part)
    before = snapshot(model)
    with pytest.raises(CompiledModelError, match="compiled before attach"):
        attach(model, PLUGIN)
    assert_unchanged(before, model)


def test_a_function_kept_from_the_compiler_is_not_refused() -> None:
    model, inputs = tiny_vlm("llava", layers=3), tiny_inputs("llava")
    model.forward = torch.compiler.disable(model.forward)
    with attach(model, PLUGIN) as handle:
        kit.bare(model, inputs)
    assert handle.stats().calls == 1


def test_why_a_compiled_forward_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the refusal a decoder that was compiled and called drops nothing, and no error says so."""
    model, inputs = tiny_vlm("llava", layers=3), tiny_inputs("llava")
    compile_forward(model, "decoder")
    bare = kit.bare(model, inputs, use_cache=False)
    monkeypatch.setattr(refusals, "refuse_compiled", lambda model: None)
    with attach(model, PLUGIN) as handle:
        got = kit.bare(model, inputs, use_cache=False)
    assert torch.equal(got, bare) and handle.stats().calls == 1
    # what is counted is what was computed: nothing was saved, and the report says so
    (report,) = handle.stats().prefills
    assert report.n_eq == report.visual_tokens > report.n_eq_asked


@pytest.mark.parametrize(
    ("part", "plugin"), [("tower", PLUGIN), ("MLPs", PLUGIN), ("tower", visionzip(keep_ratio=0.3))]
)
def test_parts_compiled_after_attach(part: str, plugin: Plugin) -> None:
    """Attached, paused, attached again and detached: each equals the run without a compiler."""
    model, inputs = tiny_vlm("llava", layers=3), tiny_inputs("llava", (1, 2))
    bare = kit.bare(model, inputs)
    want = kit.attached(model, inputs, plugin)
    compiled = 0

    def counting(graph: torch.fx.GraphModule, _: Any) -> Any:
        nonlocal compiled
        compiled += 1
        return graph.forward

    with attach(model, plugin) as handle:
        for module in parts(model, part):
            module.compile(backend=counting)
        assert torch.equal(kit.bare(model, inputs), want.logits)
        assert str(handle.stats()).splitlines()[1:4] == str(want.handle.stats()).splitlines()[1:4]
        with handle.paused():
            assert torch.equal(kit.bare(model, inputs), bare)
        assert torch.equal(kit.bare(model, inputs), want.logits)
    assert torch.equal(kit.bare(model, inputs), bare)
    assert compiled > 0
    with pytest.raises(CompiledModelError):
        attach(model, plugin)


def test_a_wrapper_compiled_before_attach_says_that_nothing_happened() -> None:
    """The wrapper holds code without hooks; the model inside cannot know of it, so the handle speaks at the end."""
    model, inputs = tiny_vlm("llava", layers=1), tiny_inputs("llava")
    wrapper = torch.compile(model, backend="eager")
    bare = kit.bare(wrapper, inputs, use_cache=False)
    with pytest.warns(HandleNeverFired, match="nothing was saved"), attach(model, random_drop(layer=0, keep_ratio=0.3)):
        assert torch.equal(kit.bare(wrapper, inputs, use_cache=False), bare)
