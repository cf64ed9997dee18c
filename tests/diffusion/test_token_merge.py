"""Merged tokens inside denoisers: against matrices written by hand, on every family."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.diffusion.checks import relative
from tests.diffusion.merge_oracle import merged_by_hand
from tests.tiny.pipelines import PIPELINES, TinyPipeline, tiny_pipeline, with_scheduler
from vlm_eff import attach
from vlm_eff.core.plugin import Plugin
from vlm_eff.diffusion import forecast, tome_sd
from vlm_eff.models.denoise import merged_call

# tokens of the blocks that merge, and the grid they lie on
GRIDS = {
    "sd": {256: (1, 16, 16)},
    "sdxl": {64: (1, 8, 8)},
    "dit": {16: (1, 4, 4)},
    "pixart": {16: (1, 4, 4)},
    "sd3": {64: (1, 8, 8)},
    "flux": {64: (1, 8, 8)},
    "wan": {8: (2, 2, 2)},
}
EVERYTHING = tome_sd(min_tokens=0, cross_attention=True, mlp=True, max_downsample=8)


def by_hand(tiny: TinyPipeline, ratio: float, steps: int = 2) -> Tensor:
    with merged_by_hand(tiny.denoiser, GRIDS[tiny.family], ratio):
        return tiny(steps)


def close(tiny: TinyPipeline, want: Tensor, plugin: Plugin, steps: int = 2) -> bool:
    with attach(tiny.pipe, plugin) as handle:
        got = tiny(steps)
    assert any(name.startswith("tokens ") and " to " in name for name in handle.stats().runs[-1].notes)
    return relative(got, want) < 2e-5


@pytest.mark.parametrize("family", PIPELINES)
def test_it_equals_matrices_by_hand(family: str) -> None:
    tiny = tiny_pipeline(family)
    want = by_hand(tiny, 0.5)
    assert relative(tiny(2), want) > 1e-4
    assert close(tiny, want, tome_sd(0.5, random=False, min_tokens=0))


def _no_positions(inner: Any, call: Any, tables: Any, home: Tensor) -> Any:
    name, text = tables
    cut = tuple(table[: text + home.shape[1]] for table in call[name])
    return merged_call.Streams(inner(**{**call, name: cut}))


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_saboteurs_are_found(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = tiny_pipeline(family)
    want, plugin = by_hand(tiny, 0.5), tome_sd(0.5, random=False, min_tokens=0)
    assert not close(tiny, want, tome_sd(0.5, min_tokens=0)), "another pattern"
    assert not close(tiny, want, tome_sd(0.45, random=False, min_tokens=0)), "another ratio"
    own = merged_call.merge_tokens

    def first_of(hidden: Tensor, into: Tensor, count: int) -> Any:
        fewer, size = own(hidden, into, count)
        return fewer * (1 + 0.01 * (size[:, :, None] > 1)), size

    with monkeypatch.context() as patch:
        patch.setattr(merged_call, "merge_tokens", first_of)
        assert not close(tiny, want, plugin), "no mean"
    if family == "flux":
        monkeypatch.setattr(merged_call, "_row_by_row", _no_positions)
        assert not close(tiny, want, plugin), "positions of other tokens"


def _counted(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("family", PIPELINES)
@pytest.mark.parametrize("plugin", [tome_sd(min_tokens=0), EVERYTHING], ids=["self", "everything"])
def test_the_report_counts_what_is_computed(family: str, plugin: Plugin) -> None:
    tiny = tiny_pipeline(family)
    with attach(tiny.pipe, forecast(interval=1)) as handle:
        tiny(2)
    bare = handle.stats().runs[-1].flops_bare
    own, counted = type(tiny.denoiser).forward, []

    # the signature tells which argument are the latents
    @functools.wraps(own)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        made: list[Any] = []
        counted.append(_counted(lambda: made.append(own(self, *args, **kwargs))))
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(tiny.denoiser), "forward", forward)
        with attach(tiny.pipe, plugin) as handle:
            tiny(2)
    run = handle.stats().runs[-1]
    assert run.flops_bare == bare
    assert run.flops == pytest.approx(sum(counted), rel=1e-9)
    assert run.flops < bare


def _calls(family: str, rows: int, size: tuple[int, int]) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(7)
    words = torch.randn(rows, 5, 16, generator=draw)
    if family == "sd":
        latents = torch.randn(rows, 4, *size, generator=draw)
        return {"sample": latents, "timestep": torch.tensor(500), "encoder_hidden_states": words}
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(size[0]).float(), torch.arange(size[1]).float())
    return {
        "hidden_states": torch.randn(rows, size[0] * size[1], 16, generator=draw),
        "encoder_hidden_states": words,
        "pooled_projections": torch.randn(rows, 16, generator=draw),
        "timestep": torch.full((rows,), 0.5),
        "img_ids": places,
        "txt_ids": torch.zeros(5, 3),
    }


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_odd_grids_and_rows_on_their_own(family: str) -> None:
    tiny = tiny_pipeline(family)
    call = _calls(family, 3, (7, 9))
    with torch.no_grad(), merged_by_hand(tiny.denoiser, {63: (1, 7, 9)}, 0.5):
        want = tiny.denoiser(**call)[0]
    with torch.no_grad(), attach(tiny.pipe, tome_sd(0.5, random=False, min_tokens=0)):
        got = tiny.denoiser(**call)[0]
    assert relative(got, want) < 2e-5
    with torch.no_grad(), attach(tiny.pipe, tome_sd(0.5, min_tokens=0)):
        got = tiny.denoiser(**call)[0]
        rows = []
        for row in range(3):
            one = {k: v[row : row + 1] if v.dim() and v.shape[0] == 3 else v for k, v in call.items()}
            rows.append(tiny.denoiser(**one)[0])
    assert relative(torch.cat(rows), got) < 2e-5


def test_noise_of_the_pipeline_is_left_alone() -> None:
    tiny = with_scheduler(tiny_pipeline("sd"), "EulerAncestralDiscrete")

    def states(run: Callable[..., Any]) -> tuple[Tensor, Tensor]:
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(4)
        run(**tiny.call, generator=generator, num_inference_steps=3, output_type="latent")
        return torch.get_rng_state(), generator.get_state()

    want = states(tiny.pipe)
    with attach(tiny.pipe, tome_sd(min_tokens=0)):
        got = states(tiny.pipe)
    for one, other in zip(want, got, strict=True):
        assert torch.equal(one, other)
