"""The bundled weights load, answer, and are what the record says."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from vlm_eff.reference import load_reference, reference_folder
from vlm_eff.reference.evaluate import answer_questions, evaluate_reference, scene_samples
from vlm_eff.reference.model import build_model, preset
from vlm_eff.reference.scenes import make_scene, render


@pytest.fixture(scope="module")
def reference():
    return load_reference()


def test_weights_fit_and_all_keys_match():
    folder = reference_folder()
    assert (folder / "model.safetensors").stat().st_size <= 20_000_000
    model, info = LlavaForConditionalGeneration.from_pretrained(folder, output_loading_info=True)
    assert model.dtype == torch.bfloat16
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]


def test_it_is_a_real_llava(reference):
    model, _ = reference
    text = model.config.text_config
    assert type(model) is LlavaForConditionalGeneration
    assert text.num_hidden_layers >= 8
    assert text.num_key_value_heads < text.num_attention_heads
    assert model.config.image_seq_length >= 144
    assert not model.training


def test_it_answers_held_out_questions_and_an_untrained_one_does_not(reference):
    model, processor = reference
    samples = scene_samples("test", 16, first_seed=50_000)
    trained = evaluate_reference(model, processor, samples)
    untrained = evaluate_reference(build_model(preset("small"), processor, 0).eval(), processor, samples)
    assert trained["all"] > 0.7
    assert untrained["all"] < 0.3


def test_a_batch_equals_its_single_rows(reference):
    model, processor = reference
    samples = scene_samples("test", 2, first_seed=60_000)
    together = answer_questions(model, processor, samples)
    alone = [answer_questions(model, processor, [sample])[0] for sample in samples]
    assert together == alone


def test_two_pictures_in_one_prompt_run(reference):
    model, processor = reference
    images = [render(make_scene(seed, "test")) for seed in (1, 2)]
    text = "user: <image> <image> how many objects are there? assistant:"
    inputs = processor(images=[images], text=[text], return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=3, do_sample=False)
    assert output.shape[1] > inputs["input_ids"].shape[1]


def test_record_says_what_was_measured():
    folder = reference_folder()
    record = json.loads((folder / "training_record.json").read_text(encoding="utf-8"))
    for part in ("easy_vqa", "scenes"):
        measured = record["evaluation"][part]
        assert set(measured["accuracy"]) == set(measured["count"])
        assert measured["accuracy"]["all"] > measured["majority_baseline"]["all"]
    assert record["training"]["images_seen"] > 0
    assert AutoProcessor.from_pretrained(folder).tokenizer.padding_side == "left"


def test_importing_the_room_does_not_import_torch():
    code = "import sys, vlm_eff.reference; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
