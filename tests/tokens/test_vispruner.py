"""VisPruner: exactly as many as asked, the important ones by attention, the others without near copies."""

from __future__ import annotations

import pytest
import torch

from tests.contracts import kit
from tests.contracts.definitions import best
from tests.importance.test_dedupe import by_loops
from tests.tiny import tiny_inputs, visual_mask
from tests.tokens.tower_views import TowerView, look_at_clip
from vlm_eff.importance.keep import Keep
from vlm_eff.tokens import fastervlm, vispruner
from vlm_eff.tokens.select_distinct import BestAndDistinct


def test_survivors_follow_the_definition() -> None:
    """Two rows, three images of 25 patches: 9 of each, 4 of them important; features before the projector."""
    inputs = tiny_inputs("llava", (1, 2))
    seen = look_at_clip(kit.model_of("llava", "eager"), inputs)
    run = kit.attached(kit.model_of("llava"), inputs, vispruner(keep_count=9, step=3))
    image = 0
    for mask, kept in zip(visual_mask(inputs), run.handle.survivors(0), strict=True):
        places, want = mask.nonzero()[:, 0].tolist(), []
        for start in range(0, len(places), 25):
            row = seen.attention[-2][image].mean(0)
            ranked = sorted(range(25), key=lambda patch: (-float(row[patch]), patch))
            rest = ranked[4:]
            diverse = [rest[place] for place in by_loops(seen.features[image, rest], 5, 3)]
            want += [places[start + patch] for patch in sorted(best(row.tolist(), 4) + diverse)]
            image += 1
        assert [place for place in kept.tolist() if mask[place]] == want


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "internvl"])
def test_all_by_importance_is_fastervlm(family: str) -> None:
    inputs, sets = tiny_inputs(family, (1, 2)), []
    for plugin in (vispruner(keep_count=5, important=1.0), fastervlm(keep_count=5), vispruner(keep_count=5)):
        run = kit.attached(kit.model_of(family), inputs, plugin)
        sets.append([row.tolist() for row in run.handle.survivors(0)])
    assert sets[0] == sets[1] != sets[2]


@pytest.mark.parametrize("important", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 7, 24])
def test_size_is_exact_for_every_image(count: int, important: float) -> None:
    rows = [[(0, 0, 5, 5), (1, 1, 3, 4)], [(0, 0, 4, 6)], []]
    view = TowerView(rows, torch.rand(3, 37, generator=torch.Generator().manual_seed(2)))
    made = BestAndDistinct(important)(view.attention, view, Keep(count=count))  # type: ignore[arg-type]
    got = [int((made[row] & (view.spans.image[row] == image)).sum()) for row, image in ((0, 0), (0, 1), (1, 0))]
    assert got == [min(count, size) for size in (25, 12, 24)]
    assert not bool((made & ~view.spans.valid).any())


def test_copies_go_before_anything_else() -> None:
    """Ranked neighbours that are equal: without the important share one of each pair is taken out first."""
    features = torch.eye(6).repeat_interleave(2, 0)[None]
    view = TowerView([[(0, 0, 3, 4)]], torch.linspace(1, 0, 12)[None], features=features)
    made = BestAndDistinct(0.0)(view.attention, view, Keep(count=6))  # type: ignore[arg-type]
    assert made[0].nonzero()[:, 0].tolist() == [1, 3, 5, 7, 9, 11]


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    rows = [[(0, 0, 5, 5)], [(0, 0, 5, 5), (1, 1, 5, 5)], [(0, 0, 2, 3)]]
    generator = torch.Generator().manual_seed(4)
    attention, features = torch.rand(3, 50, generator=generator), torch.randn(3, 50, 8, generator=generator)
    select, keep = BestAndDistinct(0.4, 2), Keep(ratio=0.4)
    batch = TowerView(rows, attention, features=features)
    made = select(attention, batch, keep)  # type: ignore[arg-type]
    for index, row in enumerate(rows):
        size = sum(height * width for _, _, height, width in row)
        alone = TowerView([row], attention[index, None, :size], features=features[index, None, :size])
        assert torch.equal(select(alone.attention, alone, keep)[0], made[index, :size])  # type: ignore[arg-type]


def test_large_images_take_no_more_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(
        "vlm_eff.tokens.select_distinct.distinct", lambda f, keep, step: seen.append(step) or torch.arange(keep)[None]
    )
    for height in (24, 96):
        view = TowerView([[(0, 0, height, 24)]], torch.rand(1, height * 24))
        BestAndDistinct(0.0)(view.attention, view, Keep(count=4))  # type: ignore[arg-type]
    assert seen == [8, 32]
