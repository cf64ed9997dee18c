"""A clip asked bare and with plugins: what is said to be left of each frame is what the handle says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.video.watcher import watching_subject
from vlm_eff import plugin
from vlm_eff.core.errors import CapabilityError, InputError, Stopped
from vlm_eff.demo.work.charts import layer_bars
from vlm_eff.demo.work.clips import drawn_clip
from vlm_eff.demo.work.costs import cost_pairs, layer_rows
from vlm_eff.demo.work.video import ClipAsked, ClipQuestion, ask_clip
from vlm_eff.demo.work.watching import Watch
from vlm_eff.eval.subject import Subject

CHOSEN = drawn_clip(1, "middle", 4)
SECONDS = CHOSEN.clip.timestamps


def asked(subject: Subject, *specs: str, watch: Watch | None = None, question: str = "is there a circle?") -> ClipAsked:
    plugins = {spec: plugin(spec) for spec in specs}
    return ask_clip(subject, ClipQuestion(CHOSEN, question, plugins, max_new_tokens=3), watch or Watch())


def test_frames_are_pictures_for_a_model_without_videos(subject: Subject) -> None:
    heard: list[tuple[str, str]] = []
    told: list[float] = []
    watch = Watch(lambda share, text: told.append(share), lambda who, text: heard.append((who, text)))
    made = asked(subject, "pyramiddrop:layers=[2, 4],keep_ratio=0.5", watch=watch)
    assert made.shown_as == "pictures" and made.frames.layers == 8 and made.frames.seconds == SECONDS
    assert made.report.visual_per_layer == (576,) * 2 + (288,) * 2 + (144,) * 4
    for layer, left in ((0, 4.0), (2, 2.0), (4, 1.0)):
        assert sum(made.frames.shares(layer)) == pytest.approx(left)
    assert len({id(tokens) for tokens in made.frames.tokens}) == 3
    assert made.to_dict()["left_by_layer_and_panel"][4] == list(made.frames.shares(4))
    assert told == sorted(told) and {who for who, _ in heard} == {"bare", "with plugins"}
    assert heard[-1] == ("with plugins", made.arm)
    drawn = made.frames.strip(4)
    assert drawn.width > 4 * 160
    bars = made.frames.chart(4).axes[0]
    assert [bar.get_height() for bar in bars.patches] == pytest.approx(list(made.frames.shares(4)))
    assert all(axes.get_ylim()[0] == 0 for axes in (bars, *layer_bars(layer_rows(made.stats)).axes))


def test_frames_of_a_video_share_their_tokens() -> None:
    made = asked(watching_subject(), "evs:keep_ratio=0.5", question="w20 w21")
    assert made.shown_as == "video" and len(made.frames.pictures) == 2
    assert made.frames.seconds == SECONDS[::2] and "4 frames make 2 panels" in made.said
    assert made.report.visual_tokens == 18 and sum(made.frames.shares(0)) == pytest.approx(1.0)
    # the first frames are kept whole: everything in them is new
    assert made.frames.shares(0)[0] == 1.0
    made.frames.strip(0)


def test_bytes_of_a_compressed_cache_are_those_after_the_answer(subject: Subject) -> None:
    made = asked(subject, "snapkv:keep_count=32")
    held = cost_pairs(made.stats)[2]
    assert held.name == "KV cache" and (held.bare, held.arm) == (made.stats.kv_bytes_bare, made.stats.kv_bytes)
    assert held.arm < held.bare / 4 and made.frames.shares(7) == (1.0,) * 4
    assert layer_rows(made.stats)[1][2] == [32.0] * 8


def test_a_family_without_a_grid_has_frames_and_shares(subject: Subject) -> None:
    frames = asked(subject, "uniform_grid:keep_ratio=0.25").frames
    assert frames.shares(7) == pytest.approx((0.25,) * 4)
    nowhere = torch.full_like(frames.tokens[7].y, -1)
    unknown = replace(frames, tokens=tuple(replace(tokens, y=nowhere, x=nowhere) for tokens in frames.tokens))
    with pytest.raises(CapabilityError, match="no known grid"):
        unknown.strip(7)
    assert unknown.shares(7) == frames.shares(7) and unknown.plain_strip().width == frames.strip(7).width


def test_it_can_be_stopped_and_leaves_the_model_as_it_was(subject: Subject) -> None:
    bare = asked(subject, "uniform_grid").bare
    watch = Watch()

    def stop(who: str, text: str) -> None:
        if who == "with plugins":
            watch.stop.set()

    with pytest.raises(Stopped):
        asked(subject, "uniform_grid", watch=replace(watch, hear=stop))
    assert asked(subject, "uniform_grid").bare == bare
    with pytest.raises(InputError, match="empty prompt"):
        asked(subject, "uniform_grid", question="  ")
