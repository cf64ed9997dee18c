"""Which frames the named conventions choose."""

from __future__ import annotations

import json

import numpy as np
import pytest
from transformers import Qwen3VLVideoProcessor
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

from vlm_eff.core.errors import ConfigError, InputError
from vlm_eff.video.conventions import CONVENTIONS
from vlm_eff.video.sampling import Sampling


def test_conventions_by_hand() -> None:
    assert Sampling(frames=4).choose(10, 10) == [1, 3, 6, 8]
    assert Sampling(frames=4, spread="start").choose(10, 10) == [0, 2, 5, 7]
    assert Sampling(frames=4, spread="ends").choose(10, 10) == [0, 3, 6, 9]
    assert Sampling(frames=1, spread="ends").choose(10, 10) == [0]
    assert Sampling(fps=2).choose(10, 10) == [0, 5]
    assert Sampling(fps=3).choose(10, 10) == [0, 3, 6]
    assert Sampling(fps=20).choose(3, 10) == [0, 0, 1, 1, 2, 2]
    assert Sampling(indices=[4, 0, 4]).choose(5, 10) == [4, 0, 4]
    assert Sampling(indices=np.array([1, 2])).choose(5, 10) == [1, 2]


@pytest.mark.parametrize("total", [1, 7, 250])
def test_they_are_what_numpy_and_transformers_choose(total: int) -> None:
    for count in range(1, total + 1, 3):
        ends = np.linspace(0, total - 1, count, dtype=int).tolist()
        # linspace loses a last digit now and then, and truncates
        assert np.abs(np.array(Sampling(frames=count, spread="ends").choose(total, 25)) - ends).max() <= 1
        start = np.arange(0, total, total / count).astype(int)[:count].tolist()
        assert np.abs(np.array(Sampling(frames=count, spread="start").choose(total, 25)) - start).max() <= 1
        middle = Sampling(frames=count).choose(total, 25)
        assert middle == sorted(set(middle)) and max(middle) < total


def test_the_files_own_rate_takes_every_frame() -> None:
    for fps in (30000 / 1001, 25.0, 23.976):
        assert Sampling(fps=fps).choose(100, fps) == list(range(100))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"frames": 2, "fps": 1.0},
        {"frames": 0},
        {"frames": 2.5},
        {"frames": True},
        {"fps": 0},
        {"fps": float("inf")},
        {"fps": True},
        {"indices": []},
        {"indices": ["a"]},
        {"frames": 2, "spread": "random"},
        {"fps": 2, "spread": "mvbench"},
        {"frames": 2, "max_frames": 4},
        {"fps": 2, "min_frames": 4},
        {"fps": 2, "min_frames": 4, "max_frames": 3, "spread": "qwen3-vl"},
        {"frames": 2, "on_short": "shrink"},
        {"frames": 2, "start": -1},
        {"frames": 2, "start": 3, "end": 2},
        {"indices": [0], "start": 1},
    ],
    ids=repr,
)
def test_bad_arguments_are_refused(given: dict) -> None:
    with pytest.raises(ConfigError, match=r"Accepted: .*read_video"):
        Sampling(**given)


def test_frames_that_do_not_exist_are_refused() -> None:
    with pytest.raises(InputError, match=r"frame index 5\. Accepted: frames 0 to 4"):
        Sampling(indices=[0, 5]).choose(5, 10)
    with pytest.raises(InputError, match="frame index -1"):
        Sampling(indices=[-1]).choose(5, 10)
    with pytest.raises(InputError, match=r"frames=6\. Accepted: up to 5"):
        Sampling(frames=6).choose(5, 10)


# 8 of 132 frames, worked out with the official codes
TABLE = {
    "lmms-eval": [0, 18, 37, 56, 74, 93, 112, 131],
    "qwen3-vl": [0, 19, 37, 56, 75, 94, 112, 131],
    "transformers": [0, 16, 33, 49, 66, 82, 99, 115],
    "vlmevalkit": [14, 29, 44, 58, 73, 88, 102, 117],
    "mvbench": [8, 24, 41, 57, 74, 90, 106, 123],
    "longvideobench": [0, 16, 32, 48, 64, 80, 96, 112],
}


