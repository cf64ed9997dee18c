"""FastVID keeps and merges what its definition says, written down here a second time with plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.observations.spy import Spy
from tests.tiny import VIDEO_FAMILIES, TinyInputs, tiny_inputs, tiny_vlm
from tests.tokens.by_frame import act, best, cos, entering, film_view, first_layer, kept, peaks, true_frames
from vlm_eff import attach
from vlm_eff.core.action import Merge
from vlm_eff.core.errors import ConfigError
from vlm_eff.core.plugin import TowerAttention
from vlm_eff.tokens import fastvid

Frames = list[list[int]]


def looked_at(inputs: TinyInputs) -> list[dict[int, float]]:
    """Attention that each visual position received in the tower (checked against eager weights elsewhere)."""
    wanted, seen = TowerAttention(None, "received"), []
    model = tiny_vlm(inputs.family)
    with torch.no_grad(), attach(model, Spy(wanted, lambda view: (view.tower(wanted), view.spans), seen)):
        model(**inputs)
    values, spans = seen[0]
    return [
        dict(zip(slot[valid].tolist(), value[valid].tolist(), strict=True))
        for slot, valid, value in zip(spans.slot, spans.valid, values, strict=True)
    ]


def by_hand(
    x: Any, video: Frames, score: Any, ratio: float, segments: int, threshold: float, context: float, every: int
) -> dict[int, np.ndarray]:
    """Position to state of every token that is left of a video."""
    mean = [np.mean([x[p] for p in frame], axis=0) for frame in video]
    alike = [cos(mean[t], mean[t + 1]) for t in range(len(video) - 1)]
    cuts = set(sorted(range(len(alike)), key=lambda t: alike[t])[: segments - 1])
    cuts = {t for t in cuts if alike[t] < 1 - 1e-4} | {t for t, value in enumerate(alike) if value < threshold}
    scenes: list[list[int]] = [[0]]
    for t in range(1, len(video)):
        scenes.append([t]) if t - 1 in cuts else scenes[-1].append(t)
    left = {}
    budget = max(1, int(len(video[0]) * ratio + 1e-9))
    merged = int(budget * context + 1e-9)
    for scene in scenes:
        rest = {}
        for t in scene:
            chosen = best([score[p] for p in video[t]], budget - merged)
            left |= {video[t][place]: x[video[t][place]] for place in chosen}
            rest[t] = [p for place, p in enumerate(video[t]) if place not in chosen]
        hosts = sorted(scene[::-1][::every])
        total, anchors = min(merged * len(scene), sum(len(rest[t]) for t in hosts)), []
        counts = dict.fromkeys(hosts, 0)
        while sum(counts.values()) < total:
            # one by one to whoever has least, so that all have the same up to one and up to what they can hold
            counts[min((t for t in hosts if counts[t] < len(rest[t])), key=lambda t: (counts[t], t))] += 1
        for t in hosts:
            anchors += [rest[t][place] for place in best(peaks([x[p] for p in rest[t]], 4), counts[t])]
        joined: dict[int, list[int]] = {p: [] for p in anchors}
        for p in [p for t in scene for p in rest[t] if p not in anchors]:
            if anchors:
                joined[max(anchors, key=lambda a: (cos(x[p], x[a]), -a))].append(p)
        for anchor, members in joined.items():
            own = max(0.6, 1 / (len(members) + 1)) if members else 1.0
            others = np.mean([x[p] for p in members], axis=0) if members else 0.0
            left[anchor] = own * x[anchor] + (1 - own) * others
    return left


SETTINGS = [
    (0.5, 2, -1.0, 0.5, 2),
    (0.7, 1, -1.0, 0.34, 4),
    (0.5, 8, 0.9, 0.5, 1),
    (0.3, 1, -1.0, 1.0, 3),
]


@pytest.mark.parametrize("video", [True, "mixed"])
@pytest.mark.parametrize("setting", SETTINGS, ids=repr)
@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_a_model_is_handed_what_the_definition_says(family: str, setting: Any, video: Any) -> None:
    ratio, segments, threshold, context, every = setting
    inputs = tiny_inputs(family, (2, 3, 0), video=video)
    x, frames, scores = entering(inputs), true_frames(inputs), looked_at(inputs)
    handed = first_layer(inputs, fastvid(ratio, segments, threshold, context, every))
    for row, videos in enumerate(frames):
        expected = {}
        for film in videos:
            expected |= by_hand(x[row], film, scores[row], ratio, segments, threshold, context, every)
        tokens = {position for film in videos for frame in film for position in frame}
        assert sorted(tokens & set(handed[row])) == sorted(expected)
        for position, state in expected.items():
            np.testing.assert_allclose(handed[row][position], state, atol=2e-5)
        assert not videos or len(expected) < len(tokens)


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 9])
def test_any_number_of_frames(frames: int) -> None:
    generator = torch.Generator().manual_seed(frames)
    x, tower = torch.randn(frames, 12, 8, generator=generator), torch.rand(1, frames * 12, generator=generator)
    flat = x.flatten(0, 1).double().numpy()
    video = [list(range(frame * 12, frame * 12 + 12)) for frame in range(frames)]
    for ratio, segments, threshold, context, every in SETTINGS:
        action = act(fastvid(ratio, segments, threshold, context, every), film_view(x, width=4, tower=tower))
        assert isinstance(action, Merge)
        want = by_hand(flat, video, tower[0].tolist(), ratio, segments, threshold, context, every)
        assert action.index[0].tolist() == sorted(want)
        np.testing.assert_allclose(action.hidden[0].double(), [want[p] for p in sorted(want)], atol=1e-5)
        assert action.hidden.isfinite().all()


def test_every_token_is_counted_once() -> None:
    """Weights sum to the tokens that were there, where each scene has an anchor."""
    generator = torch.Generator().manual_seed(0)
    x, tower = torch.randn(6, 12, 8, generator=generator), torch.rand(1, 72, generator=generator)
    action = act(fastvid(0.5, segments=2), film_view(x, width=4, tower=tower))
    assert isinstance(action, Merge)
    assert action.weight[0].sum() == 72


def test_budgets_are_exact() -> None:
    x = torch.randn(8, 20, 8, generator=torch.Generator().manual_seed(0))
    tower = torch.rand(1, 160, generator=torch.Generator().manual_seed(1))
    for ratio in (0.1, 0.25, 0.5):
        got = kept(fastvid(ratio), film_view(x, width=5, tower=tower))
        assert len(got) == 8 * int(20 * ratio)


def test_a_static_video_is_one_scene() -> None:
    """Anchors then stand in every fourth frame from the end alone; the official rule cuts all the same."""
    x = torch.randn(1, 20, 8, generator=torch.Generator().manual_seed(0)).expand(8, 20, 8)
    tower = torch.arange(20.0).flip(0).repeat(8)[None]
    view = film_view(x, width=5, tower=tower)
    # 5 a frame, of them 2 merged: 3 with the most attention are the first ones
    got = kept(fastvid(0.25), view)
    others = [place for place in got if place % 20 >= 3]
    assert {place // 20 for place in others} == {3, 7}
    assert len(others) == 16
    official = [place for place in kept(fastvid(0.25, faithful=True), view) if place % 20 >= 3]
    assert {place // 20 for place in official} == set(range(8))


@pytest.mark.parametrize(
    "given",
    [{"segments": 0}, {"segments": True}, {"threshold": 2}, {"context": -0.1}, {"own": 1.1}, {"every": 0}],
    ids=repr,
)
def test_values_out_of_range_are_refused(given: dict) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(given))}="):
        fastvid(**given)
