"""The scripts of the diffusion benchmarks, on tiny pipelines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny.pipelines import tiny_pipeline

_MODULES = ("diffusion", "diffusion_quality", "diffusion_time")
SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    monkeypatch.syspath_prepend(SCRIPTS)
    import diffusion_quality
    import diffusion_time

    yield {"quality": diffusion_quality, "time": diffusion_time}
    for name in [
        name for name in sys.modules if name.split(".")[0] in ("diffusion", "diffusion_quality", "diffusion_time")
    ]:
        del sys.modules[name]


def test_every_arm_of_ours_can_be_opened_where_it_is_listed(scripts: Any) -> None:
    quality, time = scripts["quality"], scripts["time"]
    listed = {"sd": [*quality.ARMS["small-unet"], *time.UNET_ARMS], "dit": quality.ARMS["small-dit"]}
    listed["sd3"] = time.TRANSFORMER_ARMS
    for family, arms in listed.items():
        pipe = tiny_pipeline(family).pipe
        assert len({arm.label for arm in arms}) >= len(arms) - 6
        for arm in arms:
            if arm.kind == "ours":
                with arm.opened(pipe) as handle:
                    assert handle.attached
                    with handle.paused():
                        tiny_pipeline(family)(2)
                    handle._runtime.ledger.calls = 1  # it was opened only


def test_times_stand_beside_flops(scripts: Any) -> None:
    time, tiny = scripts["time"], tiny_pipeline("sd3")
    row = time.measure(time.plugin("forecast:interval=2"), tiny.pipe, lambda: tiny(4), 3)
    assert row["flop_ratio"] == pytest.approx(0.5, abs=0.01) and row["time"]["pairs"] == 3
    assert row["time_over_flops"] == pytest.approx(row["time"]["ratio"] / row["flop_ratio"])


def test_pictures_are_judged(scripts: Any) -> None:
    quality, judging = scripts["quality"], scripts["quality"].load_classifier()
    real, classes = quality.shape_batch(0, 20, "test")
    noise = 0.3 * torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    same = quality.judge(real, real, real, classes.tolist(), judging)
    off = quality.judge(real + noise, real, real, classes.tolist(), judging)
    assert same["psnr"] == 100 and same["class_accuracy"] == 1 and same["feature_distance"] == 0
    assert same["frechet"] < 1e-3 and off["frechet"] > 0.1
    assert off["psnr"] < 30 and off["feature_distance"] > 0


def test_rows_of_other_settings_are_not_taken_over(scripts: Any, tmp_path: Path) -> None:
    quality, path = scripts["quality"], tmp_path / "record.json"
    rows = [{"label": "a", "kind": "ours"}, {"label": "b", "kind": "peer", "error": "x"}]
    record = quality.Record("t", "1", "m", {"seed": 1}, "cpu", 5, {"rows": rows})
    record.write(path)
    assert list(quality.kept_rows(path, {"seed": 1}, 5)) == ["a"]
    assert json.loads(path.read_text())["n"] == 5
    with pytest.raises(SystemExit, match="other settings"):
        quality.kept_rows(path, {"seed": 2}, 5)
