"""Runs of blocks as one unit: closed forms, forms of blocks, rows, work, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.diffusion.checks import relative
from tests.tiny.pipelines import TinyPipeline, make_pipeline, tiny_pipeline
from tests.tiny.transformers import OTHERS, other_pipeline
from vlm_eff import attach
from vlm_eff.core.denoise import DenoisePlugin, Predict, StackSite
from vlm_eff.core.errors import CapabilityError
from vlm_eff.core.resources import Resource
from vlm_eff.models.denoise import blocks, stack
from vlm_eff.models.denoise.view import UnitView

FORMS = ("dit", "pixart", "sd3", "flux", "wan", *OTHERS)


def pipeline(family: str) -> TinyPipeline:
    return other_pipeline(family) if family in OTHERS else tiny_pipeline(family)


@dataclass(frozen=True)
class _Again(DenoisePlugin):
    """Predicts at the steps that are listed, with the last residual; `rows` alone where given."""

    steps: tuple[int, ...]
    site: StackSite = field(default_factory=lambda: StackSite(1))
    rows: tuple[bool, ...] | None = None
    looks: tuple[str, ...] = ()
    seen: Any = None

    @property
    def name(self) -> str:
        return "again"

    @property
    def sites(self) -> tuple[StackSite, ...]:
        return (self.site,)

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset({Resource.DENOISER_STEPS})

    def at(self, site: StackSite, view: UnitView) -> Predict | None:
        for look in self.looks:
            assert view.probe is not None
            self.seen.append((look, view.step.index, view.branch, view.probe(look).clone()))
        if view.step.index not in self.steps:
            return None
        rows = None if self.rows is None else torch.tensor(self.rows)
        return Predict(tuple(value.clone() for value in view.history[-1].value), rows)


def _closed_form(first: int) -> float:
    """How far the stack's output is from 2^first h + (2^L - 2^first) h_before at a skipped step."""
    tiny = make_pipeline("dit")
    entries: list[Tensor] = []
    outputs: list[Tensor] = []
    found: Any = tiny.denoiser.transformer_blocks
    for block in found:
        block.__class__ = type("DoublingBlock", (type(block),), {"forward": _double})
    found[0].register_forward_pre_hook(lambda module, args: entries.append(args[0].clone()))
    after = tiny.denoiser.norm_out.register_forward_pre_hook(lambda module, args: outputs.append(args[0].clone()))
    with attach(tiny.pipe, _Again((2,), StackSite(first))):
        tiny(4)
    after.remove()
    assert len(entries) == len(outputs) == 4
    blocks_in_all = len(found)
    front = 2.0**first
    want = front * entries[2] + (2.0**blocks_in_all - front) * entries[1]
    assert relative(outputs[3], 2.0**blocks_in_all * entries[3]) == 0
    assert relative(outputs[2], 2.0**blocks_in_all * entries[2]) > 1e-3
    return relative(outputs[2], want)


