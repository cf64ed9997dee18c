"""One image or video per call: its tokens as the family's processor lays them out, its pixels, and where each token is.

Sizes are literals worked out by hand from the processors. Nothing here calls the model or the library under test, so
the layout can serve as ground truth; the model itself checks that the number of placeholders is right.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from tests.tiny import ids

TILE = 12
PATCH = 4
FRAMES = 4

MERGED_GRIDS = ((4, 6), (3, 5), (6, 3))
VIDEO_GRIDS = ((3, 4), (2, 5), (4, 3))
QWEN_FRAMES = 2
SECONDS_PER_FRAME = 1.0


@dataclass(frozen=True)
class Cell:
    """Where a placeholder comes from; a newline that closes a whole image or video has y = x = -1."""

    frame_or_tile: int
    y: int
    x: int
    newline: bool = False


@dataclass(frozen=True)
class Medium:
    """`tensors` maps a model input to (how to batch it, value); see `batch.collate`."""

    kind: Literal["image", "video"]
    tokens: list[tuple[int, Cell | None]]
    tensors: dict[str, tuple[str, Tensor]]


Maker = Callable[[int, bool, Generator], Medium]
"""(variant, only image of its row, generator) -> Medium"""


def grid(height: int, width: int, tile: int = 0, token: int = ids.IMAGE) -> list[tuple[int, Cell | None]]:
    return [(token, Cell(tile, y, x)) for y in range(height) for x in range(width)]


def plain(*tokens: int) -> list[tuple[int, Cell | None]]:
    return [(token, None) for token in tokens]


def noise(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator)


def square(side: int, pixels: int, before: tuple[int, ...] = (), after: tuple[int, ...] = ()) -> Maker:
    """A fixed resolution image of `side` x `side` tokens between fixed structural tokens."""

    def make(variant: int, alone: bool, generator: Generator) -> Medium:
        tensors = {"pixel_values": ("stack", noise(generator, 3, pixels, pixels))}
        return Medium("image", [*plain(*before), *grid(side, side), *plain(*after)], tensors)

    return make


def packed_map(height: int, width: int) -> list[tuple[int, Cell | None]]:
    """The crops glued to one map (tile 1), every row closed by the image_newline embedding."""
    cells: list[tuple[int, Cell | None]] = []
    for y in range(height):
        cells += [(ids.IMAGE, Cell(1, y, x)) for x in range(width)]
        cells.append((ids.IMAGE, Cell(1, y, width, newline=True)))
    return cells


def anyres(maps: tuple[tuple[tuple[int, int], int, tuple[int, int]], ...], multi_image_crops: bool) -> Maker:
    """LLaVA-NeXT packing; `maps` holds (original size, number of crops, map after unpadding and resizing)."""

    def make(variant: int, alone: bool, generator: Generator) -> Medium:
        size, crops, (height, width) = maps[variant % len(maps)]
        tokens = grid(TILE // PATCH, TILE // PATCH)
        if alone or multi_image_crops:
            tokens += packed_map(height, width)
        else:
            # OneVision keeps only the base view when a prompt has several images, plus one final newline.
            crops = 0
            tokens.append((ids.IMAGE, Cell(0, -1, -1, newline=True)))
        pixels = noise(generator, 1 + crops, 3, TILE, TILE)
        return Medium(
            "image", tokens, {"pixel_values": ("stack", pixels), "image_sizes": ("stack", torch.tensor(size))}
        )

    return make


def onevision_video(variant: int, alone: bool, generator: Generator) -> Medium:
    side = 2  # the 3 x 3 map of a frame is pooled to ceil(3 / 2)
    tokens = [item for frame in range(FRAMES) for item in grid(side, side, frame, ids.VIDEO)]
    tokens.append((ids.VIDEO, Cell(FRAMES - 1, -1, -1, newline=True)))
    pixels = noise(generator, FRAMES, 3, TILE, TILE)
    return Medium("video", tokens, {"pixel_values_videos": ("stack", pixels)})


def qwen_patches(generator: Generator, frames: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Flattened patches [t*h*w, 3*2*p*p] and the (t, h, w) grid in patches, for a grid given in merged tokens."""
    patches = noise(generator, frames * height * width * 4, 3 * 2 * PATCH * PATCH)
    return patches, torch.tensor([frames, height * 2, width * 2])


def qwen_image(variant: int, alone: bool, generator: Generator) -> Medium:
    height, width = MERGED_GRIDS[variant % len(MERGED_GRIDS)]
    patches, thw = qwen_patches(generator, 1, height, width)
    tokens = [*plain(ids.VISION_START), *grid(height, width), *plain(ids.VISION_END)]
    return Medium("image", tokens, {"pixel_values": ("cat", patches), "image_grid_thw": ("stack", thw)})


