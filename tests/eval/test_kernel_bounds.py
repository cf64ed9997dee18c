"""The bounds that the docs state are those of the formulas, and the formulas give what counting by hand gave."""

from __future__ import annotations

import pytest

from vlm_eff.eval.kernel_bounds import BITS, MODELS, bounds_table

LLAVA, NEXT, MISTRAL, QWEN = MODELS


@pytest.mark.parametrize(("model", "share"), [(LLAVA, 0.013), (NEXT, 0.056), (QWEN, 0.335)])
def test_share_of_attention(model, share) -> None:
    assert model.attention_share == pytest.approx(share, abs=0.0006)


@pytest.mark.parametrize(("model", "layer"), [(LLAVA, 3.4e9), (NEXT, 71e9), (QWEN, 7.70e12)])
def test_attention_of_a_layer(model, layer) -> None:
    assert model.attention_flops / model.layers == pytest.approx(layer, rel=0.015)


@pytest.mark.parametrize(("model", "milliseconds"), [(LLAVA, 10.4), (NEXT, 47.8), (QWEN, 536.0)])
def test_linears_at_the_measured_rate(model, milliseconds) -> None:
    assert model.linear_flops / 798e12 * 1e3 == pytest.approx(milliseconds, rel=0.005)


@pytest.mark.parametrize(
    ("model", "bits", "bounds"),
    [
        (LLAVA, "INT4", (1.02, 1.14, 1.47)),
        (NEXT, "INT4", (1.08, 1.52, 2.30)),
        (MISTRAL, "INT4", (1.02, 1.14, 1.49)),
        (QWEN, "INT4", (1.09, 1.56, 2.35)),
        (NEXT, "INT8", (1.05, 1.29, 1.58)),
    ],
)
def test_bound_of_a_decode_step(model, bits, bounds) -> None:
    found = tuple(model.decode_bound(batch, BITS[bits]) for batch in (1, 8, 32))
    assert found == pytest.approx(bounds, abs=0.0051)


def test_cache_of_a_layer() -> None:
    found = [model.cache_bytes / model.layers for model in MODELS]
    assert found == pytest.approx([10.5e6, 48.2e6, 12e6, 67e6], rel=0.01)


def test_a_kernel_for_nothing_is_worth_its_share() -> None:
    assert QWEN.prefill_bound(float("inf")) == pytest.approx(1 / (1 - QWEN.attention_share))
    assert QWEN.prefill_bound(1.0) == pytest.approx(1.0)
    assert QWEN.decode_bound(8, 16) == 1.0


def test_the_table_names_every_model() -> None:
    assert all(model.name in bounds_table() for model in MODELS)
    assert "1.09x / 1.56x / 2.35x" in bounds_table()
