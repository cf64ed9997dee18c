"""FasterVLM: the survivors are those of the class token's row of the full matrices."""

import pytest
import torch

from tests.contracts import kit
from tests.contracts.definitions import best
from tests.tiny import tiny_inputs, visual_mask
from tests.tokens.tower_views import look_at_clip
from vlm_eff.core.errors import CapabilityError
from vlm_eff.models.attach import attach
from vlm_eff.tokens import fastervlm


def test_survivors_are_the_top_of_the_class_row_of_each_image() -> None:
    inputs = tiny_inputs("llava", (1, 2))
    seen = look_at_clip(kit.model_of("llava", "eager"), inputs)
    run = kit.attached(kit.model_of("llava"), inputs, fastervlm(keep_ratio=0.3))
    chosen = [best(row.tolist(), 8) for row in seen.attention[-2].mean(1)]
    want = [chosen[0], chosen[1] + [25 + place for place in chosen[2]]]
    for row, (mask, kept) in enumerate(zip(visual_mask(inputs), run.handle.survivors(0), strict=True)):
        places = mask.nonzero()[:, 0]
        assert [place for place in kept.tolist() if mask[place]] == places[want[row]].tolist()


def test_another_block_chooses_otherwise() -> None:
    inputs = tiny_inputs("llava", (1,))
    kept = [
        kit.attached(kit.model_of("llava"), inputs, fastervlm(block=block)).handle.survivors(0)[0].tolist()
        for block in (None, -2, 0)
    ]
    assert kept[0] == kept[1] != kept[2]


def test_a_tower_without_class_token_uses_what_patches_receive_or_says_so() -> None:
    model, inputs = kit.model_of("qwen2_vl"), tiny_inputs("qwen2_vl", (1,))
    sets = [
        kit.attached(model, inputs, fastervlm(row=row)).handle.survivors(0)[0].tolist() for row in ("auto", "received")
    ]
    assert sets[0] == sets[1]
    with pytest.raises(CapabilityError, match="class token"):
        attach(model, fastervlm(row="cls"))


def test_the_tower_row_needs_no_square_matrix() -> None:
    """Attention of 8,192 patches under a limit that their matrix (256 MiB a head) would break."""
    from vlm_eff.models.tower_rows import reduce_attention

    query = torch.randn(1, 1, 8192, 4, generator=torch.Generator().manual_seed(0))
    seen = []

    class Watch(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                seen.append(out.numel())
            return out

    with Watch():
        reduce_attention(query, query, None, 0.5, "received", "mean")
    assert max(seen) <= 256 * 8192
