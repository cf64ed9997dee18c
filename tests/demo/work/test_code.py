"""Code to copy: running it says what the page said."""

import ast
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vlm_eff import attach, plugin
from vlm_eff.demo.work.code import code_for, drawing_code
from vlm_eff.eval.loading import BUNDLED
from vlm_eff.eval.painter import load_painter
from vlm_eff.eval.subject import Subject
from vlm_eff.reference.scenes import make_scene, render

SPECS = ["fastv:keep_ratio=0.25", "snapkv"]
NASTY = 'what "word"\nis \\n written in the 🙂 picture?\u2028\x7f"""'


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Image.Image:
    """A picture, and two files of it in the folder that code is run in."""
    shown = render(make_scene(3, "test"))
    for name in ("picture.png", "other.png"):
        shown.save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return shown


def run(code: str) -> dict[str, Any]:
    """What names stand for behind the code."""
    made: dict[str, Any] = {}
    exec(compile(code, "copied", "exec"), made)
    return made


@pytest.mark.parametrize("specs", [[], SPECS[:1], SPECS])
def test_a_question_is_answered_as_on_the_page(
    subject: Subject, beside: Image.Image, specs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run(code_for(subject.name, specs, NASTY, pictures=("picture.png", "other.png"), max_new_tokens=4, device="cpu"))
    said = capsys.readouterr().out
    inputs = subject.inputs([beside, beside], NASTY)
    assert f"bare: {subject.answer(inputs, max_new_tokens=4)}\n" in said
    if specs:
        with attach(subject.model, *(plugin(spec) for spec in specs)) as handle:
            assert f"with plugins: {subject.answer(inputs, max_new_tokens=4)}\n" in said
        assert "n_eq" in said and str(handle.stats()).split("\n")[0] in said
    else:
        assert "plugin" not in said


def test_the_bundled_model_needs_no_name(beside: Image.Image, capsys: pytest.CaptureFixture[str]) -> None:
    code = code_for(BUNDLED, [], "what word is written?", device="cpu", max_new_tokens=4)
    assert 'load_subject(device="cpu")' in code
    run(code)
    assert capsys.readouterr().out == "bare: van\n"


def test_a_drawing_is_the_same(tmp_path: Path, beside: Image.Image, capsys: pytest.CaptureFixture[str]) -> None:
    specs = ["forecast:interval=2"]
    made = run(drawing_code("small-dit", specs, classes=(4,), steps=4, guidance=1.5, seed=7, device="cpu"))
    painter = load_painter("small-dit", classes=(4,), device="cpu")
    full = painter.paint(steps=4, guidance=1.5, seed=7)
    with attach(painter.pipe, plugin(specs[0])):
        assert made["made"].equal(painter.paint(steps=4, guidance=1.5, seed=7))
    assert made["full"].equal(full) and not made["made"].equal(full)
    assert "PSNR to the full run" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("*.png")} >= {"full.png", "with_plugins.png"}


def test_nothing_in_a_text_ends_its_literal() -> None:
    for text in (NASTY, '"); open("x", "w") #', "\\"):
        tree = ast.parse(code_for(text, [text], text))
        literals = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        assert literals.count(text) == 3
        bare = ast.parse(drawing_code(text, [], prompt=text, steps=1, guidance=1.0, seed=0))
        assert [node.value for node in ast.walk(bare) if isinstance(node, ast.Constant)].count(text) == 2
