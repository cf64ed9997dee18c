"""What the image tab computes, against the handle of the same question."""

import threading
from typing import Any, cast

import pytest
import torch

import vlm_eff
from tests.tiny import tiny_inputs, tiny_vlm
from vlm_eff.core.errors import Stopped
from vlm_eff.demo.work.charts import Pair, layer_bars, pair_bars
from vlm_eff.demo.work.image import Looked, Question, cost_chart, layers_chart, look, tower_pictures
from vlm_eff.demo.work.watching import Watch
from vlm_eff.eval.subject import Subject
from vlm_eff.reference.scenes import make_scene, render

IMAGE = render(make_scene(3, "test"))


def ask(subject: Subject, *specs: str, watch: Watch | None = None) -> Looked:
    question = Question((IMAGE,), "what word is written?", {spec: vlm_eff.plugin(spec) for spec in specs}, 4)
    return look(subject, question, watch or Watch())


def test_pictures_follow_the_layers(subject: Subject) -> None:
    found = ask(subject, "pyramiddrop:layers=(2,4,6)")
    assert len(found.kept) == 8
    distinct = [found.kept[layer][0].tobytes() for layer in (0, 2, 4, 6)]
    assert len(set(distinct)) == 4 and found.kept[1] is found.kept[0] and found.kept[7] is found.kept[6]
    assert not found.tower and not found.times


def test_merged_tokens_say_how_many_they_stand_for(subject: Subject) -> None:
    inputs = subject.inputs([IMAGE], "what word is written?")
    with vlm_eff.attach(subject.model, vlm_eff.plugin("visionzip:keep_ratio=0.25")) as handle:
        subject.answer(inputs, max_new_tokens=1)
        tokens = handle.visual(7)[0]
    assert tokens.kept.sum() == 36
    assert (tokens.weight[~tokens.kept] == 0).all() and (tokens.weight[tokens.kept] >= 1).all()
    # dominant tokens stand for themselves, the contextual ones for all others
    assert tokens.weight.sum() == pytest.approx(144) and (tokens.weight > 1).sum() <= 0.15625 * 36 + 1


def test_the_tower_is_drawn_apart(subject: Subject) -> None:
    found = ask(subject, "tome:r=4")
    assert len(found.tower) == 1 and found.tower[0].tobytes() != found.kept[0][0].tobytes()
    assert len({id(layer) for layer in found.kept}) == 1, "behind the tower every token is there again"


def test_a_tower_whose_patches_are_joined_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = tiny_vlm("qwen2_5_vl"), tiny_inputs("qwen2_5_vl")
    with vlm_eff.attach(model, vlm_eff.plugin("tome:r=2")) as handle, torch.no_grad():
        model(**inputs)
        count = len(handle.tower_groups(0))
        assert handle.stats().towers
        assert tower_pictures(cast("Subject", None), [IMAGE] * count, handle) == ()


def test_bars_start_at_zero_and_show_what_was_counted(desk: Any) -> None:
    # the bundled model: its answer has a second token, before which the cache is compressed
    found = ask(desk.subject, "uniform_grid:keep_ratio=0.25", "snapkv:keep_ratio=0.2")
    for chart in (cost_chart(found), layers_chart(found)):
        assert all(axes.get_ylim()[0] == 0 for axes in chart.axes)
    entries = [bar.get_height() for bar in layers_chart(found).axes[1].containers[1]]
    prompt = next(one for one in found.stats.compressions if one.when == "prompt")
    assert entries == pytest.approx(list(prompt.after))
    bars = pair_bars([Pair("a", "b", 4, 1)], "x").axes[0].containers[0]
    assert [bar.get_height() for bar in bars] == [4, 1]
    assert len(layer_bars([("a", [1, 1], [1, 0])]).axes[0].containers) == 2


def test_stopping_leaves_the_model_bare(subject: Subject) -> None:
    stop = threading.Event()
    before = subject.answer(subject.inputs([IMAGE], "what?"), max_new_tokens=4)
    heard: list[str] = []

    def hear(who: str, text: str) -> None:
        heard.append(who)
        if who != "bare":
            stop.set()

    with pytest.raises(Stopped):
        ask(subject, "fastv:keep_ratio=0.2", watch=Watch(hear=hear, stop=stop))
    assert "bare" in heard
    assert subject.answer(subject.inputs([IMAGE], "what?"), max_new_tokens=4) == before
