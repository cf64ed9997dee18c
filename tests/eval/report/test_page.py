"""The page and its Markdown: complete, loading nothing, and showing answers as text whatever is in them."""

from __future__ import annotations

import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.eval.stats.builder import costs, family, header, run, samples
from vlm_eff.core.errors import InputError
from vlm_eff.eval.report import plots
from vlm_eff.eval.report.page import MOST_FLIPS, html_report, listed_breakdowns, markdown_report
from vlm_eff.eval.runs.folder import Run, read_run
from vlm_eff.eval.stats.comparison import compare_runs
from vlm_eff.eval.stats.interval import Interval

BEFORE = [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
AFTER_ = [1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>'\"{{ 7*7 }}|`x`"


class Seen(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def seen(page: str) -> Seen:
    found = Seen()
    found.feed(page)
    return found


def test_everything_is_on_the_page_and_nothing_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "png_of", lambda figure: b"\x89PNG")
    runs = [read_run(folder) for folder in family(tmp_path, BEFORE, AFTER_)]
    found = compare_runs(runs[0], runs[1:], by=["family"])
    times = {"fastv:keep_ratio=0.5": Interval(0.71, 0.65, 0.78)}
    page = html_report(runs, found, times, "Times: here.")
    what = seen(page)
    assert len(what.links) == what.tags.count("img") == 6
    assert all(link.startswith("data:image/png;base64,") for link in what.links)
    assert "script" not in what.tags and "link" not in what.tags and "http" not in page.replace("http-equiv", "")
    text = " ".join(" ".join(what.text).split())
    for part in (
        "scenes 1, metric exact",
        "2-core CPU",
        "torch 2.15.0",
        "2026-01-01",
        "0.71 [0.65, 0.78]",
        "Times: here.",
        "Below uniform_grid:keep_ratio=0.6",
        "right to wrong: 2",
        "By family",
        "Apart by what smaller pictures do",
        '"dtype": "float32"',
    ):
        assert part in text, part


def evil_runs(folder: Path) -> list[Run]:
    """Runs that hold markup wherever a run holds text."""

    def spoilt(scores: list[float]) -> list[object]:
        parts = {"prompt": EVIL, "gold": {"answer": EVIL}, "groups": {EVIL: EVIL}}
        return [replace(one, answer=EVIL, **parts) for one in samples(scores)]  # type: ignore[arg-type]

    head = {"model": EVIL, "device": EVIL, "packages": {EVIL: EVIL}}
    bare = run(folder / "bare", spoilt(BEFORE), header(8, **head))  # type: ignore[arg-type]
    return [bare, run(folder / "it", spoilt(AFTER_), header(8, EVIL, **head))]  # type: ignore[arg-type]


def test_answers_are_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "png_of", lambda figure: b"")
    runs = evil_runs(tmp_path)
    what = seen(html_report(runs, compare_runs(runs[0], runs[1:], by=[EVIL]), {}))
    assert "script" not in what.tags and not what.handlers
    assert all(link.startswith("data:") for link in what.links)
    assert sum(EVIL in text for text in what.text) > 10


def test_markdown_is_text_too(tmp_path: Path) -> None:
    runs = evil_runs(tmp_path)
    made = markdown_report(runs, compare_runs(runs[0], runs[1:], by=[EVIL]), {})
    assert "<script" not in made.replace("\\<", "")
    tables = [line for line in made.splitlines() if line.startswith("|")]
    # a column more would be a bar that was not escaped
    widths = {line.replace("\\|", "").count("|") for line in tables}
    assert widths == {8, 13, 6}


def test_markdown_holds_tables_and_notes(tmp_path: Path) -> None:
    runs = [read_run(folder) for folder in family(tmp_path, BEFORE, AFTER_)]
    made = markdown_report(runs, compare_runs(runs[0], runs[1:], by=["family"]), {})
    assert "| *uniform\\_grid:keep\\_ratio=0.6* |" in made and "| fastv:keep\\_ratio=0.5 |" in made
    assert "N = 8 items" in made and "![" not in made


def test_one_run_alone_without_groups(tmp_path: Path) -> None:
    alone = run(tmp_path / "bare", [replace(one, groups={}, costs={}) for one in samples(BEFORE)])
    assert listed_breakdowns(alone) == ([], [])
    what = seen(html_report([alone], compare_runs(alone, []), {}))
    text = " ".join(" ".join(what.text).split())
    assert "img" not in what.tags and "62.5 [" in text and "1 run" in text and "Answers that changed" not in text


def test_an_unfinished_run_has_no_report(tmp_path: Path) -> None:
    part = run(tmp_path / "part", samples(BEFORE), header(9))
    with pytest.raises(InputError, match="not finished"):
        compare_runs(part, [])


def test_a_breakdown_into_everything_is_left_out(tmp_path: Path) -> None:
    asked = [replace(one, groups={"picture": one.id, "kind": "a"}) for one in samples([1.0] * 70)]
    assert listed_breakdowns(run(tmp_path / "it", asked)) == (["kind"], ["picture"])


def test_five_thousand_items_are_fast_and_flips_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "png_of", lambda figure: b"")
    rng = np.random.default_rng(0)
    named = [f"c{number // 3}" for number in range(5000)]
    runs = [run(tmp_path / "bare", samples(rng.integers(0, 2, 5000).tolist(), named))]
    for spec in ("fastv", "uniform_grid"):
        lines = samples(rng.integers(0, 2, 5000).tolist(), named, costs=costs(32.0))
        runs.append(run(tmp_path / spec, lines, header(5000, spec)))
    started = time.process_time()
    page = html_report(runs, compare_runs(runs[0], runs[1:], by=["family"]), {})
    # a second or two; what grows with the square of the items takes minutes
    assert time.process_time() - started < 60
    assert f"the first {MOST_FLIPS} of them" in page and len(page) < 2_000_000
