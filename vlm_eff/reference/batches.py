"""Training batches: one picture a row, many questions a row, each of which sees the picture and itself only.

Row:      <s> user : [144 visual] | question assistant : answer </s> | question assistant : answer </s> | ...
Position: the text of every question starts again right behind the picture, and the mask hides the other questions, so
asking one question at test time is exactly what was trained.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from transformers import LlavaProcessor

from .dense import GLOBAL_CLASSES, HEADS, IGNORE, global_targets, global_targets_of_shape, patch_targets
from .easy_vqa import COLOURS, SHAPES, load_easy_vqa
from .model import VISUAL_TOKENS
from .naming import GROUPS, naming_targets
from .pointing import patch_mask, pointing_targets
from .questions import Question
from .scenes import IMAGE_SIZE, Scene, make_scene, questions, render

PREFIX_LENGTH = 3 + VISUAL_TOKENS
TEXT_LENGTH = 173
ROW_LENGTH = PREFIX_LENGTH + TEXT_LENGTH


@dataclass
class Batch:
    """Tensors of one training step; `turn` is 0 for the picture, 1, 2, ... for questions, -1 for padding."""

    pixels: torch.Tensor  # [B, 3, 96, 96] float32, normalised
    tokens: torch.Tensor  # [B, L]
    positions: torch.Tensor  # [B, L]
    turns: torch.Tensor  # [B, L]
    targets: torch.Tensor  # [B, L], next token where it belongs to an answer, else -100
    patch_target: torch.Tensor  # [B, heads, patches]
    global_target: torch.Tensor  # [B, classes]
    naming_target: torch.Tensor  # [B, groups, patches]
    pointing_places: torch.Tensor  # [N, 2], row and column of tokens that should look at something
    pointing_target: torch.Tensor  # [N, patches] of bool

    def attention_mask(self) -> torch.Tensor:
        """Return who may look at whom, [B, 1, L, L] of bool."""
        turn = self.turns
        length = turn.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=turn.device).tril()
        same = turn[:, :, None] == turn[:, None, :]
        return ((same | (turn == 0)[:, None, :]) & causal)[:, None]

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on a device."""
        return Batch(**{name: value.to(device) for name, value in self.__dict__.items()})


@dataclass(frozen=True)
class EasyImage:
    """One easy-VQA picture, its training questions, and the shape and colour that they give away."""

    pixels: np.ndarray  # [96, 96, 3] uint8
    asked: tuple[Question, ...]
    shape: str | None
    colour: str | None


