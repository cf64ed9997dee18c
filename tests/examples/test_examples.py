"""Every example runs in this process, prints what it promises, stays short, and names a real model to try."""

import ast
import importlib.util
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.video.watcher import watching_subject

FOLDER = Path(__file__).parents[2] / "examples"
FILES = sorted(FOLDER.glob("[0-9]*.py"))
LONGEST = 60

# arguments that make it shorter, and what has to be read in what it prints
ANCHORS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "01_drop_tokens": ({}, ("how many objects are there? 4", "layer 2: 144 -> 72", "Handle(fastv; detached)")),
    "02_use_a_pipeline": ({}, ("with plugins: van", "bare:         van", "pyramiddrop + snapkv on llava, 3 prefills")),
    "03_read_stats": ({}, ("[144, 144, 72, 72, 36, 36, 18, 18]", "(1, 2, 30)", "'middle left', bare 'middle left'")),
    "04_compare_methods": ({"pairs": 3}, ("bare ", "feather @ 58 ", "uniform_grid @ 58 ", "CPU, ratios only")),
    "05_reduce_a_video": ({}, ("pillow: 16 of 16 frames, 3.75 seconds", "evs ", "prunevid ", " of 72, left of every")),
    "06_chat_with_a_small_cache": ({}, ("what word is written? van: 167 positions seen, 43 entries", "KV cache now")),
    "07_serve_batches": ({}, ("4 requests in", "padding [0, 3, 4, 4]", " of 12 right")),
    "08_merge_in_towers": (
        {},
        ("timm      r= 8: 197 tokens, 101 behind the last block", "open_clip r= 0: 197 tokens, 197"),
    ),
    "09_diffuse_with_fewer_evaluations": ({}, ("20 evaluations bare, 10.00 computed", "10 steps of the same solver")),
    "10_write_your_own_score": ({}, ("method='loudest'", "answer: ", "layer 3: 144 -> 36")),
    "11_train_registers": ({}, ("after 12 steps: ", "from the file: ", "layer 3: 144 -> 8")),
    "12_evaluate_and_compare": ({"scenes": 2}, ("bare ", "pyramiddrop  n_eq  67.5", "against bare")),
    "13_evaluate_with_torchrun": ({"scenes": 2}, ("process 0 of 1 asked {'bare': ", "fastv: ")),
    "14_evaluate_with_lmms_eval": ({"limit": 2}, ("lmms-eval is not installed",)),
}


def run(file: Path, capsys: pytest.CaptureFixture[str], **arguments: Any) -> str:
    """What the example prints, called as typer calls it."""
    runpy.run_path(str(file))["main"](**arguments)
    return capsys.readouterr().out


def named(name: str) -> Path:
    return FOLDER / f"{name}.py"


def test_every_example_is_tested_and_listed() -> None:
    assert [file.stem for file in FILES] == sorted(ANCHORS)
    assert [file.stem[:2] for file in FILES] == [f"{number:02d}" for number in range(1, len(FILES) + 1)]
    listed = re.findall(r"\]\((\d\d_\w+)\.py\)", (FOLDER / "README.md").read_text(encoding="utf-8"))
    assert listed == sorted(ANCHORS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_runs_and_prints_what_it_promises(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if file.stem == "14_evaluate_with_lmms_eval" and importlib.util.find_spec("lmms_eval"):
        pytest.skip("runs in full where lmms-eval is installed: tests/bridges/lmms")
    arguments, anchors = ANCHORS[file.stem]
    said = run(file, capsys, **arguments)
    assert not [anchor for anchor in anchors if anchor not in said], said
    # the one that trains has to have learned something
    losses = [float(found) for found in re.findall(r"(?:scenes|steps): (\d+\.\d+)", said)]
    assert not losses or losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_is_short_and_names_a_real_model(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert len(text.splitlines()) < LONGEST
    module = ast.parse(text)
    lines = (ast.get_docstring(module) or "").splitlines()
    assert lines and lines[0].endswith((".", ":")), "says first what it shows"
    assert any(line.startswith("On ") and f"examples/{file.name}" in line and "--model" in line for line in lines)
    (main,) = [node for node in module.body if isinstance(node, ast.FunctionDef) and node.name == "main"]
    assert main.args.args[0].arg == "model" and ast.unparse(main.args.defaults[0]) == "None"
    assert ast.unparse(module.body[-1]).startswith("if __name__ == '__main__'") and "typer.run(main)" in text


@pytest.mark.parametrize(
    ("name", "arguments", "anchor"),
    [
        ("01_drop_tokens", {}, "layer 2: 144 -> 72"),
        ("02_use_a_pipeline", {}, "pyramiddrop + snapkv on llava"),
        ("06_chat_with_a_small_cache", {}, "entries stored of each head"),
        ("11_train_registers", {"steps": 1}, "layer 3: 144 -> 8"),
    ],
)
def test_a_model_of_ones_own(
    name: str, arguments: dict[str, Any], anchor: str, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert anchor in run(named(name), capsys, model=str(model_folder), **arguments)


def test_a_video_and_a_model_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subject = watching_subject()
    subject.model.save_pretrained(tmp_path)
    subject.processor.save_pretrained(tmp_path)
    noise = np.random.default_rng(0).integers(0, 255, (16, 40, 40, 3), dtype=np.uint8)
    frames = [Image.fromarray(frame) for frame in noise]
    frames[0].save(tmp_path / "noise.gif", save_all=True, append_images=frames[1:], duration=500)
    said = run(named("05_reduce_a_video"), capsys, model=str(tmp_path), video=tmp_path / "noise.gif")
    assert "16 of 16 frames, 7.50 seconds" in said and "evs       n_eq 21.0 of 72" in said


def test_one_command_runs_them_all(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    everything = runpy.run_path(str(FOLDER))["main"]
    called: list[str] = []
    monkeypatch.setattr(runpy, "run_path", lambda path: {"main": lambda: called.append(Path(path).name)})
    everything()
    assert called == [file.name for file in FILES]
    assert re.findall(r"== examples/(\S+)", capsys.readouterr().out) == called
