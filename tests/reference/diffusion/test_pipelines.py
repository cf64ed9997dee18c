"""The bundled diffusion models: unmodified pipelines, real pictures, small files."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiTPipeline,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)

from vlm_eff.core.errors import InputError
from vlm_eff.eval.generated import class_accuracy
from vlm_eff.reference.diffusion import (
    CLASSES,
    class_prompts,
    generate,
    load_classifier,
    load_small_dit_pipeline,
    load_small_unet_pipeline,
    shape_batch,
)
from vlm_eff.reference.diffusion.dit import PIPELINE_NULL
from vlm_eff.reference.diffusion.noise import noise_levels
from vlm_eff.reference.diffusion.weights import card_of, weights_of

LOADERS = {"unet": load_small_unet_pipeline, "dit": load_small_dit_pipeline}
CLASS_OF = {"unet": StableDiffusionPipeline, "dit": DiTPipeline}
LABELS = [place % len(CLASSES) for place in range(40)]


@pytest.fixture(scope="module", params=sorted(LOADERS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def pipeline(kind: str):
    found = LOADERS[kind]()
    found.scheduler = UniPCMultistepScheduler.from_config(found.scheduler.config)
    return found


def accuracy(pipeline, steps: int) -> float:
    pictures = generate(pipeline, LABELS, steps=steps, guidance=2.0)
    return class_accuracy(load_classifier()(pictures), torch.tensor(LABELS))


def network(pipeline) -> torch.nn.Module:
    return pipeline.transformer if isinstance(pipeline, DiTPipeline) else pipeline.unet


def test_pictures_show_their_class_and_without_training_they_do_not(kind: str, pipeline) -> None:
    assert accuracy(pipeline, steps=10) >= 0.85
    with torch.no_grad():
        # saboteur: weights of the right size in the wrong places
        for parameter in network(pipeline).parameters():
            parameter.copy_(parameter.flatten().flip(0).view_as(parameter))
    assert accuracy(pipeline, steps=2) < 0.4


def test_the_pipeline_is_that_of_diffusers(kind: str, pipeline) -> None:
    assert type(pipeline) is CLASS_OF[kind]
    assert type(network(pipeline)).__module__.startswith("diffusers.")
    assert not any(module.training for module in network(pipeline).modules())
    assert all(parameter.dtype == torch.float32 for parameter in network(pipeline).parameters())


def test_a_picture_does_not_depend_on_its_batch(pipeline) -> None:
    together = generate(pipeline, [3, 8], steps=3)
    assert torch.allclose(together[:1], generate(pipeline, [3], steps=3), atol=1e-4)
    assert torch.equal(together, generate(pipeline, [3, 8], steps=3))
    assert not torch.equal(together, generate(pipeline, [3, 8], steps=3, seed=1))


def test_every_output_type_and_another_scheduler_work(kind: str, pipeline) -> None:
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    asked = {"class_labels": [2]} if kind == "dit" else class_prompts([2])
    pictures = {
        form: pipeline(
            **asked, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type=form
        ).images
        for form in ("pt", "np", "pil")
    }
    assert pictures["pil"][0].size == (16, 16)
    assert torch.allclose(pictures["pt"][0].permute(1, 2, 0), torch.from_numpy(pictures["np"][0]))


@pytest.mark.parametrize("scheduler", [DDIMScheduler, PNDMScheduler, UniPCMultistepScheduler, EulerDiscreteScheduler])
def test_a_scheduler_made_from_the_config_starts_at_noise(scheduler: type) -> None:
    own = load_small_unet_pipeline().scheduler
    other = scheduler.from_config(own.config)
    other.set_timesteps(10)
    assert other.timesteps[0] == 999
    assert other.config.prediction_type == "v_prediction"
    assert torch.allclose(other.alphas_cumprod.sqrt(), noise_levels()[0])
    # saboteur: without the name of the spacing, DDIM and PNDM start a tenth of the way down
    forgetful = scheduler.from_config({key: value for key, value in own.config.items() if key != "timestep_spacing"})
    forgetful.set_timesteps(10)
    assert (forgetful.timesteps[0] < 950) == (scheduler in (DDIMScheduler, PNDMScheduler))


def test_latents_of_the_unet_are_pixels() -> None:
    pipeline = load_small_unet_pipeline()
    asked = {**class_prompts([0]), "num_inference_steps": 2}
    forms = [
        pipeline(**asked, generator=torch.Generator().manual_seed(0), output_type=form).images
        for form in ("latent", "pt")
    ]
    assert torch.allclose((forms[0] / 2 + 0.5).clamp(0, 1), forms[1], atol=1e-6)


def test_the_dit_answers_to_names_and_knows_the_empty_class() -> None:
    pipeline = load_small_dit_pipeline()
    assert pipeline.get_label_ids(["warm disc", "cool plus"]) == [0, 9]
    table = pipeline.transformer.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.weight
    assert table[PIPELINE_NULL].abs().sum() > 0
    assert table[len(CLASSES) : PIPELINE_NULL].abs().sum() == 0


def test_an_unknown_class_is_refused() -> None:
    with pytest.raises(InputError, match="Accepted: 0 to 9"):
        class_prompts([10])
    with pytest.raises(InputError, match="Accepted: 0 to 9"):
        generate(load_small_dit_pipeline(), [-1])


@pytest.mark.parametrize("name", ["unet", "dit", "classifier"])
def test_files_are_small_and_their_card_says_how_they_were_made(name: str) -> None:
    assert weights_of(name).stat().st_size <= 4_000_000
    card = json.loads(card_of(weights_of(name)).read_text(encoding="utf-8"))
    assert card["model"] == name
    if name != "classifier":
        real, *rows = card["reached"]
        assert {"seed", "steps", "batch_size", "learning_rate"} <= set(card["training"]["starts"][0])
        assert real["sampler"] == "real pictures" and real["pictures"] == rows[0]["pictures"]
        assert rows[0]["accuracy"] >= 0.9


def test_the_classifier_knows_held_out_pictures() -> None:
    pictures, labels = shape_batch(5, 500, "test")
    judge = load_classifier()
    assert class_accuracy(judge(pictures), labels) > 0.99
    assert judge.features(pictures).shape == (500, 64)
    # saboteur: the wrong family of colours
    assert class_accuracy(judge(pictures.flip(1)), labels) < 0.2


def test_importing_needs_no_diffusers() -> None:
    code = (
        "import sys; sys.modules['diffusers'] = None\n"
        "import vlm_eff, vlm_eff.reference.diffusion as d, vlm_eff.eval.shape_quality\n"
        "assert d.load_classifier() is not None\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_diffusers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"vlm-eff\[diffusion\]"):
        load_small_unet_pipeline()
