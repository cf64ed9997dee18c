"""PixelPrune keeps the cells that a loop over the grid keeps, in towers alone and in VLMs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.contracts.kit import attached, bare, forward, model_of, same
from tests.models.test_lone_towers import TOWERS, output, pixels, timm_tower
from tests.oracle import masked_logits
from tests.tiny import FAMILIES, TinyInputs, tiny_inputs, visual_layout, visual_mask
from tests.tower_oracle import dropped
from vlm_eff import attach
from vlm_eff.core.errors import ConfigError, ConflictError
from vlm_eff.importance.predict import predicted_cells
from vlm_eff.models.adapter import adapter_for
from vlm_eff.tokens import pixelprune, tome, uniform_grid


def loop(cells: Tensor, tau: float) -> list[list[bool]]:
    """Kept cells, one after the other, with reconstructed neighbours."""
    seen, kept = cells.clone(), []
    for y in range(cells.shape[0]):
        kept.append([])
        for x in range(cells.shape[1]):
            same = lambda a, b: float((a - b).abs().max()) <= tau  # noqa: E731
            if y == 0 and x == 0:
                kept[y].append(True)
                continue
            guess = seen[y, x - 1] if y == 0 else seen[y - 1, x] if x == 0 else None
            if guess is None:
                left, above, corner = seen[y, x - 1], seen[y - 1, x], seen[y - 1, x - 1]
                guess = above if same(corner, left) and not same(corner, above) else left
            kept[y].append(not same(cells[y, x], guess))
            if not kept[y][x]:
                seen[y, x] = guess
    return kept


def picture(values: int = 3, height: int = 9, width: int = 11, seed: int = 0) -> Tensor:
    """Rectangles and noise of a few values."""
    made = torch.zeros(height, width, 2)
    made[2:6, 3:8] = 1
    spots = torch.randint(0, height * width, (6,), generator=torch.Generator().manual_seed(seed))
    made.view(-1, 2)[spots] = torch.arange(6)[:, None].float() % values
    return made


@pytest.mark.parametrize("seed", range(8))
def test_equals_the_loop(seed: int) -> None:
    cells = picture(seed=seed)
    kept, stands = predicted_cells(cells)
    assert kept.tolist() == loop(cells, 0.0)
    assert torch.equal(predicted_cells(cells, 1e-9)[0], kept)
    flat = cells.flatten(0, 1)
    assert torch.equal(flat[stands.flatten()], flat) and kept.flatten()[stands.flatten()].all()
    noisy = cells + 0.1 * torch.rand(cells.shape, generator=torch.Generator().manual_seed(seed))
    assert predicted_cells(noisy, 0.07)[0].tolist() == loop(noisy, 0.07)


def test_simple_pictures() -> None:
    assert predicted_cells(torch.ones(6, 7, 4))[0].sum() == 1
    unique = torch.arange(42.0).view(6, 7, 1)
    assert predicted_cells(unique)[0].all()
    # a rectangle needs cells at its corners only, whatever its size
    for size in (12, 24):
        square = torch.zeros(size, size, 1)
        square[3 : size - 3, 3 : size - 3] = 1
        assert predicted_cells(square)[0].sum() <= 8
    ramp = torch.linspace(0, 1, 20)[None, :, None].repeat(5, 1, 1)
    counts = [int(predicted_cells(ramp, tau)[0].sum()) for tau in (0.0, 0.06, 0.11, 0.3, 1.0)]
    assert counts == sorted(counts, reverse=True) and counts[-1] == 1
    # steps below the tolerance do not add up: nobody is further from what stands for it than the tolerance
    stands = predicted_cells(ramp, 0.11)[1].flatten()
    flat = ramp.flatten(0, 1)
    assert (flat[stands] - flat).abs().max() <= 0.11


def repeated(images: Tensor, patch: int = 8) -> Tensor:
    """The same images with their two middle rows and two columns of patches repeated."""
    made = images.clone()
    made[..., 2 * patch : 3 * patch, :] = made[..., patch : 2 * patch, :]
    made[..., 3 * patch : 4 * patch] = made[..., 2 * patch : 3 * patch]
    return made


@pytest.mark.parametrize("name", TOWERS)
def test_towers_alone(name: str) -> None:
    model, images = TOWERS[name](), repeated(pixels(3))
    images[2] = pixels(1)[0]
    unique = pixels(2)
    bare_unique = output(model, unique)
    with attach(model, pixelprune()) as handle:
        assert torch.equal(output(model, unique), bare_unique)
        made = output(model, images)
        left = handle.stats().towers[-1].left
        alone = torch.cat([output(model, image[None]) for image in images])
    torch.testing.assert_close(made, alone, atol=1e-4, rtol=1e-4)
    prefix = handle.stats().towers[-1].tokens[0] - 49
    # images of different fill share a batch: 7 x 7 cells, one row and one column of copies
    assert left == (36 + prefix, 36 + prefix, 49 + prefix)


def test_equals_a_tower_that_never_saw_the_copies() -> None:
    model, images = timm_tower(), repeated(pixels(2))
    with torch.no_grad(), attach(model, pixelprune()) as handle:
        got = model.forward_features(images)
    slot, place = handle.tower_groups(0)[0]
    with torch.no_grad():
        entered = model.norm_pre(model._pos_embed(model.patch_embed(images)))[:, place]
        want = model.norm(model.blocks(entered))
    torch.testing.assert_close(got[:, place], want, atol=1e-5, rtol=1e-4)
    assert torch.equal(got[0], got[0][place][slot])


def copies(family: str) -> TinyInputs:
    """Inputs whose images have equal cells: all values of the left half of every image are set to one number."""
    inputs = tiny_inputs(family, (1, 2))
    values = inputs["pixel_values"]
    if values.dim() == 2:
        inputs["pixel_values"] = torch.where((torch.arange(len(values)) % 48 < 24)[:, None], 0.5, values)
    else:
        # images of zeros are padding (Idefics3)
        shown = (values != 0).flatten(-3).any(-1)[..., None, None, None]
        left = torch.arange(values.shape[-1]) < values.shape[-1] // 2
        inputs["pixel_values"] = torch.where(shown & left, 0.5, values)
    return inputs


@pytest.mark.parametrize("family", FAMILIES)
def test_vlms_drop_the_same_cells_in_tower_and_decoder(family: str) -> None:
    model, inputs = model_of(family), copies(family)
    adapter = adapter_for(model)
    run = attached(model, inputs, pixelprune())
    groups = [run.handle.tower_groups(block) for block in range(len(adapter.blocks))]
    gone = torch.zeros_like(inputs["input_ids"], dtype=torch.bool)
    for index, row in enumerate(run.handle.survivors(0)):
        gone[index] = inputs["attention_mask"][index].bool()
        gone[index, row] = False
    assert gone.any() and not (gone & ~visual_mask(inputs)).any()
    # at full length: hide the copies in the tower, and what they became in the decoder
    hidden = [[_frozen(slot, place) for slot, place in block] for block in groups]
    with dropped(adapter.blocks, hidden, {0: "before"}):
        want = masked_logits(model, inputs, dict.fromkeys(range(6), gone))
    keep = inputs["attention_mask"].bool() & ~gone
    if family not in ("llava_next", "llava_onevision"):
        # these resize and cut maps of patches, so that a token may be made of kept and dropped ones
        same(run.logits[keep], want[keep], 1e-4)
    assert (run.logits[keep] - bare(model, inputs)[keep]).abs().max() > 1e-3


def _frozen(slot: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Groups in which a copy is dropped: it never enters, though it gets the feature of its original back."""
    own = place[slot] == torch.arange(len(slot))
    return torch.where(own, slot, -1), place


