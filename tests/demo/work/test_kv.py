"""A question with a compressed cache: the picture, the charts and the numbers tell the same."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vlm_eff import plugin
from vlm_eff.core.errors import ConfigError, InputError, Stopped
from vlm_eff.demo.work.image import Question
from vlm_eff.demo.work.kv import CacheAsked, ask_cache
from vlm_eff.demo.work.kv_charts import bytes_chart, kept_chart
from vlm_eff.demo.work.watching import Watch
from vlm_eff.eval.kv_plot import errors_figure
from vlm_eff.eval.subject import Subject

WHITE = Image.new("RGB", (96, 96), "white")


def asked(subject: Subject, *specs: str, watch: Watch | None = None) -> CacheAsked:
    plugins = {spec: plugin(spec) for spec in specs}
    return ask_cache(subject, Question((WHITE,), "is there a circle?", plugins, 3), watch or Watch())


def test_the_picture_shows_what_the_chart_counts(subject: Subject) -> None:
    heard: list[str] = []
    made = asked(subject, "snapkv:keep_ratio=0.3", watch=Watch(hear=lambda who, text: heard.append(who)))
    assert (
        made.heads == 1
        and set(heard) == {"bare", "with plugins"}
        and list(made.errors.policies) == ["snapkv:keep_ratio=0.3"]
    )
    text, visual = (axes.images[0].get_array() for axes in kept_chart(made.kept).axes[:2])
    assert np.allclose(visual, made.kept.share("visual")) and np.allclose(text, made.kept.share("text"))
    assert 0 < visual[5, 0] < 0.3
    picture = np.asarray(made.cells(5, 0).convert("L"))[8 : 8 + 384, 8 : 8 + 384]
    assert (picture > 128).mean() == pytest.approx(float(visual[5, 0]), abs=1e-6)
    found = made.to_dict()
    assert found["kept"]["visual"][5] == [pytest.approx(visual[5, 0])] and found["bytes"][5]["layer"] == 5
    for layer, head in ((8, None), (0, 1), (-1, 0)):
        with pytest.raises(InputError, match="key heads 0 to 0"):
            made.cells(layer, head)


def test_bars_begin_at_zero_and_bits_are_shown_where_they_were_saved(subject: Subject) -> None:
    made = asked(subject, "snapkv:keep_ratio=0.9", "visual_quant")
    policies, together = made.errors.policies, "snapkv:keep_ratio=0.9 + visual_quant"
    assert list(policies) == [together, "snapkv:keep_ratio=0.9", "visual_quant"]
    assert policies[together].bytes < policies["visual_quant"].bytes
    assert made.kept.mean_bits("text") == (32.0,) * 8 and max(made.kept.mean_bits("visual")) < 32
    figure = bytes_chart(made.kept)
    assert len(figure.axes) == 3 and all(axes.get_ylim()[0] == 0 for axes in figure.axes)
    assert len(bytes_chart(asked(subject, "snapkv:keep_ratio=0.9").kept).axes) == 1
    heights = [bar.get_height() for bar in figure.axes[0].patches]
    assert heights == [one.bytes_bare for one in made.kept.layers] + [one.bytes for one in made.kept.layers]
    errors = errors_figure(made.errors)
    assert len(errors.axes[0].lines) == 3 and errors.axes[0].get_ylim()[0] == 0


@pytest.mark.parametrize(("specs", "word"), [(("fastv",), "fastv"), (("zipvl",), "zipvl_attention")])
def test_what_acts_elsewhere_is_refused(subject: Subject, specs: tuple[str, ...], word: str) -> None:
    with pytest.raises(ConfigError, match=f"{word}, which acts elsewhere than on the cache"):
        asked(subject, *specs)


def test_it_can_be_stopped(subject: Subject) -> None:
    watch = Watch()
    watch.stop.set()
    with pytest.raises(Stopped):
        asked(subject, "snapkv", watch=watch)
