"""deepcache against a UNet's forward written anew, and what it does in runs of every kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from tests.diffusion import unet_reference
from tests.diffusion.checks import relative
from tests.tiny.pipelines import TinyPipeline, make_pipeline, tiny_pipeline, with_scheduler
from vlm_eff import attach
from vlm_eff.core.config import part
from vlm_eff.core.errors import CapabilityError, ConfigError
from vlm_eff.diffusion import deepcache
from vlm_eff.diffusion.policies import quadratic_steps
from vlm_eff.models.denoise import deep as driver
from vlm_eff.models.denoise import unet as described
from vlm_eff.models.denoise.view import UnitView


@dataclass
class Heard:
    """Calls of a UNet: arguments by name, and what it returned."""

    calls: list[tuple[dict[str, Any], Tensor]] = field(default_factory=list)


@contextmanager
def hearing(unet: Any) -> Iterator[Heard]:
    heard = Heard()

    def after(module: Any, args: Any, kwargs: Any, output: Any) -> None:
        named = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)) | kwargs
        keep = {k: v.clone() if isinstance(v, Tensor) else v for k, v in named.items()}
        heard.calls.append((keep, output[0].clone()))

    handle = unet.register_forward_hook(after, with_kwargs=True)
    yield heard
    handle.remove()


def with_unet(**config: Any) -> TinyPipeline:
    """The tiny Stable Diffusion with a UNet of another shape."""
    made = make_pipeline("sd")
    torch.manual_seed(1)
    unet = diffusers.UNet2DConditionModel.from_config({**made.pipe.unet.config, **config}).eval()
    made.pipe.register_modules(unet=unet)
    return made


def with_controlnet() -> TinyPipeline:
    tiny = make_pipeline("sd")
    control = diffusers.ControlNetModel.from_unet(
        tiny.pipe.unet, conditioning_embedding_out_channels=(4,)
    ).requires_grad_(False)
    for name, parameter in control.named_parameters():
        if "controlnet" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    parts = tiny.pipe.components
    pipe = diffusers.StableDiffusionControlNetPipeline(
        **parts, controlnet=control.eval(), requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(4))
    return TinyPipeline("sd", pipe, {**tiny.call, "image": image}, tiny.unguided)


def with_freeu() -> TinyPipeline:
    made = make_pipeline("sd")
    made.pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)
    return made


def skipped_steps_match(tiny: TinyPipeline, branch: int, **call: Any) -> None:
    """Every call returns what the UNet written anew returns, with what came up at the last computed step."""
    with attach(tiny.pipe, deepcache(interval=3, branch=branch)), hearing(tiny.pipe.unet) as heard:
        tiny(4, **call)
    deep = None
    assert len(heard.calls) == 4
    for index, (named, got) in enumerate(heard.calls):
        with torch.no_grad():
            want, came_up = unet_reference.forward(tiny.pipe.unet, branch, deep if index % 3 else None, **named)
        deep = came_up
        assert relative(got, want) < 1e-5, index


MODELS: dict[str, Callable[[], TinyPipeline]] = {
    "sd": lambda: tiny_pipeline("sd"),
    "sdxl": lambda: tiny_pipeline("sdxl"),
    "one layer a block": lambda: with_unet(layers_per_block=1),
    "three layers a block": lambda: with_unet(layers_per_block=3),
    "controlnet": with_controlnet,
    "freeu": with_freeu,
}


@pytest.mark.parametrize("name", MODELS)
def test_skipped_steps_match_the_forward_written_anew(name: str) -> None:
    tiny = MODELS[name]()
    branches = len(described.skip_connections(tiny.pipe.unet))
    # all of them on one model, the ends and the middle on the others
    for branch in range(branches) if name == "sd" else (0, branches // 2, branches - 1):
        skipped_steps_match(tiny, branch)


@pytest.mark.parametrize("branch", [0, 2, 4])
def test_odd_sizes(branch: int) -> None:
    tiny = tiny_pipeline("sd")
    latents = torch.randn(1, 4, 13, 19, generator=torch.Generator().manual_seed(3))
    skipped_steps_match(tiny, branch, latents=latents)
    skipped_steps_match(tiny, branch, latents=latents, guided=False)


def test_one_branch_off_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = driver.deep_modules
    monkeypatch.setattr(driver, "deep_modules", lambda unet, branch: real(unet, branch + 1))
    with pytest.raises(AssertionError):
        skipped_steps_match(tiny_pipeline("sd"), 0)


def test_what_is_skipped_is_read_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_pipeline("sd")
    with attach(tiny.pipe, deepcache(interval=2, branch=1)):
        want = tiny(5)
        real = driver.Form.empty

        def not_a_number(form: Any) -> Any:
            made = real(form)
            for tensor in driver.Streams(made).tensors:
                tensor.fill_(float("nan"))
            return made

        monkeypatch.setattr(driver.Form, "empty", not_a_number)
        assert torch.equal(tiny(5), want)


def computed(tiny: TinyPipeline, plugin: Any, steps: int, **call: Any) -> list[int]:
    with attach(tiny.pipe, plugin) as handle:
        tiny(steps, **call)
    run = handle.stats().runs[-1]
    assert not run.mismatches
    return run.computed_steps


@pytest.mark.parametrize(
    ("scheduler", "steps"),
    # PNDM repeats timesteps and Heun takes two evaluations a step: all are counted as they come
    [("DDIM", 5), ("PNDM", 6), ("HeunDiscrete", 9)],
)
def test_steps_are_counted(scheduler: str, steps: int) -> None:
    tiny = with_scheduler(tiny_pipeline("sd"), scheduler)
    assert computed(tiny, deepcache(interval=2), 5) == list(range(0, steps, 2))


def test_schedules() -> None:
    tiny = tiny_pipeline("sd")
    assert computed(tiny, deepcache(schedule=(0, 1, 4)), 6) == [0, 1, 4]
    # whatever is listed, there is nothing to use at the first step
    assert computed(tiny, deepcache(schedule=(3,)), 6) == [0, 3]
    assert computed(tiny, deepcache(2, schedule="quadratic", centre=0.5), 6) == sorted(quadratic_steps(6, 3, 0.5, 1.4))
    assert sorted(quadratic_steps(12, 4, 0.3, 1.0)) == [0, 3, 6, 9]
    dense = sorted(quadratic_steps(50, 10, 0.3, 1.4))
    assert dense[0] == 0 and len(dense) == 10 and min(b - a for a, b in pairwise(dense)) < 5
    near = min(range(9), key=lambda i: dense[i + 1] - dense[i])
    assert abs(dense[near] - 15) <= 5
    for count in range(1, 9):
        for evaluations in range(1, count + 1):
            assert len(quadratic_steps(count, evaluations, 0.3, 1.4)) == evaluations


def test_a_run_that_starts_late_computes_first() -> None:
    tiny = make_pipeline("sd")
    parts = tiny.pipe.components
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    image = torch.rand(1, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    other = TinyPipeline("sd", pipe, {**tiny.call, "image": image, "strength": 0.7}, tiny.unguided)
    plugin = deepcache(interval=2)
    assert computed(other, plugin, 10) == [0, 2, 4, 6]
    with attach(pipe, plugin):
        first = other(10)
        assert torch.equal(other(10), first)


def test_other_batches_sizes_and_guidance() -> None:
    tiny = tiny_pipeline("sd")
    with attach(tiny.pipe, deepcache(interval=2)):
        first = tiny(5)
        for call in ({"num_images_per_prompt": 3}, {"height": 24, "width": 16}, {"guided": False}):
            assert torch.isfinite(tiny(5, **call)).all()
            assert torch.equal(tiny(5), first)


def test_a_batch_is_its_rows() -> None:
    tiny = tiny_pipeline("sd")
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(7))
    with attach(tiny.pipe, deepcache(interval=3, branch=2)):
        both = tiny(5, num_images_per_prompt=2, latents=noise)
        for row in range(2):
            assert relative(both[row : row + 1], tiny(5, latents=noise[row : row + 1])) < 1e-5


@part
@dataclass(frozen=True)
class FirstRowOnly:
    """Skips every other step of the first image of two alone."""

    def __call__(self, view: UnitView, change: Tensor | None, forced: bool) -> Tensor:
        return torch.arange(view.rows) % 2 == view.step.index % 2 - 1


def rows_are_their_own(branch: int) -> None:
    tiny = tiny_pipeline("sd")
    noise = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(7))
    both: dict[str, Any] = {"num_images_per_prompt": 2, "latents": noise}
    bare = tiny(5, **both)
    with attach(tiny.pipe, deepcache(interval=2, branch=branch)) as handle:
        skipped = tiny(5, **both)
    whole = handle.stats().runs[-1].evaluations
    with attach(tiny.pipe, replace(deepcache(branch=branch), policy=FirstRowOnly(), per_row=True)) as handle:
        got = tiny(5, **both)
    assert relative(got[:1], skipped[:1]) < 1e-5 and relative(got[1:], bare[1:]) < 1e-5
    assert handle.stats().runs[-1].evaluations == pytest.approx((whole + 5) / 2)
    assert relative(got[:1], bare[:1]) > 1e-5


@pytest.mark.parametrize("branch", [0, 4, 8])
def test_rows_are_their_own(branch: int) -> None:
    rows_are_their_own(branch)


def test_rows_that_are_not_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "join", lambda computed, predicted, rows: predicted)
    with pytest.raises(AssertionError):
        rows_are_their_own(0)


def video() -> TinyPipeline:
    tiny = make_pipeline("sd")
    torch.manual_seed(0)
    unet = diffusers.UNetMotionModel(
        sample_size=8,
        block_out_channels=(32, 32),
        cross_attention_dim=16,
        num_attention_heads=2,
        motion_num_attention_heads=2,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
    )
    parts = {"vae": tiny.pipe.vae, "scheduler": tiny.pipe.scheduler, "text_encoder": None, "tokenizer": None}
    pipe = diffusers.AnimateDiffPipeline(**parts, unet=unet.eval(), motion_adapter=None)
    pipe.set_progress_bar_config(disable=True)
    return TinyPipeline("sd", pipe, {**tiny.call, "num_frames": 3, "height": 8, "width": 8}, tiny.unguided)


def test_video() -> None:
    tiny = video()
    bare = tiny(4)
    with attach(tiny.pipe, deepcache(interval=1)):
        assert torch.equal(tiny(4), bare)
    with attach(tiny.pipe, deepcache(interval=2)) as handle:
        first = tiny(4)
        assert 0 < relative(first, bare) < 0.5
        assert torch.equal(tiny(4), first)
    assert handle.stats().runs[-1].evaluations < 4
    frames = replace(deepcache(), policy=FirstRowOnly(), per_row=True)
    with attach(tiny.pipe, frames), pytest.raises(CapabilityError, match="frames"):
        tiny(4)


def test_deeper_branches_are_nearer_and_save_less() -> None:
    tiny = tiny_pipeline("sd")
    bare = tiny(6)
    errors, shares = [], []
    for branch in (0, 4, 8):
        with attach(tiny.pipe, deepcache(interval=3, branch=branch)) as handle:
            errors.append(relative(tiny(6), bare))
            tiny(6)
        shares.append(handle.stats().runs[-1].evaluations / 6)
    assert errors[0] > errors[1] > errors[2] > 0
    assert 1 / 3 < shares[0] < shares[1] < shares[2] < 1


def test_the_report_counts_what_was_computed() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    tiny = make_pipeline("sd")
    with attach(tiny.pipe, deepcache(interval=3)) as handle:
        tiny(6)
        with FlopCounterMode(display=False) as counter:
            tiny(6)
    run = handle.stats().runs[-1]
    modules = counter.get_flop_counts()
    of_unet = sum(modules[type(tiny.pipe.unet).__name__].values())
    assert abs(run.flops - of_unet) / of_unet < 1e-6
    assert run.state_bytes > 0


def test_only_one_tensor_is_kept() -> None:
    tiny = tiny_pipeline("sd")
    sizes = {}
    for predict in ("reuse", "linear"):
        with attach(tiny.pipe, deepcache(interval=2, predict=predict)) as handle:  # type: ignore[arg-type]
            tiny(6)
        sizes[predict] = handle.stats().runs[-1].state_bytes
    # two rows of what comes up to the last layer of the last block: 8 channels
    assert sizes["reuse"] == 2 * 8 * 16 * 16 * 4
    assert sizes["linear"] == 2 * sizes["reuse"]


def test_unknown_settings_are_refused() -> None:
    for wrong in ({"schedule": "cubic"}, {"predict": "guess"}, {"interval": 0}, {"schedule": (-1,)}):
        with pytest.raises(ConfigError):
            deepcache(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="branch=9"):
        attach(tiny_pipeline("sd").pipe, deepcache(branch=9))
