"""One row of attention and a layer's keys: equal to the eager matrices and to the projections."""

from __future__ import annotations

import pytest
import torch

from tests.observations.spy import Spy
from tests.oracle import attention_rows
from tests.tiny import FAMILIES, tiny_inputs, tiny_vlm, visual_mask
from vlm_eff import attach
from vlm_eff.core.plugin import LayerKeys, QueryRow
from vlm_eff.models.adapter import adapter_for


def look_at_row(wanted: QueryRow, layer: int, seen: list) -> Spy:
    return Spy(wanted, lambda view: (*view.query_logits(wanted), view.spans), seen, layer)


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("when", ["inside", "before"])
@pytest.mark.parametrize("family", FAMILIES)
def test_row_equals_the_eager_matrix(family: str, when: str, pad: str) -> None:
    inputs, seen = tiny_inputs(family, (1, 2), pad=pad), []
    model = tiny_vlm(family)
    weights = attention_rows(tiny_vlm(family, attn="eager"), inputs, 2)
    layer = 3 if when == "inside" else 2
    with torch.no_grad(), attach(model, look_at_row(QueryRow(2, when), layer, seen)):
        model(**inputs)
    logits, columns, spans = seen[0]
    last = inputs["attention_mask"].shape[1] - 1 - inputs["attention_mask"].flip(1).argmax(1)
    expected = weights[torch.arange(2), :, last]
    torch.testing.assert_close(logits.softmax(-1), expected.float(), atol=2e-5, rtol=1e-4)
    assert torch.equal(columns[spans.valid], visual_columns(inputs, spans)), "candidates point at their own columns"


def visual_columns(inputs: dict, spans: object) -> torch.Tensor:
    """Sequence positions of the candidates, row by row; newlines of anyres families are no candidates."""
    mask = visual_mask(inputs)
    made = spans.slot[spans.valid]
    rows = torch.arange(mask.shape[0])[:, None].expand_as(spans.slot)[spans.valid]
    assert bool(mask[rows, made].all())
    return made


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_row_without_rotation_does_not_depend_on_positions(family: str) -> None:
    """Rotated and plain rows differ; the plain one equals the projections before rotation."""
    inputs, model = tiny_inputs(family, (1,)), tiny_vlm(family)
    inside, before, rotated = [], [], []
    for seen, when, layer, rope in (
        (inside, "inside", 3, False),
        (before, "before", 2, False),
        (rotated, "before", 2, True),
    ):
        with torch.no_grad(), attach(model, look_at_row(QueryRow(2, when, rope), layer, seen)):
            model(**inputs)
    torch.testing.assert_close(inside[0][0], before[0][0], atol=2e-4, rtol=1e-4)
    finite = torch.isfinite(before[0][0])
    assert (before[0][0] - rotated[0][0])[finite].abs().max() > 1e-2


@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
def test_keys_equal_the_projection(family: str, rope: bool) -> None:
    inputs, model, seen, raw = tiny_inputs(family, (1, 2)), tiny_vlm(family), [], []
    attention = adapter_for(model).layers[2].self_attn
    source = getattr(attention, "k_norm", None) or attention.k_proj
    hook = source.register_forward_hook(lambda m, a, out: raw.append(out))
    wanted = LayerKeys(2, rope)
    with torch.no_grad(), attach(model, Spy(wanted, lambda view: (view.layer_keys(wanted), view.spans), seen, layer=3)):
        model(**inputs)
    hook.remove()
    keys, spans = seen[0]
    made = raw[0] if raw[0].shape[1] == inputs["input_ids"].shape[1] else raw[0].transpose(1, 2)
    flat = made.reshape(*inputs["input_ids"].shape, -1, attention.head_dim)
    expected = flat.gather(1, spans.slot[:, :, None, None].expand(-1, -1, *flat.shape[2:]))
    close = torch.allclose(keys[spans.valid], expected[spans.valid], atol=1e-4)
    assert close is not rope, "rotated keys differ from the projection, unrotated ones equal it"
