"""The built model itself; runs only where `vlm-eff reference build smol` was run (`make smol` does both)."""

from __future__ import annotations

import pytest

from vlm_eff.eval.loading import load_subject
from vlm_eff.eval.perplexity import perplexities, text_windows
from vlm_eff.eval.subject import Subject
from vlm_eff.kvcache import kivi
from vlm_eff.reference.evaluate import evaluate_reference, scene_samples
from vlm_eff.reference.smol import built_in, smol_folder
from vlm_eff.tokens import fastv

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not built_in(smol_folder()), reason="smol is not built on this machine: make smol"),
]


@pytest.fixture(scope="module")
def subject() -> Subject:
    return load_subject("smol", device="cpu")


def test_it_answers_about_held_out_scenes(subject: Subject) -> None:
    asked = [sample for sample in scene_samples("test", 6) if sample.question.family in ("colour", "shape", "size")]
    assert len(asked) >= 12
    assert evaluate_reference(subject.model, subject.processor, asked)["all"] > 0.6


def test_it_takes_plugins(subject: Subject) -> None:
    from vlm_eff import attach

    sample = scene_samples("test", 1)[0]
    inputs = subject.inputs([sample.image], sample.question.text)
    with attach(subject.model, fastv(keep_ratio=0.5)) as handle:
        assert subject.answer(inputs, max_new_tokens=3)
        assert handle.stats().prefills[0].n_eq < 50


def test_eight_bits_keep_its_perplexity(subject: Subject) -> None:
    text = "The capital of France is Paris, a city on the river Seine. It has about two million inhabitants. " * 2
    ids = subject.processor.tokenizer(text, return_tensors="pt").input_ids[0]
    scores = perplexities(subject.model, text_windows(ids, len(ids), 1), 34, {"kivi": kivi(bits=8, residual=32)})
    assert scores["kivi"].bytes_ratio < 1
    assert scores["kivi"].perplexity == pytest.approx(scores["bare"].perplexity, rel=0.05)