class BatchMaker:
    """Makes the batch of any step from the seed and the number of the step alone, so that resuming is exact."""

    def __init__(self, processor: LlavaProcessor, batch_size: int, seed: int, easy_share: float = 0.3) -> None:
        self.tokenizer = processor.tokenizer
        self.batch_size = batch_size
        self.seed = seed
        self.easy = load_easy_images() if easy_share > 0 else []
        self.easy_share = easy_share
        table = self.tokenizer.get_vocab()
        self._start = [table["<s>"], table["user"], table[":"]] + [table["<image>"]] * VISUAL_TOKENS
        self._cue = [table["assistant"], table[":"]]
        self._pad, self._end = table["<pad>"], table["</s>"]
        self._ids = lru_cache(maxsize=100_000)(self._tokenise)
        self._words = lru_cache(maxsize=100_000)(lambda text: self.tokenizer.convert_ids_to_tokens(self._ids(text)))
        images = processor.image_processor
        self._mean = torch.tensor(images.image_mean).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(images.image_std).view(1, 3, 1, 1) * 255

    def batch(self, step: int, max_objects: int) -> Batch:
        """Return the batch of a step, scenes with at most `max_objects` objects."""
        rng = random.Random(f"batch:{self.seed}:{step}")
        rows = []
        for _ in range(self.batch_size):
            if rng.random() < self.easy_share:
                rows.append(self._easy_row(rng))
            else:
                rows.append(self._scene_row(make_scene(rng.getrandbits(48), "train", max_objects)))
        return self._collate(rows)[0]

    def validation(self, number: int) -> tuple[Batch, list[str]]:
        """Return a batch of validation scenes and the family of each of its questions, row by row."""
        first = number * self.batch_size
        return self._collate([self._scene_row(make_scene(first + row, "validation")) for row in range(self.batch_size)])

    def _collate(self, rows: list[tuple]) -> tuple[Batch, list[str]]:
        pixels, patch_target, global_target, naming_target, asked = zip(*rows, strict=True)
        packed = [self._pack(turns) for turns in asked]
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
        places, masks = _pointing(packed)
        batch = Batch(
            pixels=((images - self._mean) / self._std).contiguous(),
            tokens=torch.tensor([row[0] for row in packed]),
            positions=torch.tensor([row[1] for row in packed]),
            turns=torch.tensor([row[2] for row in packed]),
            targets=torch.tensor([row[3] for row in packed]),
            patch_target=torch.from_numpy(np.stack(patch_target)),
            global_target=torch.from_numpy(np.stack(global_target)),
            naming_target=torch.from_numpy(np.stack(naming_target)),
            pointing_places=places,
            pointing_target=masks,
        )
        kept = [max(row[2]) for row in packed]  # questions that fitted into the row
        families = [turn.family for turns, count in zip(asked, kept, strict=True) for turn in turns[:count]]
        return batch, families

    def _scene_row(self, scene: Scene) -> tuple:
        pixels = np.asarray(render(scene))
        return pixels, patch_targets(scene), global_targets(scene), naming_targets(scene), questions(scene, 0)

    def _easy_row(self, rng: random.Random) -> tuple:
        image = rng.choice(self.easy)
        pixels = image.pixels
        if rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        patches = np.full((len(HEADS), VISUAL_TOKENS), IGNORE, dtype=np.int64)
        asked = rng.sample(image.asked, len(image.asked))
        names = np.full((len(GROUPS), VISUAL_TOKENS), IGNORE, dtype=np.int64)
        return pixels, patches, global_targets_of_shape(image.shape, image.colour), names, asked

    def _tokenise(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _pack(self, asked: list[Question]) -> tuple[list[int], list[int], list[int], list[int], list]:
        tokens = list(self._start)
        positions = list(range(PREFIX_LENGTH))
        turns = [0] * PREFIX_LENGTH
        targets = [IGNORE] * PREFIX_LENGTH
        placed = []
        for number, question in enumerate(asked, start=1):
            prompt = self._ids(question.text) + self._cue
            answer = [*self._ids(question.answer), self._end]
            turn = prompt + answer
            if len(tokens) + len(turn) > ROW_LENGTH:
                break
            words = self._words(question.text)
            placed.append((question, len(tokens), words))
            tokens += turn
            positions += range(PREFIX_LENGTH, PREFIX_LENGTH + len(turn))
            turns += [number] * len(turn)
            targets += [IGNORE] * (len(prompt) - 1) + answer + [IGNORE]
        left = ROW_LENGTH - len(tokens)
        return (
            tokens + [self._pad] * left,
            positions + [0] * left,
            turns + [-1] * left,
            targets + [IGNORE] * left,
            placed,
        )


def _pointing(packed: list[tuple]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the places of all tokens that should look at something, [N, 2], and at which patches, [N, patches]."""
    places, masks = [], []
    for row, (*_, placed) in enumerate(packed):
        boxes = [patch_mask(box) for question, _, _ in placed for box in question.boxes]
        for column, box in pointing_targets(placed):
            places.append((row, column))
            masks.append(boxes[box])
    if not places:
        return torch.zeros(0, 2, dtype=torch.long), torch.zeros(0, VISUAL_TOKENS, dtype=torch.bool)
    return torch.tensor(places), torch.stack(masks)


def load_easy_images() -> list[EasyImage]:
    """Read the training pictures of easy-VQA at the size of the model, with their training questions."""
    by_image: dict = defaultdict(list)
    for path, text, answer in load_easy_vqa("train"):
        by_image[path].append(Question(text, answer, "easy_vqa"))
    images = []
    for path, asked in by_image.items():
        with Image.open(path) as picture:
            small = picture.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        shape, colour = _given_away(asked)
        images.append(EasyImage(np.asarray(small), tuple(asked), shape, colour))
    return images


def _given_away(asked: list[Question]) -> tuple[str | None, str | None]:
    """Return the shape and colour of a picture as far as its questions and answers tell them."""
    shape = colour = None
    for question in asked:
        if question.answer in SHAPES:
            shape = question.answer
        elif question.answer in COLOURS:
            colour = question.answer
        words = question.text.rstrip("?").split()
        negated = "not" in words or "no" in words
        if question.answer == ("no" if negated else "yes"):
            shape = next((word for word in words if word in SHAPES), shape)
            colour = next((word for word in words if word in COLOURS), colour)
        elif question.answer not in ("yes", "no"):
            # "what color is the circle?" names what is there
            shape = next((word for word in words if word in SHAPES), shape)
            colour = next((word for word in words if word in COLOURS), colour)
    return shape, colour


__all__ = ["GLOBAL_CLASSES", "ROW_LENGTH", "Batch", "BatchMaker", "EasyImage", "load_easy_images"]
