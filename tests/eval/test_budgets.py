"""Budgets on a shallow decoder: layers move forward when they have to, and what cannot be reached is said."""

import pytest

from vlm_eff.core.errors import ConfigError
from vlm_eff.core.plugin import BindContext, Plugin
from vlm_eff.eval.budgets import Sizes, reach
from vlm_eff.eval.calibrate import Knob, calibrate
from vlm_eff.eval.subject import Subject
from vlm_eff.reference.evaluate import answer_questions, scene_samples
from vlm_eff.tokens import random_drop

SIZES = Sizes(visual_tokens=144, num_layers=8)


def layers_of(plugin: Plugin) -> list[int]:
    return [site.layer for site in plugin.bind(BindContext("test", 8)).sites]


def test_a_method_moves_forward_only_when_it_must() -> None:
    assert layers_of(reach("fastv", 72, SIZES)) == [2]
    # two layers of 144 tokens alone are 36 of 8
    assert layers_of(reach("fastv", 36, SIZES)) == [1]
    assert layers_of(reach("pyramiddrop", 72, SIZES)) == [2, 4, 6]
    assert layers_of(reach("pyramiddrop", 30, SIZES)) == [1, 3, 5]
    with pytest.raises(ConfigError, match="18"):
        reach("fastv", 16, SIZES)


def test_a_method_without_a_ratio_is_set_by_its_layer() -> None:
    assert layers_of(reach("vtw", 72, SIZES)) == [4]
    assert layers_of(reach("vtw", 36, SIZES)) == [2]
    with pytest.raises(ConfigError, match="18, 36, 54"):
        reach("vtw", 16, SIZES)


def test_a_knob_is_set_by_measuring(subject: Subject) -> None:
    samples = scene_samples("train", 1)[:2]

    def run() -> None:
        answer_questions(subject.model, subject.processor, samples)

    knob = Knob("keep_ratio", 0.01, 1.0, (("layer", 0),))
    plugin, reached = calibrate(subject.model, random_drop, knob, 48, run)
    assert abs(reached - 48) <= 1 and layers_of(plugin) == [0]
    # the first layer of eight stays whole, so less than 18 is out of reach
    with pytest.raises(ConfigError, match="to 144"):
        calibrate(subject.model, random_drop, Knob("keep_ratio", 0.01, 1.0, (("layer", 1),)), 10, run)
