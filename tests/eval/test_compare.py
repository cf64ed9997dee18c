"""One question bare and with plugins."""

import pytest
import torch
from PIL import Image

from vlm_eff.core.errors import ConfigError, InputError
from vlm_eff.core.handle import Handle
from vlm_eff.eval.compare import compare
from vlm_eff.eval.subject import Subject
from vlm_eff.tokens import fastv, uniform_grid

PICTURE = Image.effect_noise((64, 64), 80).convert("RGB")


def test_arms_are_relative_to_the_bare_model(subject: Subject) -> None:
    plugins = {"all": fastv(keep_ratio=1.0), "few": uniform_grid(keep_ratio=0.25)}
    found = compare(subject, [PICTURE], "what is it?", plugins, max_new_tokens=3, pairs=0)
    everything, few = found.arms
    assert everything.same_answer and everything.answer == found.bare_answer
    assert (everything.n_eq, everything.n_eq_asked, everything.visual_tokens) == (144, 144, 144)
    assert everything.prefill_flops_ratio == everything.kv_bytes_ratio == 1
    assert (few.n_eq, few.n_eq_asked) == (36, 36)
    text = subject.inputs([PICTURE], "what is it?")["input_ids"].shape[1] - 144
    shorter = (36 + text) / (144 + text)
    assert few.kv_bytes_ratio == pytest.approx(shorter)
    # linear maps shrink like the sequence, attention like its square
    assert shorter**2 < few.prefill_flops_ratio < shorter
    assert few.time_to_first_token is None
    assert found.timing == "CPU, ratios only"
    assert found.to_dict()["arms"][1]["n_eq"] == 36


def test_each_plugin_is_alone_and_taken_off_again(subject: Subject) -> None:
    seen: dict[str, tuple[str, ...]] = {}

    def watch(name: str, handle: Handle) -> None:
        assert handle.attached
        seen[name] = handle.stats().plugins

    plugins = {"one": fastv(keep_ratio=0.5), "two": uniform_grid(keep_ratio=0.5)}
    hooks = [len(layer._forward_pre_hooks) for layer in subject.model.get_decoder().layers]
    compare(subject, [PICTURE], "what is it?", plugins, max_new_tokens=2, pairs=0, watch=watch)
    assert seen == {"one": ("fastv",), "two": ("uniform_grid",)}
    assert [len(layer._forward_pre_hooks) for layer in subject.model.get_decoder().layers] == hooks


def test_bare_arm_of_the_timing_is_bare(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    decoder = subject.model.get_decoder()
    hook = decoder.layers[-1].mlp.register_forward_hook(lambda module, args, output: lengths.append(args[0].shape[1]))
    try:
        plugins = {"few": uniform_grid(keep_ratio=0.25)}
        found = compare(subject, [PICTURE], "what is it?", plugins, max_new_tokens=1, pairs=3, warmup=0)
    finally:
        hook.remove()
    assert found.arms[0].time_to_first_token is not None
    full, short = max(lengths), min(lengths)
    assert full - short == 144 - 36
    # the answers: one bare, one not; then three pairs of one each
    assert lengths[:2] == [full, short]
    assert sorted(lengths[2:]) == [short] * 3 + [full] * 3


def test_nothing_to_compare_is_refused(subject: Subject) -> None:
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare(subject, [PICTURE], "what is it?", {})


def test_inputs_place_every_image(subject: Subject) -> None:
    two = subject.inputs([PICTURE, PICTURE], "what is it?")
    assert int((two["input_ids"] == subject.model.config.image_token_index).sum()) == 288
    assert two["pixel_values"].dtype == torch.float32
    with pytest.raises(InputError, match="prompt without an image"):
        subject.inputs([], "what is it?")


def test_processor_without_a_template_gets_plain_text(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject.processor, "chat_template", None)
    inputs = subject.inputs([PICTURE], "what is it?")
    assert int((inputs["input_ids"] == subject.model.config.image_token_index).sum()) == 144
    text = subject.processor.decode(inputs["input_ids"][0], skip_special_tokens=True)
    assert "what is it" in text and "assistant" not in text
