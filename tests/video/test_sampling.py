"""Which frames the named conventions choose."""

from __future__ import annotations

import numpy as np
import pytest

from vlm_eff.core.errors import ConfigError, InputError
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
