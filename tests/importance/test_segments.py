"""Segments of frames: where they are cut, and that static videos and single frames are no trouble."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from vlm_eff.importance.segments import cut_by_density, cut_by_similarity, frame_vectors, mean_pairwise


def turns(*degrees: float) -> Tensor:
    """Frames as directions in the plane."""
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def bounds(segments: list[range]) -> list[tuple[int, int]]:
    return [(segment.start, segment.stop) for segment in segments]


def test_cuts_are_at_the_least_alike_neighbours() -> None:
    frames = turns(0, 1, 31, 32, 52, 53)
    assert bounds(cut_by_similarity(frames, 1, -1.0)) == [(0, 6)]
    assert bounds(cut_by_similarity(frames, 2, -1.0)) == [(0, 2), (2, 6)]
    assert bounds(cut_by_similarity(frames, 3, -1.0)) == [(0, 2), (2, 4), (4, 6)]
    # cos 20 = 0.94, cos 30 = 0.87: the threshold cuts whatever `segments` says
    assert bounds(cut_by_similarity(frames, 1, 0.9)) == [(0, 2), (2, 6)]
    assert bounds(cut_by_similarity(frames, 1, 0.95)) == [(0, 2), (2, 4), (4, 6)]
    assert bounds(cut_by_similarity(frames, 99, -1.0)) == [(n, n + 1) for n in range(6)]


def test_a_static_video_is_one_segment_unless_the_official_rule_is_wanted() -> None:
    frames = turns(*[40.0] * 9)
    assert bounds(cut_by_similarity(frames, 4, 0.9)) == [(0, 9)]
    assert len(cut_by_similarity(frames, 4, 0.9, cut_same=True)) == 4


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_one_frame_is_one_segment(count: int) -> None:
    assert bounds(cut_by_similarity(turns(3), count, 0.9, cut_same=True)) == [(0, 1)]
    assert bounds(cut_by_density(turns(3), count, 7)) == [(0, 1)]


@pytest.mark.parametrize("wanted", range(9))
@pytest.mark.parametrize("frames", [1, 2, 5, 8, 13])
def test_scenes_are_contiguous_and_as_many_as_wanted(frames: int, wanted: int) -> None:
    x = torch.randn(frames, 6, generator=torch.Generator().manual_seed(frames))
    x = torch.nn.functional.normalize(x, dim=-1)
    for given in (x, x[:1].expand(frames, -1)):
        segments = cut_by_density(given, wanted, 7)
        assert len(segments) == min(max(wanted, 1), frames)
        assert [n for segment in segments for n in segment] == list(range(frames))


def test_scenes_are_the_clusters_where_these_are_clear() -> None:
    frames = turns(0, 2, 3, 1, 90, 91, 89, 180, 181, 179, 182)
    assert bounds(cut_by_density(frames, 3, 3)) == [(0, 4), (4, 7), (7, 11)]


def test_the_cut_between_two_peaks_is_the_best_one() -> None:
    frames = torch.nn.functional.normalize(torch.randn(9, 4, generator=torch.Generator().manual_seed(5)), dim=-1)
    from vlm_eff.importance.cluster import dpc_knn

    left, right = dpc_knn(frames[None], 2, 3, torch.ones(1, 9, dtype=torch.bool))[0][0].nonzero()[:, 0].tolist()
    value = {
        cut: sum(float(frames[t] @ frames[left if t < cut else right]) for t in range(9))
        for cut in range(left + 1, right + 1)
    }
    assert cut_by_density(frames, 2, 3)[1].start == max(value, key=lambda cut: value[cut])


def test_mean_pairwise_is_the_mean_over_pairs() -> None:
    x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(1))
    present = torch.ones(4, 5, dtype=torch.bool)
    present[1, 2] = present[0, 3] = present[1, 3] = present[3, 3] = False
    x[2, 4] = 0
    got = mean_pairwise(x, present)
    for place in range(5):
        pairs = list(itertools.combinations([f for f in range(4) if present[f, place]], 2))
        values = [float(torch.cosine_similarity(x[a, place], x[b, place], dim=0)) for a, b in pairs]
        want = sum(values) / len(values) if values else 0.0
        if place != 4:
            assert got[place] == pytest.approx(want, abs=1e-5)
    assert got.isfinite().all()


def test_one_frame_has_no_pairs_and_no_nan() -> None:
    assert mean_pairwise(torch.randn(1, 3, 4), torch.ones(1, 3, dtype=torch.bool)).tolist() == [0.0] * 3
    same = mean_pairwise(torch.ones(3, 2, 4), torch.ones(3, 2, dtype=torch.bool))
    assert same.tolist() == pytest.approx([1.0, 1.0])


def test_frame_vectors_leave_out_what_is_gone() -> None:
    x = torch.tensor([[[3.0, 0.0], [0.0, 5.0]], [[1.0, 1.0], [9.0, 9.0]]])
    present = torch.tensor([[True, False], [False, False]])
    assert torch.allclose(frame_vectors(x, present), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
