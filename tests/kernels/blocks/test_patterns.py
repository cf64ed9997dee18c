"""Which pairs the patterns of sparse prefill let through: each against its definition, counted pair by pair."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.kernels import by_pair
from tests.kernels.kit import fresh
from vlm_eff.core.errors import InputError
from vlm_eff.kernels.blocks import BlockLists, Rule, cross_modal, streaming, top_blocks, vertical_slash
from vlm_eff.kernels.blocks import grid as grids

# keys, queries, rows, columns: odd lengths, a cache, blocks that do not divide, one block alone
SIZES = [(37, 37, 8, 4), (37, 14, 4, 8), (48, 48, 16, 16), (50, 23, 8, 8), (9, 9, 16, 16), (41, 1, 8, 4)]
sizes = pytest.mark.parametrize(("keys", "queries", "rows", "columns"), SIZES)
padded = pytest.mark.parametrize("pad", [False, True])


def seen(made: tuple[BlockLists, Rule], batch: int, heads: int, queries: int, keys: int) -> Tensor:
    """Lists and rule as a mask [B, H, Q, S]; the lists keep their promises."""
    lists, rule = made
    lists.check(batch, heads, queries, keys, values=True)
    rule.check(batch, keys)
    return lists.mask(queries, keys, rule).expand(batch, heads, -1, -1)


def firsts(pad: bool, keys: int) -> Tensor | None:
    return torch.tensor([0, keys // 3], dtype=torch.int32) if pad else None


def begins(first: Tensor | None) -> list[int]:
    return [0, 0] if first is None else first.tolist()


def runs_of_text(generator: torch.Generator, keys: int) -> Tensor:
    """Text in runs, as prompts have it [2, S]."""
    changes = torch.rand(2, keys, generator=generator) < 0.15
    return (changes.cumsum(1) % 2).bool()


# ---------------------------------------------------------------- the structured cross-modal mask


@padded
@pytest.mark.parametrize(("window", "sinks"), [(1, 0), (5, 2), (13, 9), (64, 0)])
@sizes
def test_cross_modal_is_its_mask(
    keys: int, queries: int, rows: int, columns: int, window: int, sinks: int, pad: bool
) -> None:
    text, first = runs_of_text(fresh(), keys), firsts(pad, keys)
    made = cross_modal(text, window=window, sinks=sinks, first=first, query_length=queries, rows=rows, columns=columns)
    got = seen(made, 2, 1, queries, keys)
    want = [by_pair.cross_modal(text[b], queries, begin, window, sinks) for b, begin in enumerate(begins(first))]
    assert torch.equal(got, torch.stack(want))
    _nothing_is_listed_for_nothing(made[0], got, keys)


def _nothing_is_listed_for_nothing(lists: BlockLists, mask: Tensor, keys: int) -> None:
    """Off the diagonal every listed block holds a pair that is seen."""
    queries = mask.shape[2]
    for b, a in itertools.product(range(mask.shape[0]), range(lists.full_count.shape[2])):
        for count, index in ((lists.full_count, lists.full_index), (lists.part_count, lists.part_index)):
            for block in index[b, 0, a, : int(count[b, 0, a])].tolist():
                across = slice(block * lists.columns, (block + 1) * lists.columns)
                tile = mask[b, 0, a * lists.rows : (a + 1) * lists.rows, across]
                diagonal = (block + 1) * lists.columns > a * lists.rows + keys - queries
                assert bool(tile.any()) or diagonal, (b, a, block)


def test_text_alone_is_seen_whole() -> None:
    """Blocks below the diagonal of a prompt of text need no rule."""
    lists, _ = cross_modal(torch.ones(1, 64, dtype=torch.bool), window=1, sinks=0, rows=16, columns=8)
    assert lists.full_count[0, 0].tolist() == [0, 2, 4, 6]
    assert lists.part_count[0, 0].tolist() == [2, 2, 2, 2]


def test_a_long_image_is_seen_through_a_window() -> None:
    """Text of 16, an image of 1024, text of 16: a block of visual rows sees text, its window and nothing else."""
    text = torch.ones(1, 1056, dtype=torch.bool)
    text[:, 16:1040] = False
    lists, _ = cross_modal(text, window=32, sinks=0, rows=16, columns=16)
    counts = (lists.full_count + lists.part_count)[0, 0].tolist()
    # text in front, itself and 32 back; the last block asks as text and sees all
    assert counts[30:33] == [4, 4, 4]
    assert counts[-1] == 66
    assert float(lists.density(1056)) < 0.15


# ---------------------------------------------------------------- streaming heads


@padded
@pytest.mark.parametrize("dense", [(True, False, True), (False, False, False), (True, True, True)])
@sizes
def test_streaming_is_its_mask(
    keys: int, queries: int, rows: int, columns: int, dense: tuple[bool, ...], pad: bool
) -> None:
    first, sinks, local = firsts(pad, keys), columns, rows + columns
    if not any(dense):
        sinks, local = 3, 5
    made = streaming(
        dense, keys, sinks=sinks, local=local, first=first, query_length=queries, rows=rows, columns=columns
    )
    want = [by_pair.streaming(dense, queries, keys, begin, sinks, local) for begin in begins(first)]
    assert torch.equal(seen(made, 2, 3, queries, keys), torch.stack(want))


def test_dense_heads_beside_a_window_shorter_than_blocks_are_refused() -> None:
    with pytest.raises(InputError, match="smaller blocks"):
        streaming([True, False], 64, local=16, rows=16, columns=16)
    with pytest.raises(InputError, match="sinks of at least 15"):
        streaming([True, False], 64, sinks=4, local=64, rows=16, columns=16, first=torch.zeros(1, dtype=torch.int32))
    with pytest.raises(InputError, match="no heads"):
        streaming([], 64)


# ---------------------------------------------------------------- verticals and slashes


def heads_of(
    generator: torch.Generator, queries: int, keys: int, shared: int = 2, groups: int = 2
) -> tuple[Tensor, Tensor]:
    query = torch.randn(2, shared * groups, queries, 16, generator=generator, dtype=torch.float64)
    return query * 2, torch.randn(2, shared, keys, 16, generator=generator, dtype=torch.float64)


@padded
@sizes
def test_vertical_slash_is_its_definition(keys: int, queries: int, rows: int, columns: int, pad: bool) -> None:
    query, key = heads_of(fresh(), queries, keys)
    first, budget = firsts(pad, keys), {"verticals": 7, "slashes": 6, "last": 6, "sinks": 2, "local": 3}
    made = vertical_slash(query.float(), key.float(), **budget, first=first, rows=rows, columns=columns)  # type: ignore[arg-type]
    want = [
        by_pair.vertical_slash(query[b], key[b], begin, (rows, columns), **budget)
        for b, begin in enumerate(begins(first))
    ]
    assert torch.equal(seen(made, 2, 4, queries, keys), torch.stack(want))


def test_heads_that_look_at_a_key_or_at_a_distance_get_them() -> None:
    """A head whose last rows all look at key 20 lists that column; one that looks 24 back lists that diagonal."""
    keys, width = 64, 128
    query, key = torch.zeros(1, 2, keys, width), torch.zeros(1, 2, keys, width)
    query[0, 0, :, 0] = key[0, 0, 20, 0] = 30.0
    for place in range(keys):
        key[0, 1, place, place] = 30.0
        if place >= 24:
            query[0, 1, place, place - 24] = 30.0
    lists, rule = vertical_slash(query, key, verticals=1, slashes=2, last=8, sinks=0, local=1, rows=4, columns=4)
    mask = lists.mask(keys, keys, rule)[0]
    assert bool(mask[0, 20:, 20].all())
    assert int(lists.column_count[0, 0].max()) == 1  # type: ignore[index]
    places = torch.arange(24, keys)
    assert bool(mask[1, places, places - 24].all())


# ---------------------------------------------------------------- the best blocks


@padded
@pytest.mark.parametrize("budget", [{"count": 4}, {"mass": 0.6}, {"count": 3, "similarity": 0.1}, {"mass": 1.0}])
@sizes
def test_top_blocks_is_its_definition(
    keys: int, queries: int, rows: int, columns: int, budget: dict[str, float], pad: bool
) -> None:
    query, key = heads_of(fresh(), queries, keys)
    first = firsts(pad, keys)
    made = top_blocks(query.float(), key.float(), **budget, first=first, rows=rows, columns=columns)  # type: ignore[arg-type]
    want = [
        by_pair.top_blocks(query[b], key[b], begin, (rows, columns), **budget)  # type: ignore[arg-type]
        for b, begin in enumerate(begins(first))
    ]
    assert torch.equal(seen(made, 2, 4, queries, keys), torch.stack(want))


# ---------------------------------------------------------------- all of them


def _builders() -> dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None], tuple[BlockLists, Rule]]]:
    return {
        "cross_modal": lambda q, k, text, first: cross_modal(
            text, window=9, first=first, query_length=q.shape[2], rows=16, columns=8
        ),
        "streaming": lambda q, k, text, first: streaming(
            [True, False, False, False], k.shape[2], sinks=8, local=32, first=first, query_length=q.shape[2],
            rows=16, columns=8, device=q.device,
        ),
        "vertical_slash": lambda q, k, text, first: vertical_slash(
            q, k, verticals=9, slashes=9, last=7, sinks=2, local=2, first=first, rows=16, columns=8
        ),
        "top_blocks": lambda q, k, text, first: top_blocks(q, k, count=2, first=first, rows=16, columns=8),
        "top_blocks by mass": lambda q, k, text, first: top_blocks(
            q, k, mass=0.7, similarity=0.2, first=first, rows=16, columns=8
        ),
    }  # fmt: skip


BUILDERS = _builders()


@padded
@pytest.mark.parametrize("name", BUILDERS)
def test_nothing_waits_for_the_device(name: str, pad: bool) -> None:
    """Fake tensors hold no values: whoever asks for one (item, nonzero, a branch on a tensor) fails."""
    with FakeTensorMode():
        query, key = torch.empty(2, 4, 50, 16), torch.empty(2, 2, 61, 16)
        text = torch.empty(2, 61, dtype=torch.bool)
        first = torch.empty(2, dtype=torch.int32) if pad else None
        lists, _ = BUILDERS[name](query, key, text, first)
    assert lists.full_count.shape[2] == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", BUILDERS)
def test_everybody_sees_itself_and_nobody_what_comes_later(name: str, dtype: torch.dtype) -> None:
    generator = fresh()
    query, key = (heads.to(dtype) for heads in heads_of(generator, 50, 61))
    first = torch.tensor([0, 30], dtype=torch.int32)
    mask = seen(BUILDERS[name](query, key, runs_of_text(generator, 61), first), 2, 4, 50, 61)
    place = torch.arange(50) + 11
    real = place[None] >= first[:, None]
    assert bool(mask[..., torch.arange(50), place].transpose(1, 2)[real].all())
    assert not bool((mask & (torch.arange(61) > place[:, None])).any())
    assert not bool(mask[1, :, :, :30].any())
    assert not bool(mask[1, :, :19].any())


@pytest.mark.parametrize("name", BUILDERS)
def test_padding_holds_nothing_that_counts(name: str) -> None:
    """What stands in the padding, even no number, changes no list."""
    generator = fresh()
    query, key = (heads.float() for heads in heads_of(generator, 50, 61))
    text, first = runs_of_text(generator, 61), torch.tensor([0, 30], dtype=torch.int32)
    want = seen(BUILDERS[name](query, key, text, first), 2, 4, 50, 61)
    query[1, :, :19], key[1, :, :30] = torch.nan, torch.nan
    text[1, :30] ^= True
    assert torch.equal(seen(BUILDERS[name](query, key, text, first), 2, 4, 50, 61), want)


def _cross(keys: int, queries: int, rows: int, columns: int) -> None:
    test_cross_modal_is_its_mask(keys, queries, rows, columns, window=13, sinks=0, pad=True)


def _stream(keys: int, queries: int, rows: int, columns: int) -> None:
    test_streaming_is_its_mask(keys, queries, rows, columns, dense=(True, False, True), pad=True)


def _slash(keys: int, queries: int, rows: int, columns: int) -> None:
    test_vertical_slash_is_its_definition(keys, queries, rows, columns, pad=True)


def _top(keys: int, queries: int, rows: int, columns: int) -> None:
    test_top_blocks_is_its_definition(keys, queries, rows, columns, budget={"count": 7}, pad=True)


GRID, SLASH, TOP = grids.Grid, "vlm_eff.kernels.blocks.vertical_slash", "vlm_eff.kernels.blocks.top_blocks"
BREAK: dict[str, tuple[str, Callable[[object], object]]] = {
    "one row less": ("vlm_eff.kernels.blocks.grid.Grid.bottom", lambda old: property(lambda g: old.fget(g) - 1)),  # type: ignore[attr-defined]
    "padding forgotten": (
        "vlm_eff.kernels.blocks.grid.Grid.first",
        lambda old: lambda g, first: torch.zeros(1, 1, 1, 1, dtype=torch.int32),
    ),
    "a ragged block taken for whole": (
        "vlm_eff.kernels.blocks.grid.Grid.whole",
        lambda old: property(lambda g: g.left >= 0),
    ),
    "the cache forgotten": ("vlm_eff.kernels.blocks.grid.Grid.past", lambda old: property(lambda g: 0)),
    "distances shifted": (f"{SLASH}._diagonals", lambda old: lambda w: old(w).roll(1, -1)),  # type: ignore[operator]
    "columns listed twice": (
        f"{SLASH}._columns",
        lambda old: lambda g, listed, exists, index: old(g, torch.zeros_like(listed), exists, index),  # type: ignore[operator]
    ),
    "no diagonal": (f"{TOP}._always", lambda old: lambda g, first: torch.zeros(1, 1, 1, 1, dtype=torch.bool)),
    "worst instead of best": (
        f"{TOP}._chosen",
        lambda old: lambda scores, always, count, mass: old(-scores, always, count, mass),  # type: ignore[operator]
    ),
}
WRONG = [
    ("one row less", _cross),
    ("one row less", _stream),
    ("one row less", _slash),
    ("padding forgotten", _cross),
    ("padding forgotten", _stream),
    ("padding forgotten", _slash),
    ("padding forgotten", _top),
    ("a ragged block taken for whole", _cross),
    ("a ragged block taken for whole", _top),
    ("the cache forgotten", _cross),
    ("the cache forgotten", _stream),
    ("distances shifted", _slash),
    ("columns listed twice", _slash),
    ("no diagonal", _top),
    ("worst instead of best", _top),
]


@pytest.mark.parametrize(("what", "check"), WRONG)
def test_what_is_broken_is_found(what: str, check: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    place, broken = BREAK[what]
    module, _, name = place.rpartition(".")
    owner = GRID if module.endswith(".Grid") else importlib.import_module(module)
    monkeypatch.setattr(owner, name, broken(getattr(owner, name)))
    sizes = {"a ragged block taken for whole": (41, 1, 8, 4), "one row less": (41, 41, 8, 4)}.get(what, (50, 23, 8, 4))
    with pytest.raises((AssertionError, InputError)):
        check(*sizes)


@pytest.mark.parametrize(
    ("match", "make"),
    [
        ("exactly one", lambda q, k: top_blocks(q, k)),
        ("exactly one", lambda q, k: top_blocks(q, k, count=1, mass=0.5)),
        ("in range", lambda q, k: top_blocks(q, k, mass=1.5)),
        ("verticals=0", lambda q, k: vertical_slash(q, k, verticals=0)),
        ("local=0", lambda q, k: vertical_slash(q, k, local=0)),
        ("a key for each", lambda q, k: top_blocks(q, k[:, :, :3], count=1)),
        ("multiple of Hkv", lambda q, k: top_blocks(q[:, :3], k, count=1)),
        ("at least one token", lambda q, k: top_blocks(q, k, count=1, rows=0)),
        ("integers", lambda q, k: top_blocks(q, k, count=1, first=torch.zeros(2))),
    ],
)
def test_what_cannot_be_built_is_refused(match: str, make: Callable[[Tensor, Tensor], object]) -> None:
    query, key = heads_of(fresh(), 8, 8)
    with pytest.raises(InputError, match=match):
        make(query, key)