def qwen_video(timestamps: bool, seconds: bool) -> Maker:
    """`timestamps`: Qwen3 writes a time before every frame; `seconds`: Qwen2.5 passes the frame distance."""

    def make(variant: int, alone: bool, generator: Generator) -> Medium:
        height, width = VIDEO_GRIDS[variant % len(VIDEO_GRIDS)]
        patches, thw = qwen_patches(generator, QWEN_FRAMES, height, width)
        frames = [grid(height, width, frame, ids.VIDEO) for frame in range(QWEN_FRAMES)]
        start, end = plain(ids.VISION_START), plain(ids.VISION_END)
        if timestamps:
            times = [plain(ids.LAST_TEXT, ids.FIRST_TEXT + frame, ids.LAST_TEXT) for frame in range(QWEN_FRAMES)]
            tokens = [t for time, frame in zip(times, frames, strict=True) for t in [*time, *start, *frame, *end]]
        else:
            tokens = [*start, *(t for frame in frames for t in frame), *end]
        tensors = {"pixel_values_videos": ("cat", patches), "video_grid_thw": ("stack", thw)}
        if seconds:
            tensors["second_per_grid_ts"] = ("stack", torch.tensor(SECONDS_PER_FRAME))
        return Medium("video", tokens, tensors)

    return make


def internvl_image(variant: int, alone: bool, generator: Generator) -> Medium:
    crops = (2, 0, 3)[variant % 3]
    tiles = crops + 1  # the thumbnail comes last; without crops it is the only tile
    tokens = [item for tile in range(tiles) for item in grid(3, 3, tile)]
    pixels = noise(generator, tiles, 3, 24, 24)
    return Medium(
        "image", [*plain(ids.VISION_START), *tokens, *plain(ids.VISION_END)], {"pixel_values": ("cat", pixels)}
    )


def idefics_image(variant: int, alone: bool, generator: Generator) -> Medium:
    rows, cols = ((1, 2), (0, 0), (3, 1))[variant % 3]
    tokens: list[tuple[int, Cell | None]] = []
    for row in range(rows):
        for col in range(cols):
            tile = row * cols + col
            tokens += [*plain(ids.FAKE_IMAGE, ids.FIRST_TILE_TAG + tile), *grid(3, 3, tile)]
        tokens += plain(ids.NEWLINE)
    if rows:
        tokens += plain(ids.NEWLINE)
    tiles = rows * cols + 1
    tokens += [*plain(ids.FAKE_IMAGE, ids.GLOBAL_IMAGE), *grid(3, 3, tiles - 1), *plain(ids.FAKE_IMAGE)]
    mask = torch.ones(tiles, 24, 24, dtype=torch.long)
    tensors = {"pixel_values": ("rows", noise(generator, tiles, 3, 24, 24)), "pixel_attention_mask": ("rows", mask)}
    return Medium("image", tokens, tensors)


def mistral3_image(variant: int, alone: bool, generator: Generator) -> Medium:
    height, width = MERGED_GRIDS[variant % len(MERGED_GRIDS)]
    tokens: list[tuple[int, Cell | None]] = []
    for y in range(height):
        tokens += [(ids.IMAGE, Cell(0, y, x)) for x in range(width)]
        tokens += plain(ids.ROW_BREAK if y < height - 1 else ids.IMAGE_END)
    side = PATCH * 2
    pixels = noise(generator, 3, height * side, width * side)
    sizes = torch.tensor([height * side, width * side])
    return Medium("image", tokens, {"pixel_values": ("stack", pixels), "image_sizes": ("stack", sizes)})


NEXT_MAPS = (((20, 30), 4, (4, 6)), ((30, 12), 2, (6, 3)), ((12, 36), 3, (3, 9)))
# anyres_max_2 shrinks the first and the last map (bilinear) and leaves the middle one alone.
ONEVISION_MAPS = (((20, 30), 4, (3, 5)), ((30, 12), 2, (6, 3)), ((12, 36), 3, (2, 7)))

IMAGES: dict[str, Maker] = {
    "llava": square(5, 20),
    "llava_next": anyres(NEXT_MAPS, multi_image_crops=True),
    "llava_onevision": anyres(ONEVISION_MAPS, multi_image_crops=False),
    "qwen2_vl": qwen_image,
    "qwen2_5_vl": qwen_image,
    "qwen3_vl": qwen_image,
    "internvl": internvl_image,
    "idefics3": idefics_image,
    "smolvlm": idefics_image,
    "paligemma": square(5, 20),
    "gemma3": square(4, 32, before=(ids.BLANK_LINE, ids.VISION_START), after=(ids.VISION_END, ids.BLANK_LINE)),
    "mistral3": mistral3_image,
}

VIDEOS: dict[str, Maker] = {
    "llava_onevision": onevision_video,
    "qwen2_vl": qwen_video(timestamps=False, seconds=False),
    "qwen2_5_vl": qwen_video(timestamps=False, seconds=True),
    "qwen3_vl": qwen_video(timestamps=True, seconds=False),
}
