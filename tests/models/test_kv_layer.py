"""Cache operations on a layer that holds every kind of entry: held by head, ragged, quantised, merged, and a tail."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from vlm_eff.core.cache import CacheRows, CacheSums
from vlm_eff.core.errors import StateError
from vlm_eff.kernels.format import Format
from vlm_eff.kernels.quantise import quantise
from vlm_eff.models.kv.book import Asked, Columns, Sums
from vlm_eff.models.kv.layer import CompressedLayer, Packed, make_compressed
from vlm_eff.models.kv.quantised import QuantisedSegment
from vlm_eff.models.kv.segments import RaggedSegment
from vlm_eff.models.slots import Slots

ROWS, HEADS, WIDTH = 3, 2, 8
PROMPT, SEEN = 12, 15
Op = Callable[[CompressedLayer], None]


def layer() -> CompressedLayer:
    """12 positions compressed: 4 quantised, up to 3 ragged, 2 held by head; 3 more behind them."""
    made = make_compressed(DynamicLayer(), ROWS, torch.device("cpu"))
    draw = torch.Generator().manual_seed(0)

    def fresh(count: int) -> Tensor:
        return torch.randn(ROWS, HEADS, count, WIDTH, generator=draw)

    made.ticket = lambda old: old.grow(5)
    made.update(fresh(5), fresh(5))
    made.slots = Slots(torch.zeros(ROWS, 0, dtype=torch.long), torch.zeros(ROWS, 0).bool(), PROMPT, SEEN, ragged=False)
    made.held = torch.stack([torch.randperm(4, generator=draw)[:2] for _ in range(ROWS * HEADS)]).view(ROWS, HEADS, 2)
    made.held = made.held.int()
    made.weight = 1 + torch.rand(ROWS, HEADS, 2, generator=draw)
    count = torch.tensor([[3, 1], [2, 2], [0, 3]])
    place = torch.arange(3).expand(ROWS, HEADS, 3)
    position = torch.where(place < count[..., None], place + 4, -1).int()
    ragged = RaggedSegment.of(fresh(3), fresh(3), position, None)
    form = Format(4, "channel")
    at = torch.arange(8, 12, dtype=torch.int32).expand(ROWS, HEADS, 4).contiguous()
    packed = QuantisedSegment(at, None, quantise(fresh(4), form), quantise(fresh(4), Format(2, "token", 4)))
    made.segments = (packed, ragged)
    made.ragged = True
    rule, kind = CacheRows("last", 2, steps=True), CacheSums(steps=True)
    rows = torch.arange(ROWS)[:, None]
    made.book.asked[rule] = Asked(
        fresh(2), rows * 0 + torch.tensor([10, 14]), rows + torch.tensor([8, 12]), (rows * 0).expand(-1, 2),
        torch.ones(ROWS, 2, dtype=torch.bool), torch.rand(ROWS, 2, SEEN, generator=draw) > 0.5,
    )  # fmt: skip
    made.book.sums[kind] = Sums(*(torch.rand(ROWS, HEADS, 12, 1, generator=draw) for _ in range(2)))
    made.book.columns = Columns(torch.randint(0, 2, (ROWS, SEEN), generator=draw), rows.expand(1, ROWS, SEEN))
    return made


def state(of: CompressedLayer) -> dict[str, Any]:
    """Everything that a row of the batch owns, batch first."""
    key, value = Packed(of.segments, of.keys, of.values).dense(None)
    book, rule, kind = of.book, CacheRows("last", 2, steps=True), CacheSums(steps=True)
    assert book.columns is not None and book.columns.places is not None
    asked = book.asked[rule]
    weights = of.weights()
    assert weights is not None
    there = (of.positions() >= 0)[..., None]
    return {
        "key": key * there, "value": value * there, "positions": of.positions(), "weights": weights,
        "query": asked.query, "ordinal": asked.ordinal, "valid": asked.valid, "looks": asked.looks,
        "got": book.sums[kind].got, "modality": book.columns.modality, "places": book.columns.places[0],
    }  # fmt: skip


SELECTIONS: dict[str, tuple[Op, list[int]]] = {
    "reorder": (lambda it: it.reorder_cache(torch.tensor([2, 0, 0])), [2, 0, 0]),
    "select": (lambda it: it.batch_select_indices(torch.tensor([1])), [1]),
    "repeat": (lambda it: it.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_rows_are_taken_from_every_buffer(name: str) -> None:
    run, rows = SELECTIONS[name]
    made = layer()
    before = state(made)
    run(made)
    after = state(made)
    for what, tensor in before.items():
        assert torch.equal(after[what], tensor[rows]), what


def test_crop_reaches_the_tail_alone() -> None:
    made = layer()
    before = state(made)
    made.crop(-2)
    after = state(made)
    assert made.get_seq_length() == SEEN - 2
    for what in ("key", "value", "positions", "weights"):
        assert torch.equal(after[what], before[what][:, :, :-2]), what
    assert torch.equal(after["got"], before["got"][:, :, :-2])
    assert torch.equal(after["modality"], before["modality"][:, :-2])
    # the row at position 14 never was
    assert after["valid"].tolist() == [[True, False]] * ROWS
    with pytest.raises(StateError, match="cropped by 2"):
        made.crop(-2)
    assert torch.equal(state(made)["positions"], after["positions"])


def test_no_layer_is_cropped_below_the_floor_of_all() -> None:
    made = make_compressed(DynamicLayer(), ROWS, torch.device("cpu"))
    made.ticket = lambda old: old.grow(6)
    made.update(torch.zeros(ROWS, HEADS, 6, WIDTH), torch.zeros(ROWS, HEADS, 6, WIDTH))
    made.floor = 4
    with pytest.raises(StateError, match="at most 2"):
        made.crop(-3)
    made.crop(-2)
    assert made.get_seq_length() == 4


def test_a_copy_is_of_its_own() -> None:
    made = layer()
    twin = copy.deepcopy(made)
    made.crop(-1)
    made.reorder_cache(torch.tensor([1, 1, 1]))
    fresh = state(layer())
    for what, tensor in state(twin).items():
        assert torch.equal(tensor, fresh[what]), what


def test_moving_and_back_changes_nothing() -> None:
    made = layer()
    made.offload()
    assert all(tensor.device.type == "cpu" for tensor in made.buffers())
    made.prefetch()
    fresh = state(layer())
    for what, tensor in state(made).items():
        assert torch.equal(tensor, fresh[what]), what


def test_moving_moves_every_buffer() -> None:
    made = layer()
    made._move("meta")
    packed = [tensor for segment in made.segments for tensor in segment.buffers]
    assert made.held is not None and made.weight is not None
    assert {tensor.device.type for tensor in (*packed, made.held, made.weight)} == {"meta"}


def test_reset_forgets_everything() -> None:
    made = layer()
    made.reset()
    assert made.get_seq_length() == 0
    assert made.segments == () and made.held is None and made.weight is None and not made.ragged
    assert not made.book.asked and not made.book.sums and made.book.columns is None


def test_bytes_are_those_of_the_storages() -> None:
    made = layer()
    tensors = {id(t): t for t in made.buffers()}.values()
    assert made.bytes == sum(t.untyped_storage().nbytes() for t in tensors if t.numel())
    ragged = made.segments[1]
    assert isinstance(ragged, RaggedSegment)
    # three of the eighteen seats that a rectangle would have are empty, and take no memory
    assert ragged.key.shape == (11, WIDTH)
