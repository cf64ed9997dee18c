"""Questions answered out of a compressed cache: a full one loses nothing, and policies do not meet one another."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import pytest
import torch
from transformers import DynamicCache

import vlm_eff
from vlm_eff import attach
from vlm_eff.core.plugin import Plugin
from vlm_eff.eval.cut_prompts import Ends
from vlm_eff.eval.kv_questions import prefilled
from vlm_eff.eval.kv_settings import SHARES, acts_on_cache_alone, kv_settings
from vlm_eff.eval.loading import load_subject
from vlm_eff.eval.subject import Subject
from vlm_eff.kvcache import random_evict, snapkv, streaming_llm
from vlm_eff.reference.evaluate import Sample, answer_questions, scene_samples

ENDS: tuple[Ends, ...] = ("seen", "unseen")


@pytest.fixture(scope="module")
def bundled() -> Subject:
    return load_subject(None, device="cpu")


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return scene_samples("test", 2)


def said(subject: Subject, samples: Sequence[Sample], policies: Sequence[Plugin], ends: Ends) -> list[dict[int, str]]:
    """Answers by question, of the full cache and of each policy."""
    with prefilled(subject, {"scenes": samples}, policies, ends) as questions:
        made = []
        for policy in (None, *questions.policies):
            questions.choose(policy)
            pairs = [
                pair for batch in questions.batches for pair in zip(batch.samples, questions.say(batch), strict=True)
            ]
            made.append({id(sample): answer for sample, answer in pairs})
    return made


@pytest.mark.parametrize("ends", ENDS)
def test_a_full_cache_answers_as_generate_does(bundled: Subject, samples: list[Sample], ends: Ends) -> None:
    bare, everything = said(bundled, samples, [random_evict(keep_ratio=1.0)], ends)
    expected = answer_questions(bundled.model, bundled.processor, samples)
    assert bare == {id(sample): answer for sample, answer in zip(samples, expected, strict=True)}
    assert everything == bare


@pytest.mark.parametrize("ends", ENDS)
def test_the_first_token_of_an_answer_comes_out_of_the_compressed_cache(
    bundled: Subject, samples: list[Sample], ends: Ends
) -> None:
    with prefilled(bundled, {"scenes": samples}, [random_evict(keep_ratio=0.02), snapkv(window=4)], ends) as questions:
        full = questions.answer(None)
        little, some = (questions.answer(policy) for policy in questions.policies)
        again = questions.answer(None)
    assert full.accuracy["scenes"]["all"] > 0.8 and full == again
    assert little.accuracy["scenes"]["all"] < full.accuracy["scenes"]["all"] - 0.3
    assert 0.02 < little.entries_ratio < 0.04 and 0.02 < little.bytes_ratio < 0.05
    assert 0.2 <= some.entries_ratio < 0.22
    assert full.bytes_ratio == full.entries_ratio == 1


@pytest.mark.parametrize("ends", ENDS)
def test_a_policy_among_others_answers_as_if_alone(bundled: Subject, samples: list[Sample], ends: Ends) -> None:
    policies = [snapkv(keep_ratio=0.1, window=4), streaming_llm(keep_ratio=0.2), random_evict(keep_ratio=0.05)]
    together = said(bundled, samples[:6], policies, ends)[1:]
    for policy, found in zip(policies, together, strict=True):
        expected = [alone(bundled, sample, policy, ends) for sample in samples[:6]]
        assert [found[id(sample)] for sample in samples[:6]] == expected


def alone(subject: Subject, sample: Sample, policy: Plugin, ends: Ends) -> str:
    """The same answer, with nothing shared: one question, its own handle and cache."""
    prompt = f"user: <image> {sample.question.text} assistant:"
    inputs = subject.processor(images=[sample.image], text=[prompt], return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    split = len(ids) - 2 if ends == "seen" else ids.index(subject.model.config.image_token_id) + 144
    cache, answer = DynamicCache(config=subject.model.config.get_text_config()), []
    end = subject.model.generation_config.eos_token_id
    with attach(subject.model, policy), torch.no_grad():
        subject.model(input_ids=torch.tensor([ids[:split]]), pixel_values=inputs["pixel_values"], past_key_values=cache)
        waiting = ids[split:]
        while len(answer) < 4 and (not answer or answer[-1] != end):
            logits = subject.model(input_ids=torch.tensor([[waiting.pop(0)]]), past_key_values=cache).logits
            if not waiting:
                answer.append(int(logits[0, -1].argmax()))
                waiting.append(answer[-1])
    return str(subject.processor.decode(answer, skip_special_tokens=True)).strip()


def test_every_method_of_the_cache_has_settings() -> None:
    settings = kv_settings()
    methods = {name for name, method in vlm_eff.methods().items() if method.room == "kvcache"}
    assert {setting.plugin.name for setting in settings if acts_on_cache_alone(setting.plugin)} <= methods
    assert {setting.spec.partition(":")[0] for setting in settings} == methods
    assert len({setting.spec for setting in settings}) == len(settings)
    for setting in settings:
        assert vlm_eff.plugin(setting.spec) == setting.plugin
    by_share = {name for name in methods if "keep_ratio" in inspect.signature(vlm_eff.methods()[name].make).parameters}
    for name in by_share:
        assert [setting.column for setting in settings if setting.label == name] == list(SHARES)
    assert [one.label for one in kv_settings(("snapkv",))] == ["snapkv"] * len(SHARES)
