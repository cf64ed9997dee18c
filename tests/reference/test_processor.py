"""The tokenizer and the processor give the model what it was trained on."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from vlm_eff.reference import reference_folder
from vlm_eff.reference.model import VISUAL_TOKENS
from vlm_eff.reference.scenes import make_scene, questions, render
from vlm_eff.reference.vocabulary import build_processor

CHAT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Where is the red circle?"}]}]


@pytest.fixture(scope="module")
def processor():
    return build_processor()


def test_round_trip(processor):
    for text in ("top left", "where is the red circle ?", "7"):
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert processor.tokenizer.decode(ids, skip_special_tokens=True) == text


def test_scene_and_easy_vqa_questions_have_no_unknown_words(processor):
    texts = {f"{q.text} {q.answer}" for seed in range(300) for q in questions(make_scene(seed, "test"), 0)}
    texts |= {"does the image not contain a teal shape?", "is no rectangle present?", "what is the color of the shape?"}
    unknown = processor.tokenizer.unk_token_id
    for text in texts:
        assert unknown not in processor.tokenizer(text)["input_ids"], text


def test_one_image_becomes_144_placeholders(processor):
    image = render(make_scene(0, "test"))
    inputs = processor(images=image, text="user: <image> where is the word? assistant:", return_tensors="pt")
    token = processor.tokenizer.convert_tokens_to_ids("<image>")
    assert VISUAL_TOKENS == 144
    assert int((inputs["input_ids"] == token).sum()) == VISUAL_TOKENS
    assert inputs["pixel_values"].shape == (1, 3, 96, 96)


def test_chat_template_is_the_trained_prompt(processor):
    text = processor.apply_chat_template(CHAT, add_generation_prompt=True)
    plain = "user: <image> where is the red circle? assistant:"
    assert processor.tokenizer(text)["input_ids"] == processor.tokenizer(plain)["input_ids"]


def test_pictures_are_resized_without_cropping(processor):
    wide = np.zeros((64, 128, 3), dtype=np.uint8)
    wide[:, -16:] = 255  # a centre crop would lose this edge
    pixels = processor.image_processor(images=Image.fromarray(wide), return_tensors="pt")["pixel_values"][0]
    assert pixels.shape == (3, 96, 96)
    assert bool((pixels[:, :, -6:] > 1).all())
    assert bool((pixels[:, :, :78] < 0).all())


def test_bundled_processor_is_the_built_one(processor):
    from transformers import AutoProcessor

    bundled = AutoProcessor.from_pretrained(reference_folder())
    assert bundled.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert bundled.patch_size == 8
    assert bundled.num_additional_image_tokens == 1
    assert bundled.vision_feature_select_strategy == "default"
    assert bundled.apply_chat_template(CHAT, add_generation_prompt=True) == processor.apply_chat_template(
        CHAT, add_generation_prompt=True
    )
