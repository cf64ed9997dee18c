"""Calibrations: fits that never fall nor leave what was seen, files, and what they are refused for."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tiny.pipelines import TinyPipeline, tiny_pipeline
from vlm_eff import attach
from vlm_eff.core.config import from_dict, to_dict
from vlm_eff.core.errors import CapabilityError, ConfigError, InputError
from vlm_eff.diffusion import calibrate_magcache, calibrate_teacache, calibration, magcache, teacache
from vlm_eff.diffusion.calibration import ChangeCurve, MagnitudeTable, Provenance, fit_curve, read_calibration


def call(tiny: TinyPipeline, steps: int = 8, seed: int = 0, **more: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    return {**tiny.call, "num_inference_steps": steps, "generator": generator, "output_type": "latent", **more}


def pairs(slope: float, noise: float = 0.0, count: int = 200) -> list[tuple[float, float]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, generator=generator) + 0.1
    y = slope * x + noise * torch.randn(count, generator=generator)
    return list(zip(x.tolist(), y.tolist(), strict=True))


def test_a_line_is_fitted_by_itself() -> None:
    curve = fit_curve(pairs(2.0), {})
    x = torch.tensor([0.0, 0.3, 0.7, 1.0])
    assert torch.allclose(curve(x), 2 * x, atol=0.05)
    assert curve.made.error < 0.02


@pytest.mark.parametrize("slope", [1.0, 0.0, -1.0])
def test_fits_never_fall_and_end_where_the_measurements_do(slope: float) -> None:
    assert _falls(slope) is False


def _falls(slope: float) -> bool:
    found = pairs(slope, noise=0.3)
    curve = fit_curve([(x, abs(y)) for x, y in found], {})
    highest = max(x for x, _ in found)
    values = curve(torch.linspace(0, highest, 500))
    assert torch.isinf(curve(torch.tensor([highest * 1.001, float("nan"), 1e9]))).all()
    assert torch.isfinite(values).all()
    return bool((values.diff() < 0).any())


def test_falling_fits_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "_mean", lambda pool, axis: -pool[0][axis] if axis else pool[0][axis])
    with pytest.raises(ConfigError):
        _falls(1.0)


def test_one_knot_is_a_constant() -> None:
    curve = ChangeCurve((0.5,), (0.2,), Provenance())
    assert curve(torch.tensor([0.1, 0.5, 0.6])).tolist() == pytest.approx([0.2, 0.2, float("inf")])


def test_ratios_of_other_step_counts_are_the_nearest() -> None:
    table = MagnitudeTable(((1.0, 1.1, 1.2, 1.3, 1.4),), Provenance())
    assert [table.ratio(i, 5, 0) for i in range(5)] == [1.0, 1.1, 1.2, 1.3, 1.4]
    assert [table.ratio(i, 3, 7) for i in range(3)] == [1.0, 1.2, 1.4]
    assert [table.ratio(i, 9, 0) for i in (0, 2, 8)] == [1.0, 1.1, 1.4]


@pytest.mark.parametrize("family", ["flux", "dit"])
def test_teacache_calibrates_itself(family: str, tmp_path: Path) -> None:
    tiny, path = tiny_pipeline(family), tmp_path / "curve.json"
    more = {"output_type": "np"} if family == "dit" else {}
    curve = calibrate_teacache(tiny.pipe, call(tiny, **more), call(tiny, seed=1, **more), save=path)
    made = curve.made
    assert made.model == type(tiny.denoiser).__name__ and made.scheduler == type(tiny.pipe.scheduler).__name__
    assert made.steps == 8 and made.runs == 2 and made.date and 0 <= made.error < 1 and len(made.size) >= 3
    assert made.guidance == (4.0 if family == "dit" else tiny.call["true_cfg_scale"])
    assert read_calibration(str(path), ChangeCurve, "teacache") == curve
    with attach(tiny.pipe, teacache(path, threshold=0.4)) as handle:
        tiny(8)
    run = handle.stats().runs[-1]
    assert 0 < run.evaluations < run.evaluations_bare


def test_beyond_the_band_everything_is_computed() -> None:
    tiny = tiny_pipeline("flux")
    curve = calibrate_teacache(tiny.pipe, call(tiny))
    narrow = ChangeCurve((0.0, 1e-6), (0.0, 1e-6), curve.made)
    want = tiny(6)
    with attach(tiny.pipe, teacache(narrow, threshold=100.0)) as handle:
        assert torch.equal(tiny(6), want)
    assert handle.stats().runs[-1].evaluations == 12


def test_the_ratios_are_those_of_the_residuals(tmp_path: Path) -> None:
    tiny, path = tiny_pipeline("wan"), tmp_path / "ratios.json"
    given: list[torch.Tensor] = []
    residuals: list[torch.Tensor] = []
    first, last = tiny.denoiser.blocks[0], tiny.denoiser.blocks[-1]  # type: ignore[index, union-attr]
    hooks = [
        first.register_forward_pre_hook(lambda module, args: given.append(args[0].clone())),
        last.register_forward_hook(lambda module, args, output: residuals.append(output - given[-1])),
    ]
    table = calibrate_magcache(tiny.pipe, call(tiny, steps=5), save=path)
    for hook in hooks:
        hook.remove()
    for branch in (0, 1):
        mine = residuals[branch::2]
        want = [float((b.norm(dim=-1) / a.norm(dim=-1)).mean()) for a, b in pairwise(mine)]
        assert table.ratios[branch][:-1] == pytest.approx([1.0, *want[:-1]], rel=1e-4)
        assert table.ratios[branch][-1] == table.ratios[branch][-2]
    assert read_calibration(path, MagnitudeTable, "magcache") == table
    assert magcache(str(path)) == magcache(table)


def test_without_a_calibration_it_says_how_to_make_one() -> None:
    for method in (teacache, magcache):
        with pytest.raises(ConfigError, match=f"calibrate_{method.__name__}"):
            method()
        with pytest.raises(ConfigError):
            method("nowhere.json")


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    calibration.save_calibration(MagnitudeTable(((1.0,),), Provenance()), path)
    with pytest.raises(ConfigError, match="ChangeCurve"):
        teacache(path)
    path.write_text(json.dumps({"part": "ChangeCurve", "signals": [2, 1], "outputs": [0, 1], "made": None}))
    with pytest.raises(ConfigError):
        teacache(path)


def test_other_models_and_schedulers_are_refused() -> None:
    curve = ChangeCurve((0.0, 1.0), (0.0, 1.0), Provenance(model="FluxTransformer2DModel", scheduler="DDIMScheduler"))
    table = MagnitudeTable(((1.0,),), replace(curve.made, scheduler=""))
    for plugin in (teacache(curve), magcache(table)):
        with pytest.raises(CapabilityError, match="calibrat"):
            attach(tiny_pipeline("dit").pipe, plugin)
    with pytest.raises(CapabilityError, match="scheduler"):
        attach(tiny_pipeline("flux").pipe, teacache(curve))
    with attach(tiny_pipeline("flux").pipe, teacache(replace(curve, made=Provenance()))):
        tiny_pipeline("flux")(2)


def test_unets_and_short_runs_cannot_be_calibrated() -> None:
    tiny = tiny_pipeline("sd")
    for calibrate in (calibrate_teacache, calibrate_magcache):
        with pytest.raises(CapabilityError):
            calibrate(tiny.pipe, call(tiny))
        with pytest.raises(ConfigError):
            calibrate(tiny.pipe)
    flux = tiny_pipeline("flux")
    with pytest.raises(ConfigError):
        calibrate_magcache(flux.pipe, call(flux, steps=3))


def test_calibrations_travel_with_the_plugin() -> None:
    plugin = teacache(ChangeCurve((0.0, 1.0), (0.0, 1.0), Provenance(size=(1, 2))))
    assert from_dict(json.loads(json.dumps(to_dict(plugin)))) == plugin


@pytest.mark.parametrize("calibrate", [calibrate_teacache, calibrate_magcache])
def test_a_place_that_cannot_be_written_is_refused_before_any_run(calibrate: Any, tmp_path: Path) -> None:
    for place in (tmp_path / "nowhere" / "fit.json", tmp_path):
        with pytest.raises(InputError, match="folder"):
            # the pipeline is not even looked at
            calibrate(None, {}, save=place)
