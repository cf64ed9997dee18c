"""Plugins on models whose linears are quantised by torchao or bitsandbytes; skipped where these are missing."""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests.beside.quantised import KINDS, ROUNDS_ACTIVATIONS, WEIGHTS, load
from tests.contracts import kit
from tests.contracts.snapshot import assert_unchanged, snapshot
from tests.oracle import hidden_columns
from tests.tiny import TinyInputs, tiny_inputs, tiny_vlm
from vlm_eff.core.plugin import Plugin
from vlm_eff.kvcache import kivi, snapkv
from vlm_eff.tokens import divprune, fastv, pyramiddrop

pytestmark = [
    # torchao 0.18 on torch 2.15, bitsandbytes 0.50 on a CPU
    pytest.mark.filterwarnings("ignore:.*(torchao|torch_dtype|MatMul8bitLt|register_constant)"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(torchao|bitsandbytes)"),
]
DROPS = (fastv(layer=2, keep_ratio=0.3), pyramiddrop(layers=(2, 4)), divprune(keep_ratio=0.5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    transformers.logging.disable_progress_bar()
    made = tmp_path_factory.mktemp("tiny")
    tiny_vlm("llava", layers=kit.LAYERS).save_pretrained(made)
    return made


@pytest.fixture(scope="module", params=KINDS)
def quantised(request: pytest.FixtureRequest, folder: Path) -> tuple[str, Any, TinyInputs]:
    """Kind, model and inputs, behind a first forward: some weights are packed there."""
    model, inputs = load(request.param, folder).eval(), tiny_inputs("llava", (1, 2))
    kit.bare(model, inputs)
    return request.param, model, inputs


def error(kind: str, model: Any, inputs: TinyInputs) -> float:
    """What quantising alone does to the logits, relative to the largest."""
    whole = kit.bare(kit.model_of("llava"), inputs)
    return float((kit.bare(model, inputs) - whole).abs().max() / whole.abs().max())


def test_the_linears_are_quantised(quantised: tuple[str, Any, TinyInputs]) -> None:
    """Else all that follows would say nothing."""
    kind, model, inputs = quantised
    projection = model.get_decoder().layers[0].self_attn.q_proj
    assert type(projection.weight).__name__ == WEIGHTS[kind]
    assert error(kind, model, inputs) > 0.01


def test_keeping_everything_is_exact(quantised: tuple[str, Any, TinyInputs]) -> None:
    _, model, inputs = quantised
    bare, before = kit.bare(model, inputs), snapshot(model)
    assert torch.equal(kit.attached(model, inputs, fastv(layer=2, keep_ratio=1.0)).logits, bare)
    assert_unchanged(before, model)


@pytest.mark.parametrize("plugin", DROPS, ids=lambda plugin: plugin.name)
def test_dropping_equals_masking(quantised: tuple[str, Any, TinyInputs], plugin: Plugin) -> None:
    """To rounding where activations stay as they are, else well inside of what quantising has cost already."""
    kind, model, inputs = quantised
    bare, before = kit.bare(model, inputs), snapshot(model)
    run = kit.attached(model, inputs, plugin)
    assert_unchanged(before, model)
    assert torch.equal(kit.bare(model, inputs), bare)
    left = kit.survivors(run.handle, inputs)[-1] & kit.real(inputs)
    with hidden_columns(model, kit.dropped(run.handle, inputs)):
        want = kit.bare(model, inputs)
    kit.same(run.logits[left], want[left], error(kind, model, inputs) / 3 if kind in ROUNDS_ACTIVATIONS else 2e-5)
    kit.differs(run.logits[left], bare[left])


def test_what_is_reported_is_that_of_the_whole_model(quantised: tuple[str, Any, TinyInputs]) -> None:
    """Token counts, cache bytes and FLOPs do not depend on how weights are stored."""
    _, model, inputs = quantised
    plugin = pyramiddrop(layers=(2, 4))
    got, want = (kit.attached(one, inputs, plugin).handle.stats() for one in (model, kit.model_of("llava")))
    for name in ("n_eq", "visual_per_layer", "kv_bytes", "flops"):
        assert getattr(got.prefills[-1], name) == getattr(want.prefills[-1], name), name


@pytest.mark.parametrize("plugin", [snapkv(keep_ratio=0.5), kivi(group=8, residual=8)], ids=lambda one: one.name)
def test_the_cache_is_compressed(quantised: tuple[str, Any, TinyInputs], plugin: Plugin) -> None:
    _, model, inputs = quantised
    runs = [kit.attached_generate(one, inputs, plugin, steps=4) for one in (model, kit.model_of("llava"))]
    assert runs[0].logits.isfinite().all()
    got, want = ([(one.after, one.bytes_after) for one in run.handle.stats().compressions] for run in runs)
    assert want and got == want
    assert all(one.bytes_after < one.bytes_before for one in runs[0].handle.stats().compressions)
