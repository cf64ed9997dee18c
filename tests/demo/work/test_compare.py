"""The compare tab's work: methods and baselines at one budget, loyalty by an independent count, records, stopping."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.contracts.snapshot import assert_unchanged, snapshot
from vlm_eff import attach, plugin
from vlm_eff.core.config import from_dict
from vlm_eff.core.errors import ConfigError, InputError, Stopped
from vlm_eff.demo.work.code import comparison_code
from vlm_eff.demo.work.compare import HEAD, Compared, Contest, contend
from vlm_eff.demo.work.compare_chart import pareto_chart
from vlm_eff.demo.work.watching import Watch
from vlm_eff.eval.figure import png_of
from vlm_eff.eval.loyalty import loyalty
from vlm_eff.eval.record import read_record
from vlm_eff.eval.subject import Subject
from vlm_eff.reference.scenes import make_scene, render

QUESTION = "what word is written?"
METHODS = ("divprune", "fastv", "cross_modal_window", "snapkv", "tome")
BLIND = ["random_drop", "uniform_grid", "average_pool"]


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return render(make_scene(3, "test"))


@pytest.fixture(scope="module")
def compared(subject: Subject, picture: Image.Image) -> Compared:
    contest = Contest((picture,), QUESTION, METHODS, 0.25, max_new_tokens=4, pairs=3)
    return contend(subject, contest, Watch())


def test_all_are_asked_at_one_budget_beside_the_baselines(compared: Compared) -> None:
    assert (compared.n_eq, compared.sizes.visual_tokens) == (36, 144)
    assert [entry.method for entry in compared.entries if entry.baseline] == BLIND
    asked = [entry.method for entry in compared.entries if not entry.baseline]
    assert asked == ["divprune", "fastv"] and compared.methods == tuple(asked)
    for entry in compared.entries:
        assert entry.arm.n_eq == pytest.approx(36, abs=1)
        assert 0 < entry.loyalty <= 1 and entry.arm.prefill_flops_ratio < 0.6
        assert [one.width for one in entry.kept] == [240]
        assert entry.arm.time_to_first_token is not None and entry.arm.time_to_first_token.pairs == 3
    # what cannot be brought to a budget of visual tokens says why
    for name, why in (
        ("cross_modal_window", "neither a keep_ratio nor a layer"),
        ("snapkv", "leaves every visual token"),
        ("tome", "neither a keep_ratio nor a layer"),
    ):
        assert f"{name}, which" in compared.unreachable[f"{name} @ 36"] and why in compared.unreachable[f"{name} @ 36"]


def test_table_caption_and_record_say_what_they_are(compared: Compared, tmp_path: Path) -> None:
    rows = compared.rows()
    assert {len(row) for row in rows} == {len(HEAD)} and rows[0][0] == "bare"
    assert rows[-1][0] == "average_pool @ 36 (baseline)" and "[" in rows[-1][-1]
    assert "CPU, ratios only" in compared.caption() and "no measure of accuracy" in compared.caption()
    read = read_record(compared.to_record().write(tmp_path / "record.json"))
    assert read.n == 1 and read.config["n_eq"] == 36 and len(read.result["arms"]) == len(compared.entries)
    for entry in compared.entries:
        assert from_dict(read.config["plugins"][entry.arm.plugin]) == entry.plugin
    assert "NaN" not in json.dumps(read.to_dict())


def test_the_plot_begins_at_zero_and_shows_all(compared: Compared) -> None:
    figure = pareto_chart(compared)
    assert len(figure.axes) == 3
    for axes in figure.axes:
        assert (axes.get_xlim()[0], axes.get_ylim()[0]) == (0, 0)
        assert len(axes.get_legend_handles_labels()[1]) == len(compared.entries) + 2
    assert png_of(figure).startswith(b"\x89PNG")


def test_loyalty_is_the_probability_of_the_bare_answer(subject: Subject, picture: Image.Image) -> None:
    inputs = subject.inputs([picture], QUESTION)
    ids = inputs["input_ids"]
    said = torch.tensor([[7, 11, 5]])
    whole = {**inputs, "input_ids": torch.cat((ids, said), 1)}
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    with torch.inference_mode():
        logs = subject.model(**whole).logits.float().log_softmax(-1)[0, ids.shape[1] - 1 : -1]
    wanted = float(logs.gather(1, said.T).mean().exp())
    assert loyalty(subject, inputs, said) == pytest.approx(wanted, rel=1e-4)
    with attach(subject.model, plugin("uniform_grid:keep_ratio=0.1")):
        assert loyalty(subject, inputs, said) != pytest.approx(wanted, rel=1e-3)


def test_the_code_to_copy_gives_the_same_answers(
    subject: Subject, picture: Image.Image, compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture.save(tmp_path / "picture.png")
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    code = comparison_code(subject.name, compared.methods, QUESTION, share=0.25, max_new_tokens=4, device="cpu")
    exec(compile(code, "copied", "exec"), made)
    assert made["found"].bare_answer == compared.bare
    assert [(arm.plugin, arm.answer, arm.n_eq) for arm in made["found"].arms] == [
        (entry.arm.plugin, entry.arm.answer, entry.arm.n_eq) for entry in compared.entries
    ]


@pytest.mark.parametrize("behind", ["asking the bare", "asking with fastv", "timing fastv"])
def test_stopping_leaves_no_trace(subject: Subject, picture: Image.Image, behind: str) -> None:
    before, stop, heard = snapshot(subject.model), threading.Event(), []

    def told(share: float, text: str) -> None:
        heard.append(text)
        if text.startswith(behind):
            stop.set()

    with pytest.raises(Stopped):
        contend(subject, Contest((picture,), QUESTION, ("fastv",), 0.25, pairs=3), Watch(progress=told, stop=stop))
    assert heard[-1].startswith(behind)
    assert_unchanged(before, subject.model)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"methods": ("fastvv",)}, "Did you mean 'fastv'"),
        ({"methods": ()}, "0 methods"),
        ({"methods": ("fastv", "fastv")}, "twice"),
        ({"methods": ("fastv:keep_ratio=0.5",)}, "Leave keep_ratio out"),
        ({"methods": ("snapkv",)}, "snapkv"),
        ({"share": 0.0}, "share 0"),
        ({"share": 1.0}, "share 1"),
        ({"share": float("nan")}, "share nan"),
        ({"pairs": 2}, "2 timed pairs"),
        ({"max_new_tokens": 0}, "answers of 0 tokens"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    subject: Subject, picture: Image.Image, wrong: dict[str, Any], said: str
) -> None:
    good: dict[str, Any] = {"images": (picture,), "prompt": QUESTION, "methods": ("fastv",), "share": 0.25}
    with pytest.raises(ConfigError, match=said):
        contend(subject, Contest(**(good | wrong)), Watch())
    with pytest.raises(InputError, match="empty prompt"):
        contend(subject, Contest(**(good | {"prompt": " "})), Watch())
