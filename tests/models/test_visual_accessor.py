"""`handle.visual`: where each visual token lies in its image, and whether it is left."""

import torch

from tests.tiny import tiny_inputs, tiny_vlm, visual_layout, visual_mask
from vlm_eff import attach
from vlm_eff.tokens import fastv


def test_visual_tells_places_and_what_was_kept() -> None:
    model, inputs = tiny_vlm("llava"), tiny_inputs("llava", (2, 1))
    with attach(model, fastv(keep_ratio=0.5)) as handle, torch.no_grad():
        model(**inputs)
    got = handle.stats().prefills[-1].stages[0].got
    truth, slots = visual_layout("llava", inputs), visual_mask(inputs)
    for row, (early, late) in enumerate(zip(handle.visual(0), handle.visual(2), strict=True)):
        assert early.slot.tolist() == slots[row].nonzero()[:, 0].tolist()
        cells = list(zip(early.image.tolist(), early.y.tolist(), early.x.tolist(), strict=True))
        assert cells == [(cell["image"], cell["y"], cell["x"]) for cell in truth[row]]
        assert early.kept.all()
        assert int(late.kept.sum()) == got[row] < len(late.slot)
        assert set(late.slot[late.kept].tolist()) == set(handle.survivors(2)[row].tolist()) & set(late.slot.tolist())
