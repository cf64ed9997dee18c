"""Patches of anyres images found from the prompt alone: against the functions of transformers that know the sizes."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel, image_size_to_num_patches
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from vlm_eff.models.family import TowerRun
from vlm_eff.models.vlm.anyres import anyres, cuts_to

NEXT = SimpleNamespace(
    vision_config=SimpleNamespace(image_size=336, patch_size=14),
    image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
)
ONEVISION = SimpleNamespace(
    vision_config=SimpleNamespace(image_size=384, patch_size=14),
    image_grid_pinpoints=[[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)],
    vision_aspect_ratio="anyres_max_9",
)
# plain, tall, wide, on the border between two tilings, larger than nine tiles
SIZES = [(300, 300), (480, 640), (900, 400), (510, 1000), (500, 1000), (2000, 1500), (100, 1200), (3000, 2800)]


def packed(config: SimpleNamespace, sizes: list[tuple[int, int]], channels: int) -> tuple[Tensor, list[Tensor]]:
    """Random projected patches [tiles, P, c], and the tokens that the model makes of them, image by image."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    counts = [
        image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size) for size in sizes
    ]
    patches = torch.randn(sum(counts), side * side, channels, generator=torch.Generator().manual_seed(0))
    model, extra = (LlavaNextModel, "default") if config is NEXT else (LlavaOnevisionModel, None)
    kwargs = {"vision_feature_select_strategy": extra} if extra else {"vision_aspect_ratio": "anyres_max_9"}
    tokens, _ = model.pack_image_features(SimpleNamespace(config=config), patches.split(counts), sizes, **kwargs)
    return patches, tokens


def shape_of(config: SimpleNamespace, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the joined map, which a layout reads off the newlines of a prompt."""
    newline = torch.full((1,), float("nan"))
    side = config.vision_config.image_size // config.vision_config.patch_size
    count = image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
    model = LlavaNextModel if config is NEXT else LlavaOnevisionModel
    kwargs = {"vision_feature_select_strategy": "default"} if config is NEXT else {}
    tokens, _ = model.pack_image_features(
        SimpleNamespace(config=config), [torch.zeros(count, side * side, 1)], [size], image_newline=newline, **kwargs
    )
    rows = int(tokens[0].isnan().sum())
    return rows, (len(tokens[0]) - side * side) // rows - 1


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("config", [NEXT, ONEVISION], ids=["next", "onevision"])
def test_tokens_are_found_without_the_sizes(config: SimpleNamespace, order: int) -> None:
    sizes, side = SIZES[::order], config.vision_config.image_size // config.vision_config.patch_size
    patches, tokens = packed(config, sizes, 8)
    images = [[(side, side), shape_of(config, size)] for size in sizes]
    bring = anyres(config, TowerRun({}, lambda: images, patches, torch.cat(tokens)))
    assert bring is not None
    torch.testing.assert_close(bring(patches.flatten(0, 1)), torch.cat(tokens))


def test_one_map_may_be_cut_from_several_tilings() -> None:
    """1000 x 510 fills two by two tiles and 1000 x 500 one by two, with the same map: only the contents tell."""
    assert shape_of(NEXT, (510, 1000)) == shape_of(NEXT, (500, 1000)) == (24, 48)
    assert len(set(cuts_to(NEXT, 24, 24, 48))) > 1


def test_a_run_of_other_images_is_no_match() -> None:
    patches, tokens = packed(NEXT, [(480, 640)], 8)
    images = [[(24, 24), shape_of(NEXT, (480, 640))]]
    assert anyres(NEXT, TowerRun({}, lambda: images * 2, patches, torch.cat(tokens * 2))) is None
    assert anyres(NEXT, TowerRun({}, lambda: images, torch.cat([patches, patches]), torch.cat(tokens))) is None
