"""Which query rows of a prompt are kept for scoring, whole or in chunks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vlm_eff.core.cache import IMAGE, PADDING, TEXT, CacheRows
from vlm_eff.models.kv.book import Asked, final_rows, wanted_rows

# two rows: the second is padded in front, and its image comes last
MODALITY = torch.tensor(
    [
        [TEXT, IMAGE, IMAGE, TEXT, IMAGE, IMAGE, TEXT, TEXT, TEXT, TEXT],
        [PADDING, PADDING, TEXT, TEXT, TEXT, TEXT, IMAGE, IMAGE, IMAGE, IMAGE],
    ]
)
POSITION = torch.arange(10).expand(2, -1)
ORDINAL = POSITION - torch.tensor([[0], [2]])


def asked(rule: CacheRows, chunks: tuple[int, ...]) -> Asked:
    """Positions that a rule keeps when the prompt comes in `chunks`."""
    kept: Asked | None = None
    first = 0
    for length in chunks:
        part = slice(first, first + length)
        position, modality = POSITION[:, part], MODALITY[:, part]
        looks = torch.ones(2, length, first + length, dtype=torch.bool)
        query = position[:, None, :, None].float().expand(-1, 2, -1, 4)
        new = Asked(query, position, ORDINAL[:, part], modality, modality != PADDING, looks)
        kept = new if kept is None else kept.join(new)
        kept = kept.only(wanted_rows(rule, kept.position, kept.ordinal, kept.modality, kept.valid))
        first += length
    assert kept is not None
    return final_rows(rule, kept)


def positions(kept: Asked) -> list[list[int]]:
    return [row[ok].tolist() for row, ok in zip(kept.position, kept.valid, strict=True)]


RULES = {
    "last": (CacheRows("last", 3), [[7, 8, 9], [7, 8, 9]]),
    "text": (CacheRows("text", 5), [[3, 6, 7, 8, 9], [2, 3, 4, 5]]),
    "after": (CacheRows("after", None, fallback=2), [[6, 7, 8, 9], [8, 9]]),
    "after, few": (CacheRows("after", 2, fallback=3), [[8, 9], [7, 8, 9]]),
    "all": (CacheRows("all", None), [list(range(10)), list(range(2, 10))]),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("chunks", [(10,), (4, 6), (3, 3, 3, 1), (1,) * 10])
def test_a_rule_keeps_the_same_rows_in_any_chunks(name: str, chunks: tuple[int, ...]) -> None:
    rule, wanted = RULES[name]
    kept = asked(rule, chunks)
    assert positions(kept) == wanted
    # the query that is kept is the one of its position
    assert torch.equal(kept.query[:, 0, :, 0][kept.valid], kept.position[kept.valid].float())


@pytest.mark.parametrize("chunks", [(4, 6), (3, 3, 3, 1), (1,) * 10])
def test_random_rows_do_not_depend_on_chunks(chunks: tuple[int, ...]) -> None:
    rule = CacheRows("last", 2, random=3, seed=1)
    whole = positions(asked(rule, (10,)))
    assert positions(asked(rule, chunks)) == whole
    assert [len(row) for row in whole] == [5, 5]
    assert positions(asked(CacheRows("last", 2, random=3, seed=2), (10,))) != whole


def test_random_rows_do_not_depend_on_padding() -> None:
    rule = CacheRows("last", 2, random=3)

    def drawn(position: Tensor, valid: Tensor, ordinal: Tensor) -> list[int]:
        modality = torch.where(valid, TEXT, PADDING)
        kept = wanted_rows(rule, position, ordinal, modality, valid)
        return ordinal[kept].tolist()

    alone = torch.arange(8)[None]
    padded = torch.arange(12)[None]
    there = padded >= 4
    assert drawn(alone, alone >= 0, alone) == drawn(padded, there, padded - 4)


def test_rows_that_could_look_at_fewer_columns_keep_what_they_saw() -> None:
    kept = asked(CacheRows("all", None), (4, 6))
    assert kept.looks.shape == (2, 10, 10)
    assert not kept.looks[0, :4, 4:].any()
    assert kept.looks[0, 4:].all()
