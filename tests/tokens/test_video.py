"""EVS, V-CAST and DyCoke keep what their definitions say, written down here a second time with plain loops."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from tests.tiny import VIDEO_FAMILIES, tiny_inputs, tiny_vlm
from tests.tokens.by_frame import best, cos, entering, film_view, kept, true_frames
from vlm_eff import attach
from vlm_eff.core.errors import ConfigError
from vlm_eff.core.plugin import Plugin
from vlm_eff.importance.segments import curvature
from vlm_eff.tokens import dycoke, evs, for_budget, vcast

Frames = list[list[int]]


def evs_by_hand(x: np.ndarray, video: Frames, ratio: float) -> list[int]:
    tokens = [position for frame in video for position in frame]
    scores = [255.0] * len(video[0])
    for before, frame in pairwise(video):
        scores += [1 - cos(x[now], x[then]) for now, then in zip(frame, before, strict=True)]
    count = max(len(video[0]), int(len(tokens) * ratio + 1e-9))
    return [tokens[place] for place in best(scores, count)]


def vcast_by_hand(x: np.ndarray, video: Frames, ratio: float, temperature: float) -> list[int]:
    mean = [np.mean([x[p] for p in frame], axis=0) for frame in video]
    mean = [vector / np.linalg.norm(vector) for vector in mean]
    turn = [
        1 - cos(mean[t] - mean[t - 1], mean[t + 1] - mean[t]) if 0 < t < len(mean) - 1 else 1.0
        for t in range(len(mean))
    ]
    weight = [math.exp(value / temperature) for value in turn]
    share, size = [value / sum(weight) for value in weight], len(video[0])
    total = max(math.ceil(ratio * len(video) * size - 1e-9), len(video))
    counts = proportional(share, total, size)
    chosen = []
    for frame, middle, count in zip(video, mean, counts, strict=True):
        length = [float(np.linalg.norm(x[p])) for p in frame]
        scores = [
            1 - cos(x[p], middle) + (long - min(length)) / (max(length) - min(length))
            for p, long in zip(frame, length, strict=True)
        ]
        chosen += [frame[place] for place in best(scores, count)]
    return chosen


def proportional(share: list[float], total: int, cap: int) -> list[int]:
    """Quotas between 1 and cap with sum `total`: the common scale by bisection, then largest remainders."""
    low, high = 0.0, 1e9
    for _ in range(200):
        scale = (low + high) / 2
        low, high = (scale, high) if sum(min(cap, max(1.0, scale * s)) for s in share) < total else (low, scale)
    quota = [min(cap, max(1.0, high * s)) for s in share]
    made = [int(q + 1e-9) for q in quota]
    rest = sorted(range(len(share)), key=lambda i: (made[i] - quota[i], i))
    for place in rest[: total - sum(made)]:
        made[place] += 1
    return made


def dycoke_by_hand(x: np.ndarray, video: Frames, ratio: float, faithful: bool) -> list[int]:
    chosen = []
    count = max(1, int(len(video[0]) * ratio + 1e-9))
    for start in range(0, len(video), 4):
        window = video[start : start + 4]
        last = start + 4 >= len(video)
        for place, frame in enumerate(window):
            if faithful and len(video) % 2 and start + place == len(video) - 1 and len(video) > 1:
                continue
            if place == 0 or (faithful and last and place == 2):
                chosen += frame
                continue
            other = window[{1: 0, 2: 0, 3: 2}[place]]
            scores = [1 - cos(x[now], x[then]) for now, then in zip(frame, other, strict=True)]
            chosen += [frame[index] for index in best(scores, count)]
    return chosen


DEFINITIONS = {
    "evs": (evs(keep_ratio=0.7), lambda x, video: evs_by_hand(x, video, 0.7)),
    "evs at its floor": (evs(keep_ratio=0.05), lambda x, video: evs_by_hand(x, video, 0.05)),
    "vcast": (vcast(keep_ratio=0.4, temperature=0.1), lambda x, video: vcast_by_hand(x, video, 0.4, 0.1)),
    "vcast sparse": (vcast(keep_ratio=0.05), lambda x, video: vcast_by_hand(x, video, 0.05, 0.7)),
    "dycoke": (dycoke(keep_ratio=0.5), lambda x, video: dycoke_by_hand(x, video, 0.5, False)),
    "dycoke faithful": (dycoke(0.5, faithful=True), lambda x, video: dycoke_by_hand(x, video, 0.5, True)),
}


@pytest.mark.parametrize("video", [True, "mixed"])
@pytest.mark.parametrize("name", DEFINITIONS)
@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_a_model_keeps_what_the_definition_says(family: str, name: str, video: bool | str) -> None:
    plugin, by_hand = DEFINITIONS[name]
    inputs, model = tiny_inputs(family, (2, 3, 0), video=video), tiny_vlm(family)
    x, frames = entering(inputs), true_frames(inputs)
    with torch.no_grad(), attach(model, plugin) as handle:
        model(**inputs)
    for row, (videos, survivors) in enumerate(zip(frames, handle.survivors(0), strict=True)):
        tokens = {position for film in videos for frame in film for position in frame}
        expected = sorted(position for film in videos for position in by_hand(x[row], film))
        assert [position for position in survivors.tolist() if position in tokens] == expected
        assert not videos or len(expected) < len(tokens) or (name == "dycoke faithful" and len(videos[0]) == 2)


@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 6, 7, 9, 11])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_any_number_of_frames(name: str, frames: int) -> None:
    plugin, by_hand = DEFINITIONS[name]
    x = torch.randn(frames, 6, 8, generator=torch.Generator().manual_seed(frames))
    flat = x.flatten(0, 1).double().numpy()
    video = [list(range(frame * 6, frame * 6 + 6)) for frame in range(frames)]
    assert kept(plugin, film_view(x)) == by_hand(flat, video)


@pytest.mark.parametrize("plugin", [plugin for plugin, _ in DEFINITIONS.values()], ids=list(DEFINITIONS))
def test_videos_do_not_meet(plugin: Plugin) -> None:
    """Two videos of a row are reduced as each would be alone."""
    one, other = (torch.randn(n, 6, 8, generator=torch.Generator().manual_seed(n)) for n in (5, 3))
    alone = kept(plugin, film_view(one)) + [30 + place for place in kept(plugin, film_view(other))]
    assert kept(plugin, film_view(one, other)) == alone


@pytest.mark.parametrize("ratio", [0.05, 0.2, 0.3, 0.5, 0.99])
def test_evs_always_keeps_the_first_frame(ratio: float) -> None:
    x = torch.randn(5, 6, 8, generator=torch.Generator().manual_seed(0))
    got = kept(evs(keep_ratio=ratio), film_view(x))
    assert got[:6] == list(range(6))
    assert len(got) == max(6, int(30 * ratio + 1e-9))
    assert kept(evs(keep_count=9), film_view(x))[:6] == list(range(6))


def test_evs_of_a_static_video_keeps_one_frame_and_the_first_of_equals() -> None:
    x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0)).expand(5, 6, 8).clone()
    assert kept(evs(keep_ratio=0.2), film_view(x)) == list(range(6))
    x[3, 4] = -x[3, 4]
    # the change at frame 3 and back again at frame 4 is new, whatever else there is room for
    got = kept(evs(keep_ratio=8 / 30), film_view(x))
    assert got == [*range(6), 3 * 6 + 4, 4 * 6 + 4]


@pytest.mark.parametrize("frames", [4, 8, 12])
def test_dycoke_counts(frames: int) -> None:
    """A static video loses int(k n) tokens of every frame but the first of a window; 47.5 % stay at k = 0.7."""
    x = torch.randn(1, 20, 8, generator=torch.Generator().manual_seed(0)).expand(frames, 20, 8)
    got = kept(dycoke(), film_view(x, width=5))
    per_frame = [sum(place // 20 == frame for place in got) for frame in range(frames)]
    assert per_frame == [20, 6, 6, 6] * (frames // 4)
    assert len(got) / (20 * frames) == 0.475
    official = kept(dycoke(faithful=True), film_view(x, width=5))
    assert [sum(place // 20 == frame for place in official) for frame in range(frames)][-4:] == [20, 6, 20, 6]


def test_dycoke_keeps_a_single_frame_whole() -> None:
    x = torch.randn(1, 6, 8)
    for faithful in (False, True):
        assert kept(dycoke(faithful=faithful), film_view(x)) == list(range(6))


@pytest.mark.parametrize("ratio", [0.05, 0.11, 0.25, 0.6, 0.95])
def test_vcast_budgets_sum_exactly(ratio: float) -> None:
    for frames in range(1, 9):
        x = torch.randn(frames, 6, 8, generator=torch.Generator().manual_seed(frames))
        got = kept(vcast(keep_ratio=ratio, temperature=0.05), film_view(x))
        per_frame = [sum(place // 6 == frame for place in got) for frame in range(frames)]
        assert len(got) == max(math.ceil(frames * 6 * ratio - 1e-9), frames)
        assert min(per_frame) >= 1 and max(per_frame) <= 6


def test_vcast_gives_more_to_the_frame_at_which_the_video_turns() -> None:
    # straight on, then back: frame 2 turns by 180 degrees
    path = torch.tensor([[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.1], [1.0, 0.0]])
    assert curvature(torch.nn.functional.normalize(path, dim=-1)).argmax() == 2
    noise = torch.randn(5, 6, 2, generator=torch.Generator().manual_seed(1)) * 1e-4
    got = kept(vcast(keep_ratio=0.5, temperature=0.3), film_view(path[:, None] + noise))
    per_frame = [sum(place // 6 == frame for place in got) for frame in range(5)]
    assert per_frame[2] == max(per_frame) > min(per_frame)


def test_a_static_video_turns_nowhere_and_gives_no_nan() -> None:
    x = torch.randn(1, 6, 8).expand(4, 6, 8)
    assert curvature(torch.nn.functional.normalize(torch.ones(4, 3), dim=-1)).tolist() == [1.0] * 4
    for plugin in (vcast(), evs(), dycoke()):
        assert kept(plugin, film_view(x)) == kept(plugin, film_view(x.clone()))
    zeros = kept(vcast(keep_ratio=0.5), film_view(torch.zeros(4, 6, 8)))
    assert len(zeros) == 12


def test_what_is_asked_for() -> None:
    """n_eq of a video prompt; DyCoke cannot go below the first frames of its windows."""
    for name in ("evs", "vcast"):
        made = for_budget(name, n_eq=200, visual_tokens=576, num_layers=32)
        assert abs(sum(made.asked(576, 32)) / 32 - 200) <= 1
    made = for_budget("dycoke", n_eq=274, visual_tokens=576, num_layers=32)
    assert abs(sum(made.asked(576, 32)) / 32 - 274) <= 1
    with pytest.raises(ConfigError, match="n_eq=100 for dycoke"):
        for_budget("dycoke", n_eq=100, visual_tokens=576, num_layers=32)


@pytest.mark.parametrize("temperature", [0, -1, True, float("inf"), float("nan")])
def test_a_temperature_has_to_be_one(temperature: float) -> None:
    with pytest.raises(ConfigError, match="temperature="):
        vcast(temperature=temperature)


def test_deepstack_features_and_positions_follow_the_kept_tokens() -> None:
    """Dropping equals masking in the contract tests; here the tables themselves: three axes of the originals."""
    inputs, model = tiny_inputs("qwen3_vl", (1,), video=True), tiny_vlm("qwen3_vl")
    tables: list[torch.Tensor] = []
    hook = model.model.language_model.layers[3].register_forward_pre_hook(
        lambda module, args, kwargs: tables.append(kwargs["position_embeddings"][0]), with_kwargs=True
    )
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    with torch.no_grad(), attach(model, evs(keep_ratio=0.6)) as handle:
        hook = model.model.language_model.layers[3].register_forward_pre_hook(
            lambda module, args, kwargs: tables.append(kwargs["position_embeddings"][0]), with_kwargs=True
        )
        model(**inputs)
        hook.remove()
        left = handle.survivors(3)[0]
    bare, short = tables[0].expand(1, -1, -1), tables[1]
    assert short.shape[1] == len(left) < bare.shape[1]
    assert torch.equal(short[0], bare[0, left])
