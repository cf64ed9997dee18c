"""Prompts in two parts: together they are the whole prompt, and the cut lies where it is said to."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from vlm_eff.core.errors import InputError
from vlm_eff.eval.cut_prompts import cut_prompts
from vlm_eff.eval.loading import load_subject
from vlm_eff.eval.subject import Row, Subject
from vlm_eff.reference.evaluate import scene_samples

SHORT, LONG = "what color is the circle?", "what color is the object in the top center?"


@pytest.fixture(scope="module")
def bundled() -> Subject:
    return load_subject(None, device="cpu")


def rows(*questions: str) -> list[Row]:
    image = scene_samples("test", 1)[0].image
    return [Row((image,), question) for question in questions]


@pytest.mark.parametrize(
    ("ends", "words"), [(None, []), ("seen", ["assistant:"]), ("unseen", [f"{SHORT} assistant:"] * 2)]
)
def test_both_parts_are_the_prompt_and_the_rest_begins_where_it_should(
    bundled: Subject, ends: str | None, words: list[str]
) -> None:
    asked = rows(SHORT, SHORT)
    whole, cut = bundled.batch(asked), cut_prompts(bundled, asked, ends)  # type: ignore[arg-type]
    assert torch.equal(torch.cat((cut.inputs["input_ids"], cut.rest), 1), whole["input_ids"])
    assert cut.inputs["attention_mask"].shape == cut.inputs["input_ids"].shape
    assert torch.equal(cut.inputs["pixel_values"], whole["pixel_values"])
    tokenize = bundled.processor.tokenizer
    expected = [tokenize(text, add_special_tokens=False).input_ids for text in words] or [[]]
    assert cut.rest.tolist() == (expected * 2)[:2]


def test_padded_prompts_are_cut_where_they_end_alike(bundled: Subject) -> None:
    seen = cut_prompts(bundled, rows(SHORT, LONG), "seen")
    assert not seen.inputs["attention_mask"].all() and (seen.rest[0] == seen.rest[1]).all()
    with pytest.raises(InputError, match="tokens behind their last picture"):
        cut_prompts(bundled, rows(SHORT, LONG), "unseen")


def test_a_template_that_does_not_tell_what_asks_is_cut_by_one_token(bundled: Subject) -> None:
    processor = copy.copy(bundled.processor)
    # says something else in front where it asks for an answer
    processor.chat_template = "{% if add_generation_prompt %}what {% endif %}" + processor.chat_template
    assert cut_prompts(replace(bundled, processor=processor), rows(SHORT), "seen").rest.shape == (1, 1)
