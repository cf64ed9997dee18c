"""Plots: the front by hand, honest axes, and names that matplotlib would read as something else."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.eval.stats.builder import BARE_COSTS, costs, family, header, run, samples
from vlm_eff.eval.report import plots
from vlm_eff.eval.report.plots import front, group_plot, layers_plot, pareto_plots, plain
from vlm_eff.eval.runs.folder import read_run
from vlm_eff.eval.stats.comparison import Compared, compare_runs
from vlm_eff.eval.stats.interval import Interval

BEFORE = [1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0]
AFTER_ = [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0]


@pytest.fixture
def compared(tmp_path: Path) -> Compared:
    first, *others = (read_run(folder) for folder in family(tmp_path, BEFORE, AFTER_))
    return compare_runs(first, others, by=["family"])


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures that are made."""
    made: list[Any] = []

    def keep(width: float, height: float) -> Any:
        made.append(figure := real(width, height))
        return figure

    real = plots.blank_figure
    monkeypatch.setattr(plots, "blank_figure", keep)
    return made


def test_the_front_by_hand() -> None:
    points = [(64.0, 80.0), (32.0, 70.0), (32.0, 75.0), (40.0, 75.0), (50.0, 60.0), (10.0, 20.0)]
    assert front(points) == [5, 2, 0]
    assert front([(1.0, 5.0), (1.0, 5.0)]) == [0]


def test_axes_are_honest(compared: Compared, drawn: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "png_of", lambda figure: b"")
    made = pareto_plots(compared, {"fastv:keep_ratio=0.5": Interval(0.7, 0.6, 0.8)})
    assert len(made) == len(drawn) == 4
    for plot, figure in zip(made, drawn, strict=True):
        (axes,) = figure.axes
        low, high = axes.get_ylim()
        assert axes.get_xlim()[0] == 0 and low % 10 == high % 10 == 0
        assert f"from {low:g} to {high:g}" in axes.get_ylabel() and f"from {low:g} to {high:g} %" in plot.caption
        shown = [row.summary for row in compared.rows if row.summary.label not in plot.caption]
        assert len(shown) >= 2
        for end in (end for one in shown for end in (one.accuracy.low, one.accuracy.high)):
            assert end is not None and low <= 100 * end <= high
    # what smaller pictures cost in FLOPs is not known, so it is left out and said
    assert "downsize" in made[1].caption and "downsize" not in made[0].caption
    assert "uniform_grid" in made[3].caption


def test_the_front_passes_baselines_by(tmp_path: Path, drawn: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "png_of", lambda figure: b"")
    runs = [
        run(tmp_path / "bare", samples(BEFORE)),
        run(tmp_path / "fastv", samples(AFTER_, costs=costs(40.0)), header(8, "fastv")),
        run(tmp_path / "grid", samples([1.0] * 8, costs=costs(20.0)), header(8, "uniform_grid")),
    ]
    pareto_plots(compare_runs(runs[0], runs[1:]), {})
    (line,) = [line for line in drawn[0].axes[0].lines if line.get_label() == "front"]
    assert list(line.get_xdata()) == [40, 64]
    hollow = [line.get_markerfacecolor() for line in drawn[0].axes[0].lines]
    assert hollow.count("white") == 1


def test_bars_and_layers_begin_at_zero(compared: Compared, drawn: list[Any]) -> None:
    group_plot(compared, "family", compared.groups["family"])
    assert layers_plot(compared) is not None
    bars, layers = (figure.axes[0] for figure in drawn)
    assert bars.get_ylim() == (0, 100) and layers.get_ylim()[0] == 0
    assert sum(bar.get_y() == 0 and bar.get_height() >= 0 for bar in bars.patches) == 8
    # four runs of which each says its layers
    assert len(layers.lines) == 4


def test_what_is_not_there_is_not_drawn(tmp_path: Path) -> None:
    text_alone = [replace(one, costs={}) for one in samples(BEFORE)]
    found = compare_runs(run(tmp_path / "bare", text_alone), [])
    assert pareto_plots(found, {}) == [] and layers_plot(found) is None


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    """A dollar sign begins no formula, and a name of any length leaves room to draw in."""
    name = "_fastv:$x_{" + "y" * 300
    odd = samples(BEFORE, groups={"$kind": "$\\frac{"}, costs=dict(BARE_COSTS))
    found = compare_runs(run(tmp_path / "a", odd), [run(tmp_path / "b", odd, header(8, name))], by=["$kind"])
    made = pareto_plots(found, {})
    assert len(made) == 3 and all(plot.png.startswith(b"\x89PNG") for plot in made)
    assert group_plot(found, "$kind", found.groups["$kind"]).png and layers_plot(found)
    assert plain("a $b") == r"a \$b" and not plain("_a").startswith("_")


def test_many_parts_are_cut_and_said(tmp_path: Path) -> None:
    many = [replace(one, groups={"part": f"p{number // 2}"}) for number, one in enumerate(samples(BEFORE * 4))]
    found = compare_runs(run(tmp_path / "a", many), [], by=["part"])
    plot = group_plot(found, "part", found.groups["part"])
    assert "4 smaller parts are left out" in plot.caption and math.isfinite(len(plot.png))