def _double(self: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return 2 * hidden_states


@pytest.mark.parametrize("first", [0, 1, 2])
def test_blocks_that_double_have_a_closed_form(first: int) -> None:
    assert _closed_form(first) < 1e-6


def test_the_closed_form_notices_a_residual_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    close = stack._Run._close

    def twice(self: Any, block: Any, passage: Any, values: Any) -> Any:
        passage.expected = [2 * value for value in passage.expected]
        return close(self, block, passage, values)

    monkeypatch.setattr(stack._Run, "_close", twice)
    assert _closed_form(1) > 1e-3


# ---------------------------------------------------------------- forms of blocks


@pytest.mark.parametrize("family", FORMS)
def test_watching_changes_nothing(family: str) -> None:
    tiny = pipeline(family)
    want = tiny(4)
    with attach(tiny.pipe, _Again(())):
        assert torch.equal(tiny(4), want)
    assert torch.equal(tiny(4), want)


@pytest.mark.parametrize("family", FORMS)
def test_nothing_is_lost_where_the_input_is_the_same(family: str) -> None:
    # one call of the denoiser repeated: what a skipped run adds is what it would have added
    assert _same_input(family) < 1e-5


def _same_input(family: str) -> float:
    tiny = pipeline(family)
    made: list[Tensor] = []

    def twice(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if len(made) == 1 and not busy:
            busy.append(True)
            module(*args, **kwargs)
        made.append(output[0] if isinstance(output, tuple) else output.sample)

    busy: list[bool] = []
    hook = tiny.denoiser.register_forward_hook(twice, with_kwargs=True)
    plugin = _Odd()
    try:
        with attach(tiny.pipe, plugin):
            tiny(3, guided=False)
    finally:
        hook.remove()
    # in order: step 0; the call repeated inside step 1; step 1
    assert len(made) >= 3
    return relative(made[1], made[2])


@dataclass(frozen=True)
class _Odd(_Again):
    """Computes the first call of a step, and predicts the second."""

    steps: tuple[int, ...] = ()

    def at(self, site: StackSite, view: UnitView) -> Predict | None:
        again = view.notes.get("step") == view.step.index
        view.notes["step"] = view.step.index
        return Predict(tuple(value.clone() for value in view.history[-1].value)) if again else None


def test_streams_in_the_wrong_order_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_AS_GIVEN", blocks._AS_GIVEN | blocks._TURNED)
    tiny = tiny_pipeline("flux")
    with pytest.raises(CapabilityError), attach(tiny.pipe, _Again((1,))):
        tiny(3)


@pytest.mark.parametrize("family", ["dit", "pixart", "sd3", "flux", "wan", "flux2", "aura", "ltx", "cog"])
def test_the_work_of_the_run_is_what_its_blocks_are(family: str) -> None:
    tiny = pipeline(family)
    tiny(3)
    found = blocks.blocks_of(tiny.denoiser)
    ran: list[int] = []
    hooks = [block.module.register_forward_hook(lambda *_, i=block.index: ran.append(i)) for block in found]
    with attach(tiny.pipe, _Again((1,))) as handle:
        tiny(3)
    for hook in hooks:
        hook.remove()
    run = handle.stats().runs[-1]
    skipped = [call for call in run.calls if call.step == 1]
    assert all(0 < call.computed < 1 for call in skipped)
    assert all(call.computed == 1 for call in run.calls if call.step != 1)
    # the hook of torch is outside of ours: a block that is skipped has been called all the same
    assert len(ran) == len(found) * len(run.calls)


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize("family", ["dit", "pixart", "sd3", "aura", "cog"])
def test_rows_are_decided_on_their_own(family: str) -> None:
    assert _rows_apart(family) < 1e-5


def _rows_apart(family: str) -> float:
    """Worst difference between rows of a partly predicted step and the same rows predicted or computed as a whole."""
    tiny = pipeline(family)
    made: dict[str, list[Tensor]] = {}
    rows = tiny_rows(tiny)
    chosen = tuple(row % 2 == 0 for row in range(rows))
    for name, plugin in {
        "all": _Again((2,)),
        "none": _Again(()),
        "some": _Again((2,), rows=chosen),
    }.items():
        outputs = made[name] = []
        hook = tiny.denoiser.register_forward_hook(
            lambda module, args, output, outputs=outputs: outputs.append(
                output[0] if isinstance(output, tuple) else output.sample
            )
        )
        with attach(tiny.pipe, plugin):
            tiny(3)
        hook.remove()
    pick = torch.tensor(chosen)
    want = made["all"][2].where(pick.view(-1, *[1] * (made["all"][2].dim() - 1)), made["none"][2])
    assert relative(made["all"][2], made["none"][2]) > 1e-4
    return relative(made["some"][2], want)


def tiny_rows(tiny: TinyPipeline) -> int:
    rows: list[int] = []
    hook = tiny.denoiser.register_forward_hook(
        lambda module, args, output: rows.append((output[0] if isinstance(output, tuple) else output.sample).shape[0])
    )
    tiny(2)
    hook.remove()
    return rows[0]


def test_rows_that_are_mixed_up_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = stack.take_call
    monkeypatch.setattr(stack, "take_call", lambda a, k, index, rows: right(a, k, index.flip(0), rows))
    assert _rows_apart("dit") > 1e-4


# ---------------------------------------------------------------- probes


def _attention_inputs(tiny: TinyPipeline) -> Iterator[list[Tensor]]:
    block = blocks.blocks_of(tiny.denoiser)[0].module
    attention = getattr(block, "attn1", None) or block.attn
    found: list[Tensor] = []

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        found.append((args[0] if args else kwargs["hidden_states"]).clone())

    hook = attention.register_forward_pre_hook(note, with_kwargs=True)
    yield found
    hook.remove()


@pytest.mark.parametrize("family", ["dit", "pixart", "sd3", "flux", "wan", "ltx", "cog", "aura"])
@pytest.mark.parametrize("first", [0, 1])
def test_the_modulated_input_is_what_attention_gets(family: str, first: int) -> None:
    tiny, seen = pipeline(family), []
    watched = _attention_inputs(tiny)
    found = next(watched)
    with attach(tiny.pipe, _Again((), StackSite(first), looks=("modulated",), seen=seen)):
        tiny(2)
    next(watched, None)
    assert len(found) == len(seen) > 0
    for (_, _, _, got), want in zip(seen, found, strict=True):
        assert relative(got, want) < 1e-6


def test_an_unknown_norm_is_refused() -> None:
    tiny = pipeline("flux2")
    with pytest.raises(CapabilityError, match="first_block"):
        attach(tiny.pipe, _Again((), StackSite(0, looks=("modulated",))))


def test_first_is_what_the_blocks_in_front_add() -> None:
    tiny, seen, want = tiny_pipeline("dit"), [], []

    def note(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
        want.append(output - (args[0] if args else kwargs["hidden_states"]))

    hook = tiny.denoiser.transformer_blocks[0].register_forward_hook(note, with_kwargs=True)
    with attach(tiny.pipe, _Again((1,), looks=("first",), seen=seen)):
        tiny(3)
    hook.remove()
    assert [torch.equal(got, value) for (_, _, _, got), value in zip(seen, want, strict=True)] == [True] * 3


# ---------------------------------------------------------------- what is refused, and the table


def test_models_with_too_few_blocks_are_refused() -> None:
    tiny = tiny_pipeline("dit")
    with pytest.raises(CapabilityError, match="forecast"):
        attach(tiny.pipe, _Again((1,), StackSite(2, 1)))
    with attach(tiny.pipe, _Again((1,), StackSite(2, 0))):
        tiny(2)


def test_unets_and_unknown_blocks_are_refused() -> None:
    with pytest.raises(CapabilityError, match="forecast"):
        blocks.blocks_of(tiny_pipeline("sd").denoiser)
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Linear(2, 2)])
    with pytest.raises(CapabilityError, match="Linear"):
        blocks.blocks_of(model)


def test_the_table_agrees_with_the_registry_of_diffusers() -> None:
    from diffusers.hooks._helpers import TransformerBlockRegistry

    TransformerBlockRegistry._register()
    # registered as if it returned one stream (0.42.1); it returns the text, then the image
    wrong = {"BriaTransformerBlock"}
    compared = 0
    for kind, known in TransformerBlockRegistry._registry.items():
        block = _described(kind)
        if kind.__name__ in wrong or block is None:
            continue
        compared += 1
        assert block.streams.index(block.main) == known.return_hidden_states_index, kind
        assert (len(block.streams) == 2) == (known.return_encoder_hidden_states_index is not None), kind
    assert compared >= 18


def _described(kind: type[nn.Module]) -> blocks.Block | None:
    try:
        return blocks._block("", 0, kind.__new__(kind))
    except CapabilityError:
        return None


def test_every_class_of_the_table_exists() -> None:
    import importlib
    import pkgutil

    from diffusers.models import attention, transformers

    known = set(dir(attention))
    for found in pkgutil.iter_modules(transformers.__path__):
        known |= set(dir(importlib.import_module(f"{transformers.__name__}.{found.name}")))
    assert known >= blocks._ONE | blocks._AS_GIVEN | blocks._TURNED
