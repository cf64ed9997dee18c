"""Frames of a video cut into segments, and what changes along them. Pure functions of one video."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from vlm_eff.importance.cluster import dpc_knn
from vlm_eff.importance.similarity import cosine, normalised

# frames this alike are one picture: sums of float32 do not make a cosine exactly 1
SAME = 1 - 1e-4


def frame_vectors(x: Tensor, present: Tensor) -> Tensor:
    """Mean of the tokens of each frame, of length one [F, D] float32.

    x: [F, P, D] tokens by frame and place; present: [F, P] which of them exist
    """
    kept = x.float().masked_fill(~present[:, :, None], 0.0)
    return normalised(kept.sum(1) / present.sum(1).clamp(min=1)[:, None])


def curvature(frames: Tensor) -> Tensor:
    """How sharply a video turns at each frame [F]: 1 - cosine of the steps into it and out of it, in [0, 2].

    frames: [F, D]; the first and the last frame have no two steps and get 1 (V-CAST), as does a frame without movement
    """
    made = frames.new_ones(len(frames))
    step = frames[1:] - frames[:-1]
    if len(frames) > 2:
        made[1:-1] = 1 - cosine(step[:-1], step[1:])
    return made


def cut_by_similarity(frames: Tensor, segments: int, threshold: float, *, cut_same: bool = False) -> list[range]:
    """Segments of frames: cut at the `segments` - 1 least alike neighbours, and at all that are less alike than that.

    frames: [F, D]; threshold: cosine below which neighbours are parted in any case (FastVID, DySeg)
    cut_same: also cut between frames that are the same picture, when `segments` wants it
    """
    alike = cosine(frames[:-1], frames[1:])
    order = torch.argsort(alike, stable=True)[: max(segments - 1, 0)].tolist()
    wanted = {place for place in order if cut_same or alike[place] < SAME}
    wanted |= set((alike < threshold).nonzero()[:, 0].tolist())
    return _ranges([place + 1 for place in sorted(wanted)], len(frames))


def cut_by_density(frames: Tensor, segments: int, neighbours: int) -> list[range]:
    """Exactly `segments` segments (or one a frame) around the density peaks of the frames (PruneVid).

    frames: [F, D]. The frames between two peaks that follow each other go to them so that the similarity of frames to
    their peaks is largest in sum; ties go to the later cut. So segments are contiguous and none is empty.
    """
    count = min(max(segments, 1), len(frames))
    exists = torch.ones(1, len(frames), dtype=torch.bool, device=frames.device)
    centres = dpc_knn(frames[None], count, neighbours, exists)[0][0].nonzero()[:, 0].tolist()
    cuts = []
    for left, right in pairwise(centres):
        between = frames[left + 1 : right]
        gain = (between @ frames[left] - between @ frames[right]).cumsum(0).tolist()
        best = max([0.0, *gain])
        cuts.append(left + 1 + max(place for place, value in enumerate([0.0, *gain]) if value == best))
    return _ranges(cuts, len(frames))


def mean_pairwise(x: Tensor, present: Tensor) -> Tensor:
    """Mean cosine of all pairs of different frames at each place [P]; 0 where a place has fewer than two.

    x: [F, P, D]; present: [F, P]
    """
    unit = normalised(x) * present[:, :, None]
    count = present.sum(0)
    # the squared length of the sum holds every pair twice and every token with itself once
    pairs = unit.sum(0).square().sum(-1) - unit.square().sum((0, 2))
    return torch.where(count > 1, pairs / (count * (count - 1)).clamp(min=1), 0.0).clamp(-1, 1)


def _ranges(cuts: list[int], frames: int) -> list[range]:
    edges = [0, *cuts, frames]
    return [range(start, stop) for start, stop in pairwise(edges)]
