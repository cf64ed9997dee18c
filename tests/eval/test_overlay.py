"""The picture of what was kept, on a hand-made grid."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vlm_eff.core.errors import CapabilityError
from vlm_eff.core.report import VisualTokens
from vlm_eff.eval.overlay import overlay

WHITE = Image.new("RGB", (60, 40), (255, 255, 255))


def tokens(kept: list[list[int]], image: int = 0, group: int = 0) -> VisualTokens:
    grid = torch.tensor(kept)
    y, x = (part.flatten() for part in torch.meshgrid(*map(torch.arange, grid.shape), indexing="ij"))
    same = torch.ones_like(y)
    return VisualTokens(
        torch.arange(len(y)), image * same, group * same, y, x, grid.flatten().bool(), grid.flatten().float()
    )


def join(*parts: VisualTokens) -> VisualTokens:
    return VisualTokens(*(torch.cat([getattr(p, name) for p in parts]) for name in VisualTokens.__dataclass_fields__))


def bright(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L")) > 128


def test_kept_cells_are_clear_and_dropped_ones_dark() -> None:
    drawn = overlay(WHITE, tokens([[1, 0, 0], [0, 0, 1]]), side=60)
    assert drawn.size == (60, 40)
    expected = np.zeros((40, 60), dtype=bool)
    expected[:20, :20] = expected[20:, 40:] = True
    assert (bright(drawn) == expected).all()


def test_each_image_shows_its_own_tokens() -> None:
    both = join(tokens([[1, 1]]), tokens([[0, 1]], image=1, group=1))
    assert bright(overlay(WHITE, both, 0)).all()
    second = bright(overlay(WHITE, both, 1))
    assert not second[:, : second.shape[1] // 2].any()
    assert second[:, second.shape[1] // 2 :].all()


def test_tiles_are_drawn_beside_the_picture() -> None:
    tiled = join(tokens([[1]]), tokens([[0]], group=1))
    drawn = overlay(WHITE, tiled, side=60)
    assert drawn.width == 3 * 60 + 2 * 8
    shown = bright(drawn)
    assert shown[:, :60].all()
    assert shown[:, 68:128].all()
    assert not shown[:, 136:].any()


def test_unknown_grids_are_refused() -> None:
    known = tokens([[1, 0]])
    flat = torch.full_like(known.y, -1)
    unknown = VisualTokens(known.slot, known.image, known.group, flat, flat, known.kept, known.weight)
    with pytest.raises(CapabilityError, match="survivors"):
        overlay(WHITE, unknown)
    with pytest.raises(CapabilityError, match="image 1"):
        overlay(WHITE, known, 1)


def test_one_group_alone_and_cells_in_between() -> None:
    frames = join(tokens([[1, 0]]), tokens([[0, 1]], group=1))
    second = bright(overlay(WHITE, frames, group=1, side=60))
    assert not second[:, :30].any() and second[:, 30:].all()
    shaded = np.asarray(overlay(WHITE, tokens([[1, 1, 1]]), side=60, clear=torch.tensor([1.0, 0.5, 0.0])))[0, ::20, 0]
    assert shaded[0] == 255 and shaded[2] < 50 and abs(int(shaded[1]) - (255 + int(shaded[2])) / 2) <= 1
    with pytest.raises(CapabilityError):
        overlay(WHITE, frames, group=2)


def test_a_token_that_stands_for_others_has_an_outline() -> None:
    plain = tokens([[1, 1], [0, 0]])
    merged = replace(plain, weight=torch.tensor([3.0, 1.0, 0.0, 0.0]))
    edge = np.asarray(overlay(WHITE, merged, side=60))
    assert edge[0, 0].tolist() == edge[19, 0].tolist() == [255, 140, 0]
    assert (edge[5:15, 5:25] == 255).all(), "the cell itself stays clear"
    assert (np.asarray(overlay(WHITE, plain, side=60))[:20] == 255).all()
