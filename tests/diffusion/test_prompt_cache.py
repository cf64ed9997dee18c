"""Runs that resume: bit for bit where the earlier run ended, and nowhere that they should not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from tests.tiny.pipelines import TinyPipeline, make_pipeline, tiny_pipeline, with_scheduler
from vlm_eff import attach
from vlm_eff.core.errors import CapabilityError, ConfigError, InputError
from vlm_eff.diffusion import PromptStore, forecast, prompt_cache, sampler
from vlm_eff.diffusion.prompt_start import pooled
from vlm_eff.diffusion.prompt_store import similarity
from vlm_eff.models.denoise import start
from vlm_eff.models.denoise.start import Point, Trajectory

HALF = ((0.9, 0.5),)
SCHEDULERS = (
    "DDIM",
    "EulerDiscrete",
    "DPMSolverMultistep",
    "UniPCMultistep",
    "PNDM",
    "HeunDiscrete",
    "EulerAncestralDiscrete",
)


def other_prompt(tiny: TinyPipeline, amount: float) -> dict[str, Any]:
    """The prompt, moved away by some noise."""
    noise = torch.randn(tiny.call["prompt_embeds"].shape, generator=torch.Generator().manual_seed(5))
    return {"prompt_embeds": tiny.call["prompt_embeds"] + amount * noise}


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_same_prompt_resumes_bit_for_bit(scheduler: str) -> None:
    tiny = with_scheduler(tiny_pipeline("sd"), scheduler)
    want = tiny(8)
    with attach(tiny.pipe, prompt_cache(HALF)) as handle:
        assert torch.equal(tiny(8), want)
        # the noise of the earlier run comes with its latents; what is drawn later is the seed's
        assert torch.equal(tiny(8), want)
        assert torch.equal(tiny(8, seed=3), want) or scheduler == "EulerAncestralDiscrete"
    first, second, _ = handle.stats().runs
    assert first.evaluations == first.evaluations_bare and first.notes["hit"] == 0
    left = round(0.5 * second.steps)
    assert second.evaluations == second.steps - left and second.notes["evaluations_saved"] == left
    assert second.notes["similarity"] == 1.0 and second.notes["steps_left_out"] == left


@pytest.mark.parametrize("family", ["dit", "sd3", "flux", "wan"])
def test_families(family: str) -> None:
    tiny = tiny_pipeline(family)
    want = tiny(6)
    with attach(tiny.pipe, prompt_cache(HALF)) as handle:
        tiny(6)
        assert torch.equal(tiny(6, seed=9), want)
    run = handle.stats().runs[-1]
    # two calls a step are told apart only after one step was computed
    assert run.evaluations == (2 * 4 if family in ("flux", "wan") else 3)


def test_a_history_that_is_forgotten_goes_red(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = with_scheduler(tiny_pipeline("sd"), "DPMSolverMultistep")
    want = tiny(8)
    monkeypatch.setattr(start, "_remembered", lambda scheduler, tables: {})
    with attach(tiny.pipe, prompt_cache(HALF)):
        tiny(8)
        assert not torch.equal(tiny(8), want)


def test_another_prompt_is_computed_and_near_ones_by_tiers() -> None:
    tiny = make_pipeline("sd")
    far, near = other_prompt(tiny, 3.0), other_prompt(tiny, 0.02)
    want = tiny(6, **far)
    with attach(tiny.pipe, prompt_cache(((0.98, 0.3), (1.0, 0.5)))) as handle:
        tiny(6)
        assert torch.equal(tiny(6, **far), want)
        tiny(6, **near)
        tiny(6)
    notes = [run.notes for run in handle.stats().runs]
    assert [note["steps_left_out"] for note in notes] == [0, 0, 2, 3]
    assert notes[1]["similarity"] < 0.9 and 0.98 < notes[2]["similarity"] < 1 == notes[3]["similarity"]


def test_a_gate_that_lets_all_in_goes_red(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_pipeline("sd")
    far = other_prompt(tiny, 3.0)
    want = tiny(6, **far)
    monkeypatch.setattr("vlm_eff.diffusion.prompt_store.similarity", lambda one, other: 1.0)
    with attach(tiny.pipe, prompt_cache(HALF)):
        tiny(6)
        assert not torch.equal(tiny(6, **far), want)


@pytest.mark.parametrize("change", ["steps", "guidance", "size", "scheduler", "negative"])
def test_other_settings_are_other_runs(change: str) -> None:
    tiny = make_pipeline("sd")
    with attach(tiny.pipe, prompt_cache(HALF)) as handle:
        tiny(6)
        if change == "scheduler":
            tiny.pipe.scheduler = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1, beta_end=0.015)
        more: dict[str, Any] = {
            "guidance": {"guidance_scale": 3.0},
            "size": {"height": 24, "width": 24},
            "negative": {"negative_prompt_embeds": -tiny.call["negative_prompt_embeds"]},
        }.get(change, {})
        tiny(5 if change == "steps" else 6, **more)
    assert handle.stats().runs[-1].notes["hit"] == 0


def test_branches_of_sequential_guidance_are_all_compared() -> None:
    tiny = make_pipeline("flux")
    other = {"negative_prompt_embeds": -tiny.call["negative_prompt_embeds"]}
    want, plain = tiny(6, **other), tiny(6, guided=False)
    with attach(tiny.pipe, prompt_cache(HALF)):
        tiny(6)
        assert torch.equal(tiny(6, **other), want)
        assert torch.equal(tiny(6, guided=False), plain)


def test_the_trajectory_as_key_tells_seeds_apart() -> None:
    tiny = tiny_pipeline("sd")
    want = tiny(6, seed=4)
    with attach(tiny.pipe, prompt_cache(HALF, look=1, key="trajectory")) as handle:
        first = tiny(6)
        assert torch.equal(tiny(6, seed=4), want)
        assert torch.equal(tiny(6), first)
    assert [run.notes["steps_left_out"] for run in handle.stats().runs] == [0, 0, 2]


def test_a_key_of_ones_own() -> None:
    tiny = tiny_pipeline("sd")

    def key(given: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"none": torch.ones(1, 2)}

    with attach(tiny.pipe, prompt_cache(HALF, key=key)) as handle:
        tiny(6)
        tiny(6, **other_prompt(tiny, 3.0))
    assert handle.stats().runs[-1].notes["hit"] == 1


def test_stores_are_shared_saved_and_loaded(tmp_path: Path) -> None:
    one, other = make_pipeline("sd"), make_pipeline("sd")
    for tiny in (one, other):
        tiny.pipe.scheduler = diffusers.UniPCMultistepScheduler()
    store = PromptStore()
    with attach(one.pipe, prompt_cache(HALF, store=store)):
        want = one(6)
    assert len(store) == 1 and (store.hits, store.misses) == (0, 1) and store.bytes > 0
    with attach(other.pipe, prompt_cache(HALF, store=store)) as handle:
        assert torch.equal(other(6), want)
    assert handle.stats().runs[-1].notes["hit"] == 1 and store.hits == 1
    store.save(tmp_path / "store.safetensors")
    read = PromptStore.load(tmp_path / "store.safetensors")
    assert read.bytes == store.bytes
    with attach(other.pipe, prompt_cache(HALF, store=read)):
        assert torch.equal(other(6), want)
    assert read.hits == 1
    # other weights are another model
    with torch.no_grad():
        next(iter(other.denoiser.parameters())).mul_(1.5)
    with attach(other.pipe, prompt_cache(HALF, store=store)) as handle:
        other(6)
    assert handle.stats().runs[-1].notes["hit"] == 0


def test_what_others_approximate_is_kept_apart() -> None:
    tiny, store = tiny_pipeline("sd"), PromptStore()
    want = tiny(6)
    with attach(tiny.pipe, forecast(interval=2), prompt_cache(HALF, store=store)):
        tiny(6)
    with attach(tiny.pipe, prompt_cache(HALF, store=store)):
        assert torch.equal(tiny(6), want)
    assert len(store) == 2 and store.hits == 0


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, str(tmp_path / "other.safetensors"))
    with pytest.raises(InputError, match="no prompt store"):
        PromptStore.load(tmp_path / "other.safetensors")
    whole = (tmp_path / "other.safetensors").read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"[1, 2]"):
        (tmp_path / "broken.safetensors").write_bytes(broken)
        with pytest.raises(InputError, match="no prompt store"):
            PromptStore.load(tmp_path / "broken.safetensors")
    with pytest.raises(InputError, match="no prompt store"):
        PromptStore.load(tmp_path / "nowhere.safetensors")


def entry(key: float, steps: tuple[int, ...]) -> Trajectory:
    points = {step: Point(torch.zeros(10), {"history": [None, torch.zeros(5)]}) for step in steps}
    return Trajectory("s", {"k": torch.tensor([[key, 1.0]])}, 10, points)


def test_what_saved_least_goes_first() -> None:
    # a point is 60 bytes, a key 8
    store = PromptStore(max_bytes=4 * 60 + 2 * 8)
    one, two = entry(0.0, (2, 5)), entry(1.0, (2, 5))
    store.add(one)
    store.add(two)
    assert (len(store), store.bytes, store.evicted) == (2, 256, 0)
    for _ in range(3):
        store.use(one, 2)
    store.add(entry(2.0, (4,)))
    # worth 8 5 | 2 5 | 4: the early point of the second, then the new one
    assert (set(one.points), set(two.points), len(store), store.evicted) == ({2, 5}, {5}, 2, 2)
    few = PromptStore(max_entries=2)
    for key in range(3):
        few.add(entry(float(key), (2 + key,)))
    assert len(few) == 2 and few.find("s", {"k": torch.tensor([[0.0, 1.0]])})[1] < 1
    few.add(entry(2.0, (7,)))
    assert len(few) == 2
    few.clear()
    assert few.bytes == 0


def test_likeness() -> None:
    a = {"x": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "n": torch.tensor([[3]])}
    assert similarity(a, {name: part.clone() for name, part in a.items()}) == 1.0
    turned = {**a, "x": torch.tensor([[1.0, 0.0], [1.0, 1.0]])}
    assert similarity(a, turned) == pytest.approx(0.5**0.5)
    # longer, but of the same direction: near, and not the same
    assert 0.99 < similarity(a, {**a, "x": 2 * a["x"]}) < 1
    for other in ({**a, "n": torch.tensor([[4]])}, {"x": a["x"]}, {**a, "x": a["x"][:1]}, {**a, "x": -a["x"]}):
        assert similarity(a, other) == 0.0
    given = {"words": torch.ones(2, 5, 3), "one": torch.ones(4), "mask": torch.ones(2, 5, dtype=torch.long)}
    assert {name: tuple(part.shape) for name, part in pooled(given).items()} == {
        "words": (2, 3),
        "one": (1, 4),
        "mask": (2, 5),
    }


def test_it_composes() -> None:
    tiny = tiny_pipeline("sd")
    with attach(tiny.pipe, forecast(interval=2), prompt_cache(HALF), sampler("unipc")) as handle:
        tiny(8)
        made = tiny(8)
    run = handle.stats().runs[-1]
    assert torch.isfinite(made).all() and run.scheduler == "UniPCMultistepScheduler"
    assert [call.computed for call in run.calls] == [0, 0, 0, 0, 1, 0, 1, 0]


def test_refusals() -> None:
    for wrong in ({"tiers": ((0.9, 1.0),)}, {"tiers": ((0.0, 0.5),)}, {"key": "words"}, {"key": "trajectory"}):
        with pytest.raises(ConfigError, match="Accepted"):
            prompt_cache(**wrong)
    with pytest.raises(ConfigError):
        PromptStore(max_bytes=0)
    tiny = make_pipeline("sd")
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**tiny.pipe.components, requires_safety_checker=False)
    with pytest.raises(CapabilityError, match="image"):
        attach(pipe, prompt_cache())
