"""The lists in compiled FlexAttention, on the CPU."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch

from tests.kernels.kit import fresh, relative
from tests.kernels.sparse_attention.cases import CASES, Case, draw, wanted
from vlm_eff.kernels.sparse_attention import sparse_attention

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="FlexAttention on a CPU is compiled by g++"),
]


@pytest.mark.parametrize(
    "case",
    [
        CASES["cross-modal, padded, behind a cache"],
        Case(batch=2, causal=False, shared=True, queries=100, keys=500, window=30, softcap=4.0),
    ],
    ids=["cross-modal", "both ways"],
)
def test_flex_is_right(case: Case) -> None:
    call = draw(case, fresh())
    with warnings.catch_warnings():
        # the compiler's own affair
        warnings.simplefilter("ignore")
        made = sparse_attention(*call, softcap=case.softcap, backend="flex")
    assert isinstance(made, torch.Tensor)
    assert relative(made, wanted(case, call)[0]) < 1e-6
    seen = call[3].mask(case.queries, case.keys, call[4]).any(-1).expand(made.shape[:3])
    assert bool((made[~seen] == 0).all())
