"""Which tokens merge, when, and what is left alone and said so."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch

from tests.diffusion.checks import relative
from tests.tiny.pipelines import tiny_pipeline
from vlm_eff import attach
from vlm_eff.core.denoise import Step
from vlm_eff.core.errors import CapabilityError, ConfigError
from vlm_eff.diffusion import forecast, tome_sd
from vlm_eff.diffusion.token_merge import ImportantPool, OneACell
from vlm_eff.importance.bipartite import match_into
from vlm_eff.models.denoise import guidance_change
from vlm_eff.models.denoise.merged_call import why_not
from vlm_eff.models.denoise.view import Call, TokenView


def view(grid: tuple[int, int, int], step: int = 1, **more: Any) -> TokenView:
    tokens = grid[0] * grid[1] * grid[2]
    hidden = torch.randn(2, tokens, 8, generator=torch.Generator().manual_seed(0))
    call = Call("unet", Step(step, 10, 500.0, 1.0, 0.0), 0, hidden, {})
    given: dict[str, Any] = {"change": None, "notes": {}} | more
    return TokenView(hidden, grid, 0, 1, 1, 1, call, given["change"], given["notes"])


@pytest.mark.parametrize("grid", [(1, 8, 8), (1, 7, 9), (3, 5, 4)])
def test_one_token_of_each_cell_may_take_in_others(grid: tuple[int, int, int]) -> None:
    split = OneACell()(view(grid), 0.5)
    assert split is not None
    frames, rows, columns = grid
    goals = split.goals[0].tolist()
    cells = {(goal // (rows * columns), goal % (rows * columns) // columns // 2, goal % columns // 2) for goal in goals}
    assert len(cells) == len(goals) == frames * (rows // 2) * (columns // 2)
    assert sorted([*goals, *split.sources[0].tolist()]) == list(range(frames * rows * columns))
    other = OneACell()(view(grid, step=2), 0.5)
    again = OneACell()(view(grid), 0.5)
    assert other is not None and again is not None
    assert not torch.equal(split.goals, other.goals) and torch.equal(split.goals, again.goals)
    assert OneACell()(view((1, 1, 9)), 0.5) is None


def test_unimportant_tokens_go_whatever_they_are_like() -> None:
    change = torch.arange(64.0).repeat(2, 1)
    change[1] = change[1].flip(0)
    seen = view((1, 8, 8), change=change)
    split = ImportantPool(pool=1.25)(seen, 0.5)
    assert split is not None and split.first is not None
    # 32 are left, 40 are in the pool, 16 of these take in others
    assert split.goals.shape == (2, 16) and int(split.first.sum()) == 2 * 24
    assert int(split.goals[0].min()) >= 24 and int(split.goals[1].max()) < 40
    home, into = match_into(seen.tokens, split.goals, split.sources, 32, split.first)
    assert int(home[0].min()) >= 24 and int(home[1].max()) < 40 and into.max() == 31
    for row in range(2):
        assert torch.equal(into[row, home[row]], torch.arange(32))
        assert set(into[row].tolist()) == set(range(32))


@pytest.mark.parametrize("family", ["sd", "pixart", "sd3", "flux", "wan"])
def test_guidance_of_the_step_before_is_seen(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, seen = tiny_pipeline(family), []
    own = guidance_change.GuidanceChange.of

    def of(self: Any, step: int, grid: Any, rows: int) -> Any:
        change = own(self, step, grid, rows)
        seen.append((step, change, grid[0] * grid[1] * grid[2], rows))
        return change

    monkeypatch.setattr(guidance_change.GuidanceChange, "of", of)
    plugin = tome_sd(min_tokens=0, importance="guidance")
    with attach(tiny.pipe, plugin) as handle:
        first = tiny(3)
        assert torch.equal(tiny(3), first)
    assert all((change is None) == (step == 0) for step, change, _, _ in seen)
    later = [(change, tokens, rows) for _, change, tokens, rows in seen if change is not None]
    assert all(change.shape == (rows, tokens) and change.max() > 0 for change, tokens, rows in later)
    assert relative(tiny(3), first) > 0
    assert any(" to " in name for name in handle.stats().runs[-1].notes)


def test_it_is_the_difference_of_both_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny, seen, made = tiny_pipeline("sd"), [], []
    own = ImportantPool.__call__

    def spy(self: ImportantPool, view: TokenView, ratio: float) -> Any:
        seen.append((view.step.index, view.change))
        return own(self, view, ratio)

    monkeypatch.setattr(ImportantPool, "__call__", spy)
    hook = tiny.denoiser.register_forward_hook(lambda module, args, output: made.append(output[0]))
    with attach(tiny.pipe, tome_sd(min_tokens=0, importance="guidance")):
        tiny(3)
    hook.remove()
    for step, change in seen:
        if step > 0:
            one, other = made[step - 1].chunk(2)
            want = (one - other).abs().mean(1).flatten(1)
            assert torch.allclose(change, torch.cat([want, want]), atol=1e-6)


@pytest.mark.parametrize("family", ["sd", "flux"])
def test_a_run_without_guidance_is_refused(family: str) -> None:
    tiny = tiny_pipeline(family)
    with (
        attach(tiny.pipe, tome_sd(min_tokens=0, importance="guidance")),
        pytest.raises(CapabilityError, match="guidance"),
    ):
        tiny(3, guided=False)
    with attach(tiny.pipe, tome_sd(min_tokens=0)):
        tiny(2, guided=False)


def test_small_blocks_are_left_alone_and_it_is_said() -> None:
    tiny = tiny_pipeline("dit")
    want = tiny(2)
    with attach(tiny.pipe, tome_sd()) as handle:
        assert torch.equal(tiny(2), want)
    run = handle.stats().runs[-1]
    assert run.notes == {"tokens": 1.0, "tokens 16 left as they are": 6.0} and run.evaluations == run.evaluations_bare
    with attach(tiny.pipe, tome_sd(min_tokens=0, steps=(0.5, 1.0))) as handle:
        tiny(2)
    notes = handle.stats().runs[-1].notes
    assert notes == {"tokens": 0.75, "tokens 16 left as they are": 3.0, "tokens 16 to 8": 3.0}


def test_masks_and_other_shapes_are_left_alone() -> None:
    hidden = torch.zeros(2, 6, 4)
    assert why_not({"hidden_states": hidden}, (2, 6), 0) is None
    assert why_not({"hidden_states": hidden, "attention_mask": torch.ones(2, 6)}, (2, 6), 0) == "masked"
    text = {"encoder_hidden_states": torch.zeros(2, 3, 4), "attention_mask": torch.ones(2, 1, 3)}
    assert why_not({"hidden_states": hidden, **text}, (2, 6), 0) is None
    assert why_not({"hidden_states": hidden}, (4, 6), 0) == "of other rows"
    assert why_not({"hidden_states": hidden}, (2, 5), 0) == "of another shape"
    assert why_not({"hidden_states": hidden}, (2, 4), 2) is None


def test_with_a_mask_the_block_computes_as_before() -> None:
    tiny = tiny_pipeline("sd")
    call = {
        "sample": torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": tiny.call["prompt_embeds"],
    }
    block = tiny.denoiser.down_blocks[0].attentions[0].transformer_blocks[0]
    mask = torch.zeros(1, 256)
    hook = block.attn1.register_forward_pre_hook(lambda m, a, k: (a, {**k, "attention_mask": mask}), with_kwargs=True)
    with torch.no_grad(), attach(tiny.pipe, tome_sd(min_tokens=0)) as handle:
        tiny.denoiser(**call)
    hook.remove()
    assert handle.stats().runs[-1].notes["tokens 256 left masked"] == 1


def test_it_stands_beside_a_forecast() -> None:
    tiny = tiny_pipeline("sd")
    with attach(tiny.pipe, tome_sd(min_tokens=0)) as alone:
        tiny(6)
    with attach(tiny.pipe, tome_sd(min_tokens=0), forecast(interval=2)) as handle:
        tiny(6)
    share = alone.stats().runs[-1].evaluations / 6
    assert handle.stats().runs[-1].evaluations == pytest.approx(3 * share, rel=1e-6)


def test_what_it_cannot_do_is_refused() -> None:
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )
    pipe = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())
    with pytest.raises(CapabilityError, match="UNet2DModel"):
        attach(pipe, tome_sd())
    for wrong in (
        {"ratio": 1.5},
        {"stride": (0, 2)},
        {"importance": "text"},
        {"steps": (0.8, 0.2)},
        {"attention": False},
    ):
        with pytest.raises(ConfigError):
            tome_sd(**wrong)
