"""Adaptive pooling against torch's own, on images and videos, and what it leaves alone."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool3d

from tests.contracts import checks, kit
from tests.contracts.checks_sets import entry_embeds
from tests.tiny import VIDEO_FAMILIES, TinyInputs, tiny_inputs, visual_layout, visual_mask
from tests.tokens.hand_made import hand_view
from vlm_eff.core.errors import ConfigError
from vlm_eff.importance.keep import Keep
from vlm_eff.models.visual import VisualSpans
from vlm_eff.tokens import adaptive_pool
from vlm_eff.tokens.reduce.grid_pool import GridPool


def blocks(inputs: TinyInputs, row: int, joined: bool) -> list[tuple[Tensor, tuple[int, int, int]]]:
    """Positions of each tile of a row, or of each video where frames are `joined`, with their grid."""
    found: dict[object, list[tuple[int, int, int, int]]] = {}
    cells, mask = visual_layout(inputs.family, inputs)[row], visual_mask(inputs)[row]
    for cell, position in zip(cells, mask.nonzero()[:, 0].tolist(), strict=True):
        if not cell["newline"]:
            key = cell["image"] if joined else (cell["image"], cell["frame_or_tile"])
            found.setdefault(key, []).append((cell["frame_or_tile"], cell["y"], cell["x"], position))
    made = []
    for block in found.values():
        first = min(frame for frame, *_ in block)
        shape = tuple(max(cell[axis] for cell in block) + 1 - (first if axis == 0 else 0) for axis in range(3))
        made.append((torch.tensor([position for *_, position in sorted(block)]), shape))
    return made  # type: ignore[return-value]


def compare(family: str, inputs: TinyInputs, rows: int, columns: int, frames: int | None, joined: bool) -> None:
    model, seen = kit.model_of(family), []
    embeds, candidates = entry_embeds(model, inputs), checks.image_tokens(family, inputs)
    plugin = adaptive_pool(rows=rows, columns=columns, frames=frames)
    written = kit.written(model, inputs, plugin)[0]
    for row in range(len(inputs["input_ids"])):
        want = []
        for positions, (time, height, width) in blocks(inputs, row, joined):
            assert len(positions) == time * height * width
            table = embeds[row, positions].view(time, height, width, -1).permute(3, 0, 1, 2)
            shape = (min(frames or time, time), min(rows, height), min(columns, width))
            want.append(adaptive_avg_pool3d(table, shape).flatten(1).T)
        got = [written[row][position] for position in sorted(written[row]) if candidates[row, position]]
        if want:
            torch.testing.assert_close(torch.stack(got), torch.cat(want))
        seen.append(len(got))
    assert sum(seen) < int(candidates.sum())


@pytest.mark.parametrize("shape", [(2, 2), (3, 2), (1, 1)])
@pytest.mark.parametrize("family", ["llava", "internvl", "qwen2_5_vl"])
def test_images_are_pooled_as_torch_does(family: str, shape: tuple[int, int]) -> None:
    compare(family, tiny_inputs(family, (1, 2, 0)), *shape, frames=None, joined=False)


@pytest.mark.parametrize("shape", [(1, 2, 2), (1, 99, 99), (2, 1, 2)])
@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_videos_are_pooled_over_time_as_well(family: str, shape: tuple[int, int, int]) -> None:
    frames, rows, columns = shape
    compare(family, tiny_inputs(family, (1, 1), video=True), rows, columns, frames, joined=True)


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_time_can_be_left_alone(family: str) -> None:
    compare(family, tiny_inputs(family, (1, 1), video=True), 1, 2, None, joined=False)


def grid_view(time: int, height: int, width: int, hidden: Tensor) -> object:
    """One video in one row whose hidden states [N, D] are given."""
    made = hand_view([(time * height * width,)], hidden[None])
    t, y, x = (
        axis.flatten()[None] for axis in torch.meshgrid(*map(torch.arange, (time, height, width)), indexing="ij")
    )
    spans = VisualSpans(made.spans.slot, made.spans.valid, torch.zeros_like(t), t, y, x, t)
    object.__setattr__(made, "spans", spans)
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(3, 2, 2), (2, 3, 4), (1, 1, 1), (5, 7, 3)])
def test_the_mean_of_a_constant_is_that_constant(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    token = torch.randn(6, generator=torch.Generator().manual_seed(0)).to(dtype)
    view = grid_view(7, 7, 5, token.expand(7 * 7 * 5, -1))
    made = GridPool(shape[1], shape[2], shape[0])(view, Keep(count=1), None)  # type: ignore[arg-type]
    assert made is not None
    assert made.index.shape[1] == min(7, shape[0]) * min(7, shape[1]) * min(5, shape[2])
    assert made.hidden.dtype == dtype  # type: ignore[attr-defined]
    assert torch.equal(made.hidden[0], token.expand(made.index.shape[1], -1))  # type: ignore[attr-defined]
    # every token counts once, however many windows it is in
    assert float(made.weight.sum()) == pytest.approx(7 * 7 * 5)  # type: ignore[attr-defined]
    assert made.index[0].tolist() == sorted(set(made.index[0].tolist()))


def test_a_grid_that_fits_is_left_untouched() -> None:
    view = grid_view(2, 3, 4, torch.randn(24, 6))
    assert GridPool(3, 4, 2)(view, Keep(count=1), None) is None  # type: ignore[arg-type]
    assert GridPool(99, 99)(view, Keep(count=1), None) is None  # type: ignore[arg-type]
    assert GridPool(3, 4, 1)(view, Keep(count=1), None) is not None  # type: ignore[arg-type]


def test_an_unknown_grid_is_a_line() -> None:
    view = hand_view([(10, 3)])
    made = GridPool(2, 2)(view, Keep(count=1), None)
    assert made is not None
    # the second image is smaller than its grid
    assert made.index[0].tolist() == [1, 3, 6, 8, 10, 11, 12]
    hidden = view.visual_hidden()[0]
    torch.testing.assert_close(made.hidden[0, 1], hidden[2:5].mean(0))  # type: ignore[attr-defined]


def test_what_was_got_counts_as_asked() -> None:
    run = kit.attached(kit.model_of("llava"), tiny_inputs("llava", (1, 2)), adaptive_pool(rows=2, columns=3))
    last = run.handle.stats().last
    assert last is not None and last.n_eq == last.n_eq_asked == 1.5 * 6


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"columns": 1.5}, {"frames": 0}, {"rows": True}], ids=str)
def test_what_is_no_grid_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="Accepted: a whole number"):
        adaptive_pool(**wrong)  # type: ignore[arg-type]
