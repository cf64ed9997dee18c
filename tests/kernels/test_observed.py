"""What plugins see of a model is the same where the kernels compute it: whole models, in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contracts import kit
from tests.observations.spy import Spy
from tests.tiny import tiny_inputs
from vlm_eff import attach
from vlm_eff.core.plugin import Observation, QueryRows, TowerAttention
from vlm_eff.kernels import prefer
from vlm_eff.kernels.column_scores import launch as columns
from vlm_eff.kernels.window_scores import launch as window
from vlm_eff.kvcache import h2o, snapkv, vl_cache
from vlm_eff.models.view import View
from vlm_eff.tokens import fastv, pyramiddrop, zipvl_attention

BOTH = ("torch", "triton")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the launchers that ran."""
    found: list[str] = []
    for module, name in ((window, "find_lse"), (window, "find_scores"), (columns, "find_scores")):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *rest, name=name, original=original: found.append(name) or original(*rest)
        )
    return found


def seen_by(backend: str, family: str, wanted: Observation, see: Callable[[View], Any], pad: str) -> Any:
    model, seen = kit.model_of(family), []
    with prefer(backend), attach(model, Spy(wanted, see, seen, 2)):
        kit.forward(model, tiny_inputs(family, (1, 2), pad=pad))
    return seen[0]


@pytest.mark.parametrize(("family", "pad"), [("llava", "left"), ("qwen2_5_vl", "right"), ("gemma3", "left")])
def test_rows_of_a_model(family: str, pad: str, launched: list[str]) -> None:
    wanted = QueryRows(1)

    def see(view: View) -> tuple[Tensor, ...]:
        parts = [view.attention(wanted, rows) for rows in (view.text(), view.prompt.last(), view.prompt.everything())]
        largest = view.attention(wanted, view.text(), "max")
        return (*(p.weight for p in parts), largest.weight, *(p.looks for p in parts))

    want = seen_by("torch", family, wanted, see, pad)
    assert not launched
    got = seen_by("triton", family, wanted, see, pad)
    assert launched
    for made, right in zip(got, want, strict=True):
        torch.testing.assert_close(made, right, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("row", ["cls", "received"])
def test_rows_of_a_tower(row: str, launched: list[str]) -> None:
    wanted = TowerAttention(row=row)
    made = [seen_by(backend, "llava", wanted, lambda view: view.tower(wanted), "left") for backend in BOTH]
    assert launched
    torch.testing.assert_close(*made, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    "method",
    [
        snapkv(keep_ratio=0.5, window=4),
        h2o(keep_ratio=0.5),
        h2o(keep_ratio=0.5, normalise="length"),
        vl_cache(keep_ratio=0.5),
        fastv(keep_ratio=0.5, layer=2),
        pyramiddrop(),
        zipvl_attention(keep_mass=0.8),
    ],
    ids=lambda method: method.name,
)
def test_methods_keep_the_same(method: Any, launched: list[str]) -> None:
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1, 2), pad="left")
    found = []
    for backend in BOTH:
        with prefer(backend), attach(model, method) as handle:
            kit.generate(model, inputs, 2)
            layers = range(len(kit.decoder_layers(model)))
            found.append(
                [handle.survivors(layer) for layer in layers] + [handle.kv_positions(layer) for layer in layers]
            )
            if backend == "torch":
                assert not launched
    assert launched
    torch.testing.assert_close(*found)
