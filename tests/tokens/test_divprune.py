"""DivPrune keeps what its definition says, from the embeddings that enter the language model."""

import pytest
import torch

from tests.contracts import checks, kit
from tests.contracts.checks_sets import entry_embeds
from tests.importance.test_greedy import far_apart
from tests.tiny import tiny_inputs
from vlm_eff.tokens import divprune


@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("ratio", [0.098, 0.3, 0.76])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_it_keeps_its_definition(family: str, ratio: float, pad: str) -> None:
    model, inputs = kit.model_of(family), tiny_inputs(family, (1, 2, 0), pad=pad)  # type: ignore[arg-type]
    run = kit.attached(model, inputs, divprune(keep_ratio=ratio))
    candidates, embeds = checks.image_tokens(family, inputs), entry_embeds(model, inputs)
    kept = kit.survivors(run.handle, inputs)[0] & candidates
    for index in range(2):
        places = candidates[index].nonzero()[:, 0]
        count = max(round(ratio * len(places)), 1)
        want = far_apart(embeds[index, places], count)
        assert kept[index].nonzero()[:, 0].tolist() == places[want].tolist()
    assert not kept[2].any()


def test_a_picture_of_one_colour_is_no_trap() -> None:
    """The official loop takes a token twice when nothing but copies is left; here the count is what was asked."""
    model, inputs = kit.model_of("llava"), tiny_inputs("llava", (1,))
    inputs["pixel_values"] = torch.zeros_like(inputs["pixel_values"])
    run = kit.attached(model, inputs, divprune(keep_count=9))
    assert int((kit.survivors(run.handle, inputs)[0] & checks.image_tokens("llava", inputs)).sum()) == 9
