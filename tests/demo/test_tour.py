"""The demo, on a tiny model: real pictures, honest verdicts, a page that needs nothing else."""

import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from vlm_eff.demo.tour.asking import ask, score, spread
from vlm_eff.demo.tour.command import METHODS, SHARES, demo
from vlm_eff.demo.tour.html import page
from vlm_eff.demo.tour.pictures import easy_vqa_pictures, photographs, scene_pictures
from vlm_eff.demo.tour.tables import verdict
from vlm_eff.eval.budgets import Setting, settings_at, sizes_of
from vlm_eff.eval.subject import Subject
from vlm_eff.reference.evaluate import easy_vqa_samples
from vlm_eff.tokens import uniform_grid


def test_pictures_are_real_and_photographs_have_no_truth() -> None:
    shown = photographs()
    assert [one.title for one in shown] == ["astronaut", "coffee", "chelsea", "rocket", "china", "flower"]
    assert all(one.truth is None and min(one.image.size) >= 300 for one in shown)
    scenes = scene_pictures(4)
    assert [one.title for one in scenes] == [f"scene, {name}" for name in ("read_word", "locate", "count", "relation")]
    assert all(one.truth for one in scenes) and scenes[3].truth in ("yes", "no")
    easy = easy_vqa_pictures(3)
    assert {one.truth for one in easy} == {"triangle", "blue", "gray"}
    assert len({one.title for one in easy}) == 3
    assert all(one.truth not in (None, "yes", "no") and one.image.size == (64, 64) for one in easy)


def test_settings_reach_equal_budgets(subject: Subject) -> None:
    question = photographs()[0]
    sizes = sizes_of(subject, [question.image], question.text)
    assert (sizes.visual_tokens, sizes.num_layers) == (144, 8)
    settings = settings_at(sizes, METHODS, SHARES)
    assert [setting.n_eq for setting in settings] == [72] * 4 + [48] * 4
    asked = ask(subject, question, settings, pairs=0)
    for setting, arm in zip(settings, asked.comparison.arms, strict=True):
        assert arm.plugin == setting.label
        # the grid of feather adds as many tokens as chance has it
        assert arm.n_eq == pytest.approx(setting.n_eq, abs=8 if setting.method == "feather" else 0.5)
        assert asked.kept[setting.label].width == 240


def test_verdict_needs_a_truth(subject: Subject) -> None:
    setting = Setting("uniform_grid", 36, uniform_grid(keep_ratio=0.25))
    photograph, easy = (ask(subject, one[0], [setting], 0) for one in (photographs(), easy_vqa_pictures(1)))
    assert verdict(photograph, "red") == "-"
    assert verdict(easy, str(easy.question.truth)) == "yes"
    assert verdict(easy, "something else") == "no"


def test_score_counts_against_truth_and_bare(subject: Subject) -> None:
    samples = spread(easy_vqa_samples("test"), 6)
    assert len({sample.image for sample in samples}) == 6
    steps: list[int] = []
    everything = Setting("uniform_grid", 144, uniform_grid(keep_ratio=1.0))
    bare, same = score(subject, "questions", samples, [everything], lambda: steps.append(1))
    assert len(steps) == 2
    assert bare.label == "bare" and bare.same_as_bare == bare.questions == 6
    assert (same.right, same.same_as_bare) == (bare.right, 6)


def test_page_is_self_contained_and_escaped(subject: Subject) -> None:
    setting = Setting("uniform_grid", 36, uniform_grid(keep_ratio=0.25))
    asked = [ask(subject, easy_vqa_pictures(1)[0], [setting], 0)]
    html = page(
        asked,
        [score(subject, "<questions>", spread(easy_vqa_samples("test"), 2), [setting], lambda: None)],
        "a <model>",
    )
    assert "a &lt;model&gt;" in html
    assert "2 &lt;questions&gt;" in html
    assert html.count("<img") == 2
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]+)"', html))
    assert not re.findall(r"(?:href|url)\W+https?:", html)
    assert "cannot know the answer" in html


def test_script_prints_tables_and_writes_the_page(model_folder: Path, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(demo)
    few = ["--pictures", "1", "--questions", "4", "--pairs", "0"]
    result = CliRunner().invoke(app, ["--model", str(model_folder), "--output", str(tmp_path / "out"), *few])
    assert result.exit_code == 0, result.output
    for words in (
        "astronaut",
        "easy-VQA 0",
        "feather @ 48",
        "4 easy-VQA test questions",
        "4 questions about held-out drawn scenes",
        "scene, read_word",
        "cannot know the answer",
    ):
        assert words in result.stdout
    assert (tmp_path / "out" / "index.html").stat().st_size > 50_000
    missing = CliRunner().invoke(app, ["--model", str(tmp_path / "none"), "--output", str(tmp_path / "out")])
    assert missing.exit_code == 1
    assert "no folder with a config.json" in missing.stderr
