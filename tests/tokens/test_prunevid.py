"""PruneVid merges and keeps what its definition says, written down here a second time with plain loops."""

from __future__ import annotations

import math
from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch

from tests.oracle import attention_rows
from tests.tiny import VIDEO_FAMILIES, ids, tiny_inputs, tiny_vlm, visual_mask
from tests.tokens.by_frame import act, best, cos, entering, film_view, first_layer, kept, peaks, true_frames
from vlm_eff import attach
from vlm_eff.core.action import Merge
from vlm_eff.core.errors import CapabilityError, ConfigError
from vlm_eff.tokens import prunevid

Frames = list[list[int]]
Left = dict[int, tuple[np.ndarray, int]]
"""position -> (state, tokens that it stands for)"""


def scenes_of(mean: list[np.ndarray], fraction: float) -> list[list[int]]:
    count = min(max(int(len(mean) * fraction), 1), len(mean))
    mean = [vector / np.linalg.norm(vector) for vector in mean]
    centres = best(peaks(mean, 7), count)
    edges = [0]
    for left, right in pairwise(centres):
        value = {
            cut: sum(mean[t] @ mean[left] for t in range(left, cut))
            + sum(mean[t] @ mean[right] for t in range(cut, right))
            for cut in range(left + 1, right + 1)
        }
        edges.append(max(value, key=lambda cut: (round(value[cut], 9), cut)))
    edges.append(len(mean))
    return [list(range(start, stop)) for start, stop in pairwise(edges)]


def merged(x: Any, video: Frames, ratio: float, static: float, fraction: float, least: int) -> Left:
    left: Left = {}
    for scene in scenes_of([np.mean([x[p] for p in frame], axis=0) for frame in video], fraction):
        still = []
        for place in range(len(video[0])):
            pairs = [cos(x[video[a][place]], x[video[b][place]]) for a, b in combinations(scene, 2)]
            if pairs and sum(pairs) / len(pairs) > static:
                still.append(place)
        pictures = [[(video[t][p], x[video[t][p]], 1) for p in range(len(video[0])) if p not in still] for t in scene]
        pictures.append(
            [(video[scene[0]][p], np.mean([x[video[t][p]] for t in scene], axis=0), len(scene)) for p in still]
        )
        for picture in pictures:
            left |= clustered(picture, ratio, least)
    return left


def clustered(picture: list[tuple[int, np.ndarray, int]], ratio: float, least: int) -> Left:
    if len(picture) <= least:
        return {position: (state, weight) for position, state, weight in picture}
    states = [state for _, state, _ in picture]
    centres = best(peaks(states, 7), max(1, math.ceil(len(picture) * ratio - 1e-9)))
    members: dict[int, list[int]] = {centre: [centre] for centre in centres}
    for place in set(range(len(picture))) - set(centres):
        members[min(centres, key=lambda c: (float(((states[place] - states[c]) ** 2).sum()), c))].append(place)
    made: Left = {}
    for centre, group in members.items():
        weight = sum(picture[place][2] for place in group)
        total = sum(picture[place][1] * picture[place][2] for place in group)
        made[picture[centre][0]] = (total / weight, weight)
    return made


SETTINGS = [(0.6, 0.0, 0.25, 2), (0.5, 0.1, 0.5, 3), (0.4, 1.0, 0.25, 2), (0.9, -1.0, 1.0, 0)]


@pytest.mark.parametrize("video", [True, "mixed"])
@pytest.mark.parametrize("setting", SETTINGS, ids=repr)
@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_a_model_is_handed_what_the_definition_says(family: str, setting: Any, video: Any) -> None:
    ratio, static, fraction, least = setting
    inputs = tiny_inputs(family, (2, 3, 0), video=video)
    x, frames = entering(inputs), true_frames(inputs)
    plugin = prunevid(1.0, merge_ratio=ratio, static=static, scenes=fraction, least=least)
    handed = first_layer(inputs, plugin)
    for row, videos in enumerate(frames):
        expected: Left = {}
        for film in videos:
            expected |= merged(x[row], film, ratio, static, fraction, least)
        tokens = {position for film in videos for frame in film for position in frame}
        assert sorted(tokens & set(handed[row])) == sorted(expected)
        for position, (state, _) in expected.items():
            np.testing.assert_allclose(handed[row][position], state, atol=2e-5)


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 9, 12])
def test_any_number_of_frames(frames: int) -> None:
    generator = torch.Generator().manual_seed(frames)
    # a common part makes some places still
    x = torch.randn(1, 20, 8, generator=generator) + torch.rand(1, 20, 1) * torch.randn(
        frames, 20, 8, generator=generator
    )
    flat = x.flatten(0, 1).double().numpy()
    video = [list(range(frame * 20, frame * 20 + 20)) for frame in range(frames)]
    for ratio, static, fraction in ((0.5, 0.8, 0.25), (0.3, 0.6, 0.5), (0.5, 0.7, 0.25)):
        want = merged(flat, video, ratio, static, fraction, 14)
        action = act(prunevid(merge_ratio=ratio, static=static, scenes=fraction), film_view(x, width=5))
        assert isinstance(action, Merge)
        assert action.index[0].tolist() == sorted(want)
        assert action.weight[0].tolist() == [want[position][1] for position in sorted(want)]
        assert action.weight[0].sum() == frames * 20
        np.testing.assert_allclose(action.hidden[0].double(), [want[p][0] for p in sorted(want)], atol=1e-5)


