"""ATP-style thresholds: monotone, never without the grid, and by the definition of the score."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.contracts import kit
from tests.contracts.checks import image_tokens
from tests.contracts.definitions import grid
from tests.oracle import attention_rows
from tests.tiny import tiny_inputs
from tests.tokens.test_sparsevlm import question
from vlm_eff.core.errors import ConfigError
from vlm_eff.tokens import atp


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen3_vl", "gemma3"])
def test_the_first_stage_is_the_definition(family: str, pad: str) -> None:
    """Survivors from the eager matrix: means over whoever may look, threshold by mean and spread, and the grid."""
    inputs = tiny_inputs(family, (1, 2), pad=pad)
    run = kit.attached(kit.model_of(family), inputs, atp(kappa=0.2, layers=(2,), stride=3, every=2))
    got = kit.survivors(run.handle, inputs)[2] & image_tokens(family, inputs)
    matrix, even = attention_rows(kit.model_of(family, "eager"), inputs, 1).double(), grid(inputs, 3)
    for index, candidates in enumerate(image_tokens(family, inputs)):
        places = candidates.nonzero()[:, 0].tolist()
        words, last = question(inputs, index)
        scores = []
        for at in places:
            halves = []
            for rows in (places[::-1][::2], words or [last]):
                # whoever gives nothing may not look: the softmax of what is seen is above 0 in float64
                paid = [float(matrix[index, :, row, at].mean()) for row in rows]
                looks = sum(value > 0 for value in paid)
                halves.append(sum(paid) / max(looks, 1))
            scores.append(sum(halves) / 2)
        row = torch.tensor(scores, dtype=torch.double)
        above = row > row.mean() + 0.2 * row.std(correction=0)
        want = [at for at, high in zip(places, above.tolist(), strict=True) if high or bool(even[index, at])]
        assert got[index].nonzero()[:, 0].tolist() == want
        assert 0 < len(want) < len(places)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_a_higher_threshold_keeps_fewer_and_the_grid_always(family: str) -> None:
    inputs, model = tiny_inputs(family, (1,)), kit.model_of(family)
    even, before = grid(inputs, 3), None
    for kappa in (-3.0, -0.5, 0.0, 0.5, 1.0, 9.0):
        run = kit.attached(model, inputs, atp(kappa=kappa, layers=(1, 3), stride=3))
        kept = kit.survivors(run.handle, inputs)[1]
        assert bool((kept | ~even).all())
        assert bool((kit.survivors(run.handle, inputs)[5] | ~even).all())
        assert before is None or bool((kept <= before).all())
        before = kept
    assert before is not None
    # no score is nine deviations above the mean: the best token and the grid are left
    assert int((before & image_tokens(family, inputs)).sum()) <= int(even.sum()) + 1


def test_each_instance_has_its_own_threshold() -> None:
    """Counts differ between pictures of one size, and are those of each picture alone."""
    inputs, model = tiny_inputs("llava", (1, 1, 1, 1), text=(6, 6)), kit.model_of("llava")
    run = kit.attached(model, inputs, atp(kappa=0.0, layers=(2,), stride=5))
    counts = [int(row.sum()) for row in kit.survivors(run.handle, inputs)[2]]
    assert len(set(counts)) > 1


@pytest.mark.parametrize("name", ["kappa", "stride", "every", "keep_ratio"])
@pytest.mark.parametrize("value", [float("nan"), "x", True])
def test_wrong_values_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError):
        atp(**{name: value})