@pytest.mark.parametrize("family", ["llava", "paligemma", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_decoder_keeps_what_the_loop_over_pixels_keeps(family: str) -> None:
    model, inputs = model_of(family), copies(family)
    handle = attached(model, inputs, pixelprune()).handle
    pictures = inputs["pixel_values"]
    start, number = 0, 0
    for row, (cells, mask) in enumerate(zip(visual_layout(family, inputs), visual_mask(inputs), strict=True)):
        want: list[bool] = []
        for image in sorted({cell["image"] for cell in cells}):
            own = [cell for cell in cells if cell["image"] == image]
            high, wide = (max(cell[axis] for cell in own) + 1 for axis in ("y", "x"))
            if pictures.dim() == 2:
                values = pictures[start : start + high * wide * 4].unflatten(1, (3, 2, -1))[:, :, 0]
                grid = values.unflatten(0, (high, wide, 4)).flatten(2)
                start += high * wide * 4
            else:
                grid = pictures[number].unfold(1, 4, 4).unfold(2, 4, 4).permute(1, 2, 0, 3, 4).flatten(2)
                number += 1
            want += [kept for line in loop(grid, 0.0) for kept in line]
        places = mask.nonzero()[:, 0][torch.tensor(want)]
        left = handle.survivors(0)[row]
        assert torch.equal(left[mask[left]], places)


def test_units_of_tau() -> None:
    """With std the tolerance is in pixels of [0, 1]: 0.1 of a pixel is 0.2 after division by 0.5."""
    model, images = timm_tower(), pixels(1)
    images[..., 8:16] = images[..., :8] + 0.2
    counts = {}
    for tau, std in ((0.11, None), (0.11, (0.5, 0.5, 0.5)), (0.21, None), (0.09, (0.5, 0.5, 0.5))):
        with attach(model, pixelprune(tau, std)) as handle:
            output(model, images)
        counts[(tau, std is None)] = handle.stats().towers[0].left[0]
    assert counts == {(0.11, True): 50, (0.11, False): 43, (0.21, True): 43, (0.09, False): 50}


def test_what_is_refused() -> None:
    with pytest.raises(ConfigError):
        pixelprune(-0.1)
    with pytest.raises(ConfigError):
        pixelprune(std=(0.5, 0.5))
    with pytest.raises(ConflictError, match="entering the language model"):
        attach(model_of("llava"), pixelprune(), uniform_grid())
    with pytest.raises(ConflictError, match="inside the vision tower"):
        attach(model_of("llava"), pixelprune(), tome())


def test_text_alone_is_untouched() -> None:
    model = model_of("llava")
    text = {"input_ids": torch.tensor([[1, 12, 13, 14]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    want = forward(model, text).logits
    with attach(model, pixelprune()):
        assert torch.equal(forward(model, text).logits, want)