def test_a_static_video_collapses_to_one_frame() -> None:
    """Up to seven frames are one scene: its unchanging places, which are all, stand at the first frame."""
    x = torch.randn(1, 12, 8, generator=torch.Generator().manual_seed(0)).expand(7, 12, 8)
    action = act(prunevid(), film_view(x, width=4))
    assert isinstance(action, Merge)
    assert action.index[0].tolist() == list(range(12))
    assert action.weight[0].tolist() == [7.0] * 12
    torch.testing.assert_close(action.hidden[0], x[0])


def test_a_scene_of_one_frame_gives_no_nan() -> None:
    x = torch.randn(1, 20, 8, generator=torch.Generator().manual_seed(0))
    action = act(prunevid(), film_view(x, width=5))
    assert isinstance(action, Merge)
    assert action.index.shape[1] == 10
    assert action.hidden.isfinite().all()


def test_small_pictures_without_anything_still_are_untouched() -> None:
    x = torch.randn(4, 12, 8, generator=torch.Generator().manual_seed(0))
    assert act(prunevid(static=1.0), film_view(x, width=4)) is None
    assert kept(prunevid(static=1.0, least=11), film_view(x, width=4)) != list(range(48))


@pytest.mark.parametrize("video", [True, "mixed"])
@pytest.mark.parametrize("pad", ["left", "right"])
@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_the_question_chooses_by_its_largest_attention(family: str, pad: Any, video: Any) -> None:
    """Of each frame the best 40 % by the full eager matrices of the layer before."""
    layer, inputs = 3, tiny_inputs(family, (1, 2, 0) if video is True else (2, 3, 0), pad=pad, video=video)
    weights = attention_rows(tiny_vlm(family, attn="eager"), inputs, layer - 1)
    model, visual = tiny_vlm(family), visual_mask(inputs)
    with torch.no_grad(), attach(model, prunevid(0.4, layer, merge_ratio=1.0)) as handle:
        model(**inputs)
    for row, videos in enumerate(true_frames(inputs)):
        if not videos:
            continue
        words = (inputs["input_ids"][row] >= ids.FIRST_TEXT) & (inputs["input_ids"][row] <= ids.LAST_TEXT)
        asks = words & (torch.arange(len(words)) > int(visual[row].nonzero().max()))
        assert bool(asks.any())
        score = weights[row][:, asks].amax((0, 1))
        expected = []
        for frame in [frame for film in videos for frame in film]:
            chosen = best([float(score[p]) for p in frame], math.ceil(0.4 * len(frame) - 1e-9))
            expected += [frame[place] for place in chosen]
        tokens = {position for film in videos for frame in film for position in frame}
        left = handle.survivors(layer)[row].tolist()
        assert [position for position in left if position in tokens] == sorted(expected)
        assert set(handle.survivors(layer - 1)[row].tolist()) >= tokens


def test_without_a_question_the_last_token_asks() -> None:
    inputs, model = tiny_inputs("llava_onevision", (1,), video=True), tiny_vlm("llava_onevision")
    stop = int(visual_mask(inputs)[0].nonzero().max()) + 1
    inputs["input_ids"] = inputs["input_ids"][:, :stop]
    inputs["attention_mask"] = inputs["attention_mask"][:, :stop]
    weights = attention_rows(tiny_vlm("llava_onevision", attn="eager"), inputs, 2)[0, :, -1].amax(0)
    with torch.no_grad(), attach(model, prunevid(0.4, 3, merge_ratio=1.0)) as handle:
        model(**inputs)
    left = handle.survivors(3)[0].tolist()
    for frame in true_frames(inputs)[0][0]:
        chosen = [frame[place] for place in best([float(weights[p]) for p in frame], 2)]
        assert [position for position in left if position in frame] == chosen


def test_the_cache_is_equally_long_from_the_drop_on() -> None:
    inputs, model = tiny_inputs("qwen2_5_vl", (1,), video=True), tiny_vlm("qwen2_5_vl")
    with torch.no_grad(), attach(model, prunevid(0.4, 3, static=0.0, least=2)):
        cache = model(**inputs, use_cache=True).past_key_values
    stored = [layer.keys.shape[2] for layer in cache.layers]
    assert stored[0] == stored[2] > stored[3] == stored[5]


def test_the_default_layer_is_ten_of_thirty_two() -> None:
    from vlm_eff.core.plugin import BindContext

    assert [site.layer for site in prunevid().bind(BindContext("llava", 32)).sites] == [0, 10]
    with pytest.raises((CapabilityError, ConfigError), match="layer"):
        attach(tiny_vlm("qwen2_5_vl"), prunevid(layer=0))


@pytest.mark.parametrize(
    "given", [{"static": 2}, {"scenes": -0.1}, {"least": -1}, {"merge_ratio": 0}, {"layer": -1}], ids=repr
)
def test_values_out_of_range_are_refused(given: dict) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(given))}="):
        prunevid(**given)
