"""Rows of text and media padded to one batch of inputs; single rows and the true layout come from the same plan."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, repeat
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad as pad_tensor

from tests.tiny import ids
from tests.tiny.media import IMAGES, VIDEOS, Cell, Medium

Pad = Literal["left", "right"]

TYPE_IDS = {
    "qwen2_vl": "mm_token_type_ids",
    "qwen2_5_vl": "mm_token_type_ids",
    "qwen3_vl": "mm_token_type_ids",
    "paligemma": "token_type_ids",
    "gemma3": "token_type_ids",
}


@dataclass(frozen=True)
class Row:
    tokens: list[tuple[int, Cell | None, int]]
    """(token id, cell of a placeholder, index of its image or video in the row or -1)"""
    media: list[Medium]


class TinyInputs(dict[str, Any]):
    """Model inputs that remember how they were laid out."""

    family: str
    rows: list[Row]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "TinyInputs":
        """A copy on `device`, floating point tensors (the pixels) in `dtype`; the layout stays known."""
        moved = TinyInputs()
        moved.family, moved.rows = self.family, self.rows
        for key, value in self.items():
            moved[key] = value.to(device, dtype if value.is_floating_point() else None)
        return moved


def tiny_inputs(
    family: str,
    images_per_row: tuple[int, ...] = (1,),
    *,
    pad: Pad = "left",
    text: tuple[int, int] = (5, 7),
    video: bool | Literal["mixed"] = False,
    seed: int = 0,
    alike: bool = False,
) -> TinyInputs:
    """Model inputs for a batch with `images_per_row[i]` images in row i.

    `video=True` makes every medium a video, "mixed" every second one of a row. Question lengths walk through `text`, so
    neighbouring rows differ. The images of a batch cycle through three sizes or tilings, or are
    all `alike`.
    """
    generator = torch.Generator().manual_seed(seed)
    variants: Iterator[int] = repeat(0) if alike else count()
    rows = []
    for index, media in enumerate(images_per_row):
        length = text[0] + index % (text[1] - text[0] + 1)
        videos = [bool(n % 2) if video == "mixed" else bool(video) for n in range(media)]
        rows.append(_row(family, videos, length, variants, generator))
    return _batch(family, rows, pad)


def row(inputs: TinyInputs, index: int) -> TinyInputs:
    """Row `index` alone: no padding, only its own images, on the device and in the dtype of `inputs`."""
    _check(inputs)
    single = _batch(inputs.family, [inputs.rows[index]], "left")
    pixels = [value.dtype for value in inputs.values() if value.is_floating_point()]
    return single.to(inputs["input_ids"].device, pixels[0] if pixels else None)


def visual_layout(family: str, inputs: TinyInputs) -> list[list[dict[str, Any]]]:
    """Per row, for every placeholder in sequence order: which image or video of the row it is, where, and if a newline.

    Tiles count in sequence order; LLaVA-NeXT's glued crop map is tile 1. A newline that closes a row of the map has
    x = width, one that closes a whole image or video y = x = -1.
    """
    _check(inputs)
    if inputs.family != family:
        raise ValueError(f"inputs are laid out for {inputs.family}, not {family}")
    return [
        [
            {
                "image": medium,
                "frame_or_tile": cell.frame_or_tile,
                "y": cell.y,
                "x": cell.x,
                "newline": cell.newline,
                "video": token == ids.VIDEO,
            }
            for token, cell, medium in entry.tokens
            if cell is not None
        ]
        for entry in inputs.rows
    ]


def visual_mask(inputs: dict[str, Any]) -> Tensor:
    """Bool [B, S]: which positions hold an image or video placeholder."""
    tokens = inputs["input_ids"]
    return (tokens == ids.IMAGE) | (tokens == ids.VIDEO)


def _check(inputs: TinyInputs) -> None:
    if not isinstance(inputs, TinyInputs):
        raise TypeError("the layout is known only for the object that tiny_inputs returned, not for a copy as a dict")


def _words(count_: int, generator: torch.Generator) -> list[tuple[int, Cell | None, int]]:
    tokens = torch.randint(ids.FIRST_TEXT, ids.LAST_TEXT, (count_,), generator=generator)
    return [(token, None, -1) for token in tokens.tolist()]


def _row(family: str, videos: list[bool], question: int, variants: Iterator[int], generator: torch.Generator) -> Row:
    alone = videos.count(False) == 1
    makers = [VIDEOS[family] if video else IMAGES[family] for video in videos]
    media = [make(next(variants), alone, generator) for make in makers]
    first_in_prompt = family == "paligemma"  # its processor puts all images before the BOS token, with nothing between
    tokens = [] if first_in_prompt else [(ids.BOS, None, -1), *_words(3, generator)]
    for index, medium in enumerate(media):
        if index and not first_in_prompt:
            tokens += _words(2, generator)
        tokens += [(token, cell, -1 if cell is None else index) for token, cell in medium.tokens]
    if first_in_prompt:
        tokens += [(ids.BOS, None, -1), *_words(question, generator), (ids.NEWLINE, None, -1)]
    else:
        tokens += _words(question, generator)
    return Row(tokens, media)


def _batch(family: str, rows: list[Row], pad: Pad) -> TinyInputs:
    width = max(len(entry.tokens) for entry in rows)
    tokens = torch.full((len(rows), width), ids.PAD)
    attention = torch.zeros_like(tokens)
    for index, entry in enumerate(rows):
        size = len(entry.tokens)
        span = slice(width - size, width) if pad == "left" else slice(0, size)
        tokens[index, span] = torch.tensor([token for token, _, _ in entry.tokens])
        attention[index, span] = 1
    inputs = TinyInputs(input_ids=tokens, attention_mask=attention)
    inputs.family, inputs.rows = family, rows
    if family in TYPE_IDS:
        # PaliGemma marks the prefix with 0 (all of it at inference); the others mark images with 1 and videos with 2.
        kinds = (tokens == ids.IMAGE).long() + 2 * (tokens == ids.VIDEO).long()
        inputs[TYPE_IDS[family]] = torch.zeros_like(tokens) if family == "paligemma" else kinds
    inputs.update(collate(rows))
    if family == "llava_onevision" and "pixel_values" in inputs:
        counts = [sum(medium.kind == "image" for medium in entry.media) for entry in rows]
        inputs["batch_num_images"] = torch.tensor(counts)
    return inputs


def collate(rows: list[Row]) -> dict[str, Tensor]:
    """Batch the media: "stack" pads to a common shape, "cat" joins along dim 0, "rows" gives [B, most tiles, ...]."""
    values: dict[str, tuple[str, list[list[Tensor]]]] = {}
    for index, entry in enumerate(rows):
        for medium in entry.media:
            for key, (how, tensor) in medium.tensors.items():
                values.setdefault(key, (how, [[] for _ in rows]))[1][index].append(tensor)
    return {key: _join(how, per_row) for key, (how, per_row) in values.items()}


def _join(how: str, per_row: list[list[Tensor]]) -> Tensor:
    flat = [tensor for tensors in per_row for tensor in tensors]
    if how == "cat":
        return torch.cat(flat)
    if how == "rows":
        empty = flat[0][:0]
        return _stack([torch.cat(tensors) if tensors else empty for tensors in per_row])
    return _stack(flat)


def _stack(tensors: list[Tensor]) -> Tensor:
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        missing = [size for full, own in zip(shape, tensor.shape, strict=True) for size in (full - own, 0)]
        padded.append(pad_tensor(tensor, missing[::-1]))
    return torch.stack(padded)
