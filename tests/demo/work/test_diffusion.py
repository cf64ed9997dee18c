"""The diffusion tab's work: pictures, the honest rival, what was computed when, and stopping between steps."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.contracts.snapshot import assert_unchanged, snapshot
from tests.tiny.pipelines import make_pipeline
from vlm_eff import plugin
from vlm_eff.core.errors import CapabilityError, ConfigError, InputError, Stopped
from vlm_eff.demo.work.diffusion import Request, draw, shown, stand_ins
from vlm_eff.demo.work.diffusion_charts import branches, costs_chart, steps_chart
from vlm_eff.demo.work.watching import Watch
from vlm_eff.eval.denoising import compare_denoising
from vlm_eff.eval.figure import png_of
from vlm_eff.eval.painter import Painter, load_painter
from vlm_eff.models.denoise import clock

STEPS = 6


@pytest.fixture(scope="module")
def painter() -> Painter:
    return load_painter("small-unet", classes=(4,), device="cpu")


def request_of(*specs: str, **settings: Any) -> Request:
    return Request({spec: plugin(spec) for spec in specs}, **({"steps": STEPS} | settings))


@pytest.fixture
def clean(painter: Painter) -> Iterator[None]:
    """Behind the test the pipeline has what it had before, and draws the same picture."""
    before = painter.paint(steps=3, guidance=1.5, seed=1)
    kept, scheduler = snapshot(painter.pipe.unet), painter.pipe.scheduler
    own = set(vars(scheduler))
    yield
    assert painter.pipe.scheduler is scheduler and set(vars(scheduler)) == own
    assert_unchanged(kept, painter.pipe.unet)
    assert painter.paint(steps=3, guidance=1.5, seed=1).equal(before)


def test_draws_three_times_and_agrees_with_the_command(painter: Painter, clean: None) -> None:
    request = request_of("forecast:interval=2")
    heard: list[tuple[float, str]] = []
    drawn = draw(painter, request, Watch(progress=lambda share, text: heard.append((share, text))))
    fewer = compare_denoising(painter, request.plugins, steps=STEPS, guidance=1.5)
    assert [drawn.psnr, drawn.rival and drawn.rival.psnr] == [arm.psnr for arm in fewer.arms]
    assert (drawn.report.evaluations, drawn.share, drawn.rival and drawn.rival.steps) == (3.0, 0.5, 3)
    assert [share for share, _ in heard] == sorted(share for share, _ in heard) and heard[-1] == (1.0, "done")
    assert sum("step" in text for _, text in heard) >= 2 * STEPS + 3
    assert len(drawn.rows()) == 3 and "3 steps comes to" in drawn.sentence()
    assert json.loads(json.dumps(drawn.to_record().to_dict()))["result"]["evaluations"] == 3.0
    assert drawn.full.size == drawn.made.size == drawn.difference.size == (384, 384)
    first, second, apart = (np.asarray(one, dtype=float) for one in (drawn.full, drawn.made, drawn.difference))
    # both are rounded before they are compared here
    assert np.abs(drawn.amplified * np.abs(first - second) - apart).max() <= drawn.amplified + 1
    assert 127 <= apart.max() <= 255 and drawn.amplified > 1
    # small pictures are shown pixel by pixel
    assert (first[:24, :24] == first[0, 0]).all()


def test_what_is_the_same_says_so(painter: Painter) -> None:
    drawn = draw(painter, request_of("forecast:interval=1"), Watch())
    assert drawn.rival is None and "the same picture" in drawn.sentence() and "no rival" in drawn.sentence()
    assert drawn.to_record().result["psnr"] is None and np.ptp(np.asarray(drawn.difference)) == 0
    assert png_of(costs_chart(drawn)).startswith(b"\x89PNG")


def test_every_step_and_branch_has_a_cell(painter: Painter) -> None:
    drawn = draw(painter, request_of("deepcache:interval=3"), Watch())
    ((who, shares),) = branches(drawn.report).items()
    assert who == ("unet", 0) and [share == 1.0 for share in shares] == [True, False, False, True, False, False]
    axes = steps_chart(drawn).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["full run", "with the plugins", "bare, 3 steps"]
    assert "the rest: reused" in axes.get_title(loc="left")
    # 6 + 6 + 3 cells, each with its filling
    assert len(axes.patches) == 30
    bars = costs_chart(drawn).axes[0]
    assert bars.get_ylim()[0] == 0 and [bar.get_height() for bar in bars.patches] == pytest.approx(
        [6, drawn.report.evaluations, 3]
    )


def test_stopping_between_steps_leaves_no_trace(painter: Painter, clean: None) -> None:
    request, steps = request_of("cfg_cache", "forecast:interval=2"), []
    for place in (0, 2, STEPS + 3, 2 * STEPS + 1):
        stop = threading.Event()
        steps.clear()

        def heard(share: float, text: str, place: int = place, stop: threading.Event = stop) -> None:
            steps.append(text)
            if sum("step" in one for one in steps) >= place:
                stop.set()

        with pytest.raises(Stopped):
            draw(painter, request, Watch(progress=heard, stop=stop))
        assert sum("step" in one for one in steps) == place


def test_the_check_for_traces_would_see_one(painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    own = set(vars(painter.pipe.scheduler))
    with monkeypatch.context() as patch:
        patch.setattr(clock.Clock, "release", lambda self: None)
        painter.paint(steps=2, guidance=1.5, seed=0, after=lambda step: None)
        left = set(vars(painter.pipe.scheduler)) - own
    assert left == {"step", "set_timesteps"}
    for name in left:
        delattr(painter.pipe.scheduler, name)
    clock._CLOCKS.pop(painter.pipe.scheduler)


@pytest.mark.parametrize(
    "wrong", [{"steps": 1}, {"steps": 2.5}, {"steps": 1000}, {"guidance": float("nan")}, {"seed": -1}, {"seed": None}]
)
def test_requests_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        request_of("forecast", **wrong)
    with pytest.raises(ConfigError, match="no plugin"):
        request_of()


def test_what_the_pipeline_cannot_carry_is_refused(painter: Painter, clean: None) -> None:
    for spec in ("first_block", "fastv"):
        with pytest.raises(CapabilityError):
            draw(painter, request_of(spec), Watch())


def test_words_for_what_stands_in() -> None:
    specs = ("forecast", "cfg_cache", "tgate", "tome_sd", "sampler", "forecast:order=0", "taylorseer")
    words = [stand_ins([plugin(spec)]) for spec in specs]
    assert words == [
        ("predicted",),
        ("reused",),
        ("reused", "left unguided"),
        ("merged",),
        (),
        ("reused",),
        ("predicted",),
    ]


def test_one_pipeline_draws_what_each_asks(painter: Painter) -> None:
    other = painter.asking(classes=(7,))
    assert other.pipe is painter.pipe and (other.asked, painter.asked) == ({"labels": [7]}, {"labels": [4]})
    with pytest.raises(InputError, match="a prompt for small-unet"):
        painter.asking(prompt="a cat")
    with pytest.raises(InputError, match="prompt for DiTPipeline, which takes none"):
        Painter(make_pipeline("dit").pipe, "tiny", {"prompt": "a cat"}).paint(steps=2, guidance=1.0, seed=0)


def test_large_pictures_are_not_scaled() -> None:
    assert shown(torch.zeros(3, 300, 200)).size == (200, 300)
    assert shown(torch.zeros(3, 64, 32)).size == (192, 384)