@pytest.mark.parametrize("name", TABLE)
def test_conventions_choose_what_their_codes_choose(name: str) -> None:
    assert Sampling.named(name, frames=8).choose(132, 25) == TABLE[name]
    # as a part of a longer video: the same, later; a part that is the whole video: the same
    end = (50 + 131) / 25
    assert Sampling.named(name, frames=8, start=2.0, end=end).choose(400, 25) == [50 + place for place in TABLE[name]]
    assert Sampling.named(name, frames=8, start=0, end=99).choose(132, 25) == TABLE[name]


@pytest.mark.parametrize("total", [1, 3, 7, 61, 250])
def test_all_stay_in_the_video_and_in_order(total: int) -> None:
    for name in CONVENTIONS:
        for count in (1, 2, 5, 8, 64):
            if count > total:
                with pytest.raises(InputError, match=f"frames={count}.*up to {total}"):
                    Sampling.named(name, frames=count, on_short="error").choose(total, 25)
                assert Sampling.named(name, frames=count, on_short="all").choose(total, 25) == list(range(total))
            chosen = Sampling.named(name, frames=count, on_short="repeat").choose(total, 25)
            assert len(chosen) == count and chosen == sorted(chosen) and 0 <= chosen[0] <= chosen[-1] < total


def test_two_conventions_are_what_transformers_does() -> None:
    processor = Qwen3VLVideoProcessor()
    for total, fps in ((3, 25.0), (30, 10.0), (132, 25.0), (901, 29.97), (60_000, 25.0)):
        about = VideoMetadata(total_num_frames=total, fps=fps)
        assert Sampling.named("qwen3-vl").choose(total, fps) == processor.sample_frames(about).tolist()
        assert (
            Sampling.named("transformers", fps=2.0).choose(total, fps)
            == default_sample_indices_fn(about, fps=2.0).tolist()
        )
        count = min(total, 17)
        given = default_sample_indices_fn(about, num_frames=count).tolist()
        assert Sampling.named("transformers", frames=count).choose(total, fps) == given


def test_longvideobench_takes_no_more_frames_than_seconds() -> None:
    sampling = Sampling.named("longvideobench", max_frames=8)
    assert sampling.choose(132, 25) == [0, 26, 52, 78, 104]
    assert sampling.choose(1000, 25) == [125 * place for place in range(8)]
    assert sampling.choose(10, 25) == [0]


def test_a_part_of_the_video() -> None:
    assert Sampling(fps=2, start=1.0, end=2.4).choose(100, 10) == [10, 15, 20]
    assert Sampling(frames=3, start=9.0).choose(100, 10) == [91, 95, 98]
    with pytest.raises(InputError, match=r"a part from 10 s of a video of 10\.00 s"):
        Sampling(frames=3, start=10).choose(100, 10)
    with pytest.raises(InputError, match="up to 3"):
        Sampling(frames=4, start=1, end=1.2).choose(100, 10)


def test_what_a_record_says() -> None:
    assert Sampling.named("mvbench", frames=8, end=4.0).to_dict() == {
        "convention": "mvbench", "frames": 8, "end": 4.0, "on_short": "repeat",
    }  # fmt: skip
    assert Sampling.named("qwen3-vl", max_frames=32).to_dict() == {
        "convention": "qwen3-vl", "fps": 2.0, "min_frames": 4, "max_frames": 32, "on_short": "all",
    }  # fmt: skip
    assert Sampling(fps=2).to_dict() == {"convention": "fps", "fps": 2}
    made = Sampling(indices=np.array([4, 2])).to_dict()
    assert json.dumps(made) == '{"convention": "indices", "indices": [4, 2]}'
