"""Training rows: one picture, many questions, each of which sees the picture and itself only.

Row:      start user [81 visual] | question end start assistant answer end | question end start assistant ...
Position: every question starts again right behind the picture, so asking one question at test time is exactly what was
trained.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from PIL import Image
from transformers import LlavaProcessor

from ..easy_vqa import family_of, load_easy_vqa
from ..questions import Question
from ..scenes import make_scene, questions, render
from .pointing import Looks, looks
from .processor import VISUAL_TOKENS

IGNORE = -100
TEXT_LENGTH = 224  # tokens of questions and answers in a row


@dataclass
class Rows:
    """Tensors of one step; `turns` is 0 for the picture, 1, 2, ... for questions, -1 for padding."""

    pixels: torch.Tensor  # [B, 3, 126, 126]
    tokens: torch.Tensor  # [B, L]
    positions: torch.Tensor  # [B, L]
    turns: torch.Tensor  # [B, L]
    targets: torch.Tensor  # [B, L], the next token where it belongs to an answer, else -100
    places: torch.Tensor  # [N, 2], row and column of tokens that should look at something
    looks: torch.Tensor  # [N, 81] of bool, at which patches
    families: list[str]  # of the questions, row by row

    def mask(self) -> torch.Tensor:
        """Return who may look at whom, [B, 1, L, L] of bool."""
        length = self.turns.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        same = self.turns[:, :, None] == self.turns[:, None, :]
        return ((same | (self.turns == 0)[:, None, :]) & causal)[:, None]


class RowMaker:
    """Makes the rows of any step from the seed and the number of the step alone, so that resuming is exact."""

    def __init__(self, processor: LlavaProcessor, rows: int, seed: int, easy_share: float) -> None:
        self.processor = processor
        self.rows = rows
        self.seed = seed
        self.easy_share = easy_share
        self._easy = load_easy_pictures() if easy_share > 0 else []
        ids = lru_cache(maxsize=100_000)(lambda text: processor.tokenizer(text, add_special_tokens=False)["input_ids"])
        self._ids = ids
        self.start = ids("<|im_start|>user\n") + ids("<image>") * VISUAL_TOKENS
        self._cue = ids("<|im_end|>\n<|im_start|>assistant\n")
        self._end = ids("<|im_end|>")

    def batch(self, step: int, max_objects: int) -> Rows:
        """Return the rows of a step, scenes with at most `max_objects` objects."""
        rng = random.Random(f"smol:{self.seed}:{step}")
        asked = []
        for _ in range(self.rows):
            if rng.random() < self.easy_share:
                path, found = rng.choice(self._easy)
                with Image.open(path) as picture:
                    asked.append((picture.convert("RGB"), rng.sample(found, len(found))))
            else:
                scene = make_scene(rng.getrandbits(48), "train", max_objects)
                asked.append((render(scene), questions(scene, rng.getrandbits(30))))
        return self.collate(asked)

    def validation(self, number: int) -> Rows:
        """Return rows of validation scenes, each with all that `questions` asks of it."""
        scenes = [make_scene(number * self.rows + row, "validation") for row in range(self.rows)]
        return self.collate([(render(scene), questions(scene, 0)) for scene in scenes])

    def collate(self, asked: list[tuple[Image.Image, list[Question]]]) -> Rows:
        """Return rows of pictures and what is asked about each, padded to one length."""
        packed = [self._pack(found) for _, found in asked]
        # one length for all steps: compiled layers are compiled once
        length = len(self.start) + TEXT_LENGTH
        columns: list[torch.Tensor] = []
        for part, empty in enumerate((self.processor.tokenizer.pad_token_id, 0, -1, IGNORE)):
            columns.append(torch.tensor([row[part] + [empty] * (length - len(row[part])) for row in packed]))
        pixels = self.processor.image_processor([picture for picture, _ in asked], return_tensors="pt")["pixel_values"]
        families = [
            question.family for (_, found), row in zip(asked, packed, strict=True) for question in found[: max(row[2])]
        ]
        tokens, positions, turns, targets = columns
        found = [(row, *look) for row, (*_, here) in enumerate(packed) for look in here]
        places = torch.tensor([(row, column) for row, column, _ in found]).view(-1, 2)
        patches = torch.stack([torch.zeros(VISUAL_TOKENS, dtype=torch.bool), *(patch for *_, patch in found)])[1:]
        return Rows(pixels, tokens, positions, turns, targets, places, patches, families)

    def _pack(self, found: list[Question]) -> tuple[list[int], list[int], list[int], list[int], Looks]:
        first = len(self.start)
        here: Looks = []
        tokens, positions, turns, targets = list(self.start), list(range(first)), [0] * first, [IGNORE] * first
        for number, question in enumerate(found, start=1):
            prompt = self._ids(question.text) + self._cue
            answer = self._ids(question.answer) + self._end
            turn = prompt + answer
            if len(tokens) + len(turn) > first + TEXT_LENGTH:
                break
            due = range(len(prompt) - 1, len(turn) - 2)
            here += [(len(tokens) + place, patches) for place, patches in looks(question, self._ids, due)]
            tokens += turn
            positions += range(first, first + len(turn))
            turns += [number] * len(turn)
            targets += [IGNORE] * (len(prompt) - 1) + answer + [IGNORE]
        return tokens, positions, turns, targets, here


def load_easy_pictures() -> list[tuple[Path, list[Question]]]:
    """Return the training pictures of easy-VQA, each with its training questions."""
    by_picture: dict[Path, list[Question]] = defaultdict(list)
    for path, text, answer in load_easy_vqa("train"):
        by_picture[path].append(Question(text, answer, family_of(answer)))
    return list(by_picture.items())
