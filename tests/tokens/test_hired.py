"""HiRED: budgets of the tiles, and the tokens of each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.contracts import kit
from tests.contracts.definitions import best
from tests.tiny import tiny_inputs, visual_layout, visual_mask
from tests.tokens.tower_views import TowerView, look_at_clip
from vlm_eff.importance.keep import Keep
from vlm_eff.tokens import fastervlm, hired
from vlm_eff.tokens.select_tiles import TileBudgets

SIDE = 6


def tiled_view(
    spot: tuple[int, int, int, int] | None = None, height: int = 12, width: int = 12, seed: int = 0
) -> TowerView:
    """One image: an overview of 6 x 6 and a joined map; attention is high in the overview's `spot` (y, y, x, x)."""
    attention = torch.rand(1, SIDE**2 + height * width, generator=torch.Generator().manual_seed(seed))
    if spot is not None:
        attention[0, : SIDE**2].view(SIDE, SIDE)[spot[0] : spot[1], spot[2] : spot[3]] += 10
    view = TowerView([[(0, 0, SIDE, SIDE), (0, 1, height, width)]], attention)
    view.spans.overview[0, : SIDE**2] = 1
    return view


def counts(view: TowerView, budget: int, share: float = 0.5, faithful: bool = False, per: int = SIDE) -> list[int]:
    """Kept tokens of the overview, then of each tile of `per` x `per` tokens of the map."""
    select = TileBudgets(share, 0, faithful)
    kept = select(view.attention, view, Keep(count=budget))[0]  # type: ignore[arg-type]
    spans, made = view.spans, [int(kept[: SIDE**2].sum())]
    inside = spans.overview[0] == 0
    columns = (int(spans.x[0][inside].max()) + 1) // per
    tile = torch.div(spans.y[0], per, rounding_mode="floor") * columns + torch.div(
        spans.x[0], per, rounding_mode="floor"
    )
    return made + [int((kept & inside & (tile == number)).sum()) for number in range(int(tile[inside].max()) + 1)]


@pytest.mark.parametrize(("spot", "tile"), [((0, 3, 0, 3), 1), ((0, 3, 3, 6), 2), ((3, 6, 0, 3), 3), ((3, 6, 3, 6), 4)])
def test_the_tile_that_shows_the_bright_quadrant_gets_most(spot: tuple[int, int, int, int], tile: int) -> None:
    got = counts(tiled_view(spot), 40)
    assert got[0] == 20
    assert max(got[1:]) == got[tile] > sum(got[1:]) - got[tile] - 1
    assert sum(got) == 40


def test_bands_of_the_released_code_are_not_regions() -> None:
    """The left half is bright: regions give all to the tiles on the left; every band of 9 patches has some of it."""
    view = tiled_view((0, 6, 0, 3))
    assert counts(view, 40, faithful=True) == [20, 6, 3, 6, 3]
    assert counts(view, 40) == [20, 10, 0, 10, 0]


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("budget", [1, 7, 35, 90, 170, 180])
def test_the_budget_is_never_exceeded_and_the_fixed_form_spends_it(budget: int, share: float, faithful: bool) -> None:
    for seed in range(3):
        got = counts(tiled_view(seed=seed), budget, share, faithful)
        assert 1 <= sum(got) <= budget
        if not faithful:
            assert sum(got) == budget


def test_the_overview_may_have_everything() -> None:
    assert counts(tiled_view(), 30, share=1.0) == [30, 0, 0, 0, 0]
    # more than it holds goes on to the tiles
    assert counts(tiled_view(), 44, share=1.0)[0] == 36


def test_a_cut_map_is_parted_where_its_tiles_were_joined() -> None:
    """Of two by two tiles two rows are cut off above and below: the middle stays the middle."""
    got = counts(tiled_view((0, 3, 0, 6), height=8), 40, per=4)
    # eight by twelve: rows 0..3 belong to the upper tiles
    assert sum(got[1:4]) == 20 and sum(got[4:]) == 0


def test_tokens_are_the_best_of_their_tile_by_late_attention() -> None:
    """LLaVA-NeXT, one image: everything by hand from the tower's eager matrices and the true layout."""
    inputs = tiny_inputs("llava_next", (1,))
    seen = look_at_clip(kit.model_of("llava_next", "eager"), inputs)
    run = kit.attached(kit.model_of("llava_next"), inputs, hired(keep_ratio=0.5))
    early, late = seen.attention[0].mean(1), seen.attention[-2].mean(1)
    marked = best(early[0].tolist(), 4)
    # the map is 4 x 6 of 6 x 6: a row of patches is cut off above and below, tiles meet in the middle
    hits = [0, 0, 0, 0]
    for patch in marked:
        row, column = (patch // 3 + 0.5) / 3 >= 0.5, (patch % 3 + 0.5) / 3 >= 0.5
        hits[2 * row + column] += 1
    cells = visual_layout("llava_next", inputs)[0]
    places = visual_mask(inputs)[0].nonzero()[:, 0].tolist()
    tiles: list[list[tuple[int, float]]] = [[], [], [], [], []]
    for place, cell in zip(places, cells, strict=True):
        if cell["newline"]:
            continue
        if cell["frame_or_tile"] == 0:
            tiles[0].append((place, float(late[0, cell["y"] * 3 + cell["x"]])))
        else:
            y, x = cell["y"] + 1, cell["x"]
            tile = 2 * (y // 3) + x // 3
            tiles[1 + tile].append((place, float(late[1 + tile, (y % 3) * 3 + x % 3])))
    budget = sum(len(tile) for tile in tiles) // 2
    first = int(budget * 0.5)
    quota = [(budget - first) * hit / 4 for hit in hits]
    shares = [int(value) for value in quota]
    for tile in sorted(range(4), key=lambda tile: (shares[tile] - quota[tile], tile))[: budget - first - sum(shares)]:
        shares[tile] += 1
    assert all(share <= len(tile) for share, tile in zip([first, *shares], tiles, strict=True))
    want = [
        tile[place][0]
        for tile, share in zip(tiles, [first, *shares], strict=True)
        for place in best([value for _, value in tile], share)
    ]
    newlines = [place for place, cell in zip(places, cells, strict=True) if cell["newline"]]
    kept = [place for place in run.handle.survivors(0)[0].tolist() if place in places]
    assert kept == sorted(want + newlines)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "smolvlm"])
def test_without_an_overview_it_is_the_top_of_each_image(family: str) -> None:
    inputs, sets = tiny_inputs(family, (1, 2)), []
    for plugin in (hired(keep_count=5), fastervlm(keep_count=5)):
        run = kit.attached(kit.model_of(family), inputs, plugin)
        sets.append([row.tolist() for row in run.handle.survivors(0)])
    assert sets[0] == sets[1]


def test_internvl_shares_between_thumbnail_and_tiles() -> None:
    inputs = tiny_inputs("internvl", (1,))
    run = kit.attached(kit.model_of("internvl"), inputs, hired(keep_count=12))
    kept: Tensor = run.handle.survivors(0)[0]
    places = visual_mask(inputs)[0].nonzero()[:, 0]
    tiles = [cell["frame_or_tile"] for cell in visual_layout("internvl", inputs)[0]]
    got = [tile for place, tile in zip(places.tolist(), tiles, strict=True) if place in kept.tolist()]
    assert [got.count(tile) for tile in (0, 1, 2)] == [3, 3, 6]
