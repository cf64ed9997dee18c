"""Plugins under what transformers builds around a model: its pipeline, and decoding with an assistant.

Prompt lookup and the candidates of assisted prefills are held for every method in tests/contracts/test_modes.py.
"""

from typing import Any

import pytest
import torch
from transformers import pipeline

from tests.contracts.snapshot import assert_unchanged, snapshot
from vlm_eff import attach
from vlm_eff.kvcache import snapkv
from vlm_eff.reference.model import Preset, build_model
from vlm_eff.reference.scenes import make_scene, render
from vlm_eff.reference.vocabulary import build_processor
from vlm_eff.tokens import pyramiddrop

PLUGIN = pyramiddrop(keep_ratio=0.3)
TEXT = "user: <image> what word is written? assistant:"
OPTIONS = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    """A model of random weights and its processor, as a user has them."""
    processor = build_processor()
    return build_model(Preset(32, 2, 2, 32, 8, 2, 1, 16, 64), processor, seed=0).eval(), processor


def asked(processor: Any) -> Any:
    return processor(images=render(make_scene(3, "test")), text=TEXT, return_tensors="pt")


def test_a_pipeline_answers_as_its_model_does(tiny: tuple[Any, Any]) -> None:
    model, processor = tiny
    inputs = asked(processor)
    bare = model.generate(**inputs, **OPTIONS)
    plugins = (PLUGIN, snapkv(keep_ratio=0.5))
    with attach(model, *plugins):
        want = model.generate(**inputs, **OPTIONS)
    assert not torch.equal(want, bare)
    before = snapshot(model)
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    with attach(pipe, *plugins) as handle:
        (said,) = pipe(images=render(make_scene(3, "test")), text=TEXT, generate_kwargs=OPTIONS, return_full_text=False)
    new = want[0, inputs["input_ids"].shape[1] :]
    assert said["generated_text"].split() == processor.decode(new, skip_special_tokens=True).split()
    assert handle.stats().calls == OPTIONS["max_new_tokens"] and handle.stats().compressions
    assert_unchanged(before, model)


@pytest.mark.parametrize("who", ["a smaller model", "the model itself"])
def test_an_assistant_changes_no_token(tiny: tuple[Any, Any], who: str) -> None:
    """Its candidates are verified on a cache that lacks tokens; an assistant of its own carries no plugin."""
    model, processor = tiny
    inputs = asked(processor)
    with attach(model, PLUGIN) as handle:
        want = model.generate(**inputs, **OPTIONS)
    alone = handle.stats()
    small = build_model(Preset(32, 2, 2, 32, 2, 2, 1, 16, 64), processor, seed=0).eval()
    assistant = small if who == "a smaller model" else model
    with attach(model, PLUGIN) as handle:
        got = model.generate(**inputs, **OPTIONS, assistant_model=assistant)
    assert torch.equal(got, want)
    assert not torch.equal(got, model.generate(**inputs, **OPTIONS))
    assert alone.prefills[0].stages in [one.stages for one in handle.stats().prefills]
    if assistant is small:
        assert handle.stats().calls < alone.calls, "no candidate was accepted"
