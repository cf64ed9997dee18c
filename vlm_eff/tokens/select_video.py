"""Which video tokens stay, counted by video or by frame. Tokens of images always do."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.importance.adaptive import share_out
from vlm_eff.importance.keep import Keep, is_number
from vlm_eff.importance.segments import curvature, frame_vectors
from vlm_eff.importance.select import top_k_per_group
from vlm_eff.models.view import View
from vlm_eff.models.visual import VisualSpans
from vlm_eff.tokens.films import films
from vlm_eff.tokens.scores_video import references


@part
@dataclass(frozen=True)
class PerVideo:
    """The best tokens of each video, and at least as many as its first frame has (EVS)."""

    def __call__(self, scores: Tensor, view: View, keep: Keep) -> Tensor:
        spans = view.spans
        original = view.image_original()
        current = _count(spans.image, spans.video, original.shape[1])
        first = _count(spans.image, spans.video & (spans.frame == 0), original.shape[1])
        # an image has no video tokens, hence keeps 0 of them here and all of its own below
        count = torch.maximum(keep.counts(original, current), first)
        return _with_images(top_k_per_group(scores, spans.image, count, spans.video), spans)

    def expected(self, kept: float, current: float) -> float:
        return kept


@part
@dataclass(frozen=True)
class CurvatureBudget:
    """The best tokens of each frame; each video's budget goes to the frames at which it turns (V-CAST).

    Shares follow softmax(curvature / temperature); every frame keeps a token, none more than it has.
    """

    temperature: float = 0.7

    def __post_init__(self) -> None:
        if not is_number(self.temperature) or self.temperature <= 0:
            raise ConfigError(explain(f"temperature={self.temperature!r}", "a number above 0", "Give a temperature"))

    def __call__(self, scores: Tensor, view: View, keep: Keep) -> Tensor:
        spans, hidden, original = view.spans, view.visual_hidden(), view.image_original().tolist()
        count = spans.slot.new_zeros(len(spans.slot), int(spans.group.max()) + 1)
        for film in films(spans):
            weight = (curvature(frame_vectors(film.values(hidden), film.present)) / self.temperature).softmax(0)
            cap = film.present.sum(1).tolist()
            total = keep.of_count(original[film.row][film.image], sum(cap))
            shares = share_out(weight.double().tolist(), max(total, len(cap)), cap, floor=1)
            count[film.row, list(film.groups)] = count.new_tensor(shares)
        return _with_images(top_k_per_group(scores, spans.group, count, spans.video), spans)

    def expected(self, kept: float, current: float) -> float:
        return kept


@part
@dataclass(frozen=True)
class PerWindow:
    """Windows of four frames: the first whole, of the others the best tokens (DyCoke).

    faithful: as the released code, which leaves the third frame of a video's last window whole, and loses the last one
              of an odd number of frames
    """

    faithful: bool = False

    def __call__(self, scores: Tensor, view: View, keep: Keep) -> Tensor:
        spans = view.spans
        count = spans.slot.new_zeros(len(spans.slot), int(spans.group.max()) + 1)
        for film in films(spans):
            sizes, frames = film.present.sum(1).tolist(), len(film.frames)
            for frame, (group, size) in enumerate(zip(film.groups, sizes, strict=True)):
                whole = references(frame) < 0 or (self.faithful and frame % 4 == 2 and frame // 4 == (frames - 1) // 4)
                lost = self.faithful and frames % 2 == 1 and frame == frames - 1 and frames > 1
                count[film.row, group] = 0 if lost else size if whole else keep.of_count(size, size)
        return _with_images(top_k_per_group(scores, spans.group, count, spans.video), spans)

    def expected(self, kept: float, current: float) -> float:
        return current / 4 + kept * 3 / 4


@part
@dataclass(frozen=True)
class PerFrame:
    """The best tokens of each frame of each video, of those that are left.

    context: part of each frame's budget that is not chosen here but merged, [0, 1], rounded down (FastVID)
    """

    context: float = 0.0

    def __call__(self, scores: Tensor, view: View, keep: Keep) -> Tensor:
        spans = view.spans
        current = _count(spans.group, spans.video, int(spans.group.max()) + 1)
        count = keep.counts(current, current)
        count -= torch.tensor([[merged_count(total, self.context) for total in row] for row in count.tolist()]).to(
            count
        )
        return _with_images(top_k_per_group(scores, spans.group, count, spans.video), spans)

    def expected(self, kept: float, current: float) -> float:
        return kept


def merged_count(total: int, context: float) -> int:
    """Tokens of a frame's budget `total` that are merged ones."""
    return int(total * context + 1e-9)


def _count(number: Tensor, wanted: Tensor, width: int) -> Tensor:
    """How many of the `wanted` candidates [B, V] carry each number [B, width]."""
    made = number.new_zeros(len(number), width)
    return made.scatter_add_(1, torch.where(wanted, number, 0), wanted.to(made.dtype))


def _with_images(kept: Tensor, spans: VisualSpans) -> Tensor:
    return kept | (spans.valid & ~spans.video)
