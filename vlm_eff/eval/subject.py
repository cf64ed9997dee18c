"""A model with its processor, ready to be asked about pictures."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps

from vlm_eff.core.errors import InputError, explain
from vlm_eff.video.clip import Clip

# tasks open their pictures here: listing them must not wait for torch
if TYPE_CHECKING:
    import torch

# what people write for a picture; only what a tokenizer does not know is refused
_LOOKS_LIKE_PLACEHOLDER = re.compile(r"<\|?/?(?:image|img|picture|vision)[^<>\s]*>|\[(?:image|img)\]", re.IGNORECASE)


@dataclass(frozen=True)
class Row:
    """What one row of a batch shows, in order, and asks behind it."""

    shown: tuple[Image.Image | Clip, ...]
    prompt: str

    def content(self) -> list[dict[str, Any]]:
        """The parts of the message, as chat templates take them."""
        media = [
            {"type": "video", "video": one.frames} if isinstance(one, Clip) else {"type": "image", "image": one}
            for one in self.shown
        ]
        return [*media, {"type": "text", "text": self.prompt}]


@dataclass(frozen=True)
class Subject:
    """A vision-language model in eval mode, its processor, and the name it was loaded by."""

    model: Any = field(repr=False)
    processor: Any = field(repr=False)
    name: str

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        device: torch.device = self.model.device
        return device

    def inputs(self, images: Sequence[Image.Image], prompt: str) -> Any:
        """Model inputs for one question about `images`, on the model's device and in its dtype.

        The prompt goes through the chat template with one entry an image; a prompt that holds image placeholders itself
        is taken as it is.

        Raises:
            InputError: no image, an empty prompt, or placeholders that do not match the images.
        """
        placeholder = self._placeholder()
        written = check_prompt(prompt, len(images), placeholder, self.processor.tokenizer.get_vocab())
        if written or not self.chats:
            text = prompt if written else f"{placeholder * len(images)}\n{prompt}"
            made = self.processor(images=[list(images)], text=[text], return_tensors="pt")
            return made.to(self.device, self.model.dtype)
        return self.batch([Row(tuple(images), prompt)])

    @property
    def chats(self) -> bool:
        """The processor has a chat template."""
        return bool(getattr(self.processor, "chat_template", None))

    @property
    def watches(self) -> bool:
        """The processor takes videos; otherwise frames are shown as pictures."""
        return getattr(self.processor, "video_processor", None) is not None

    def batch(self, rows: Sequence[Row]) -> Any:
        """Model inputs for several questions at once, padded on the left; nothing is written into their prompts.

        Raises:
            InputError: no chat template, an empty prompt, placeholders in a prompt, or a video for a model that takes
                pictures alone.
        """
        if not self.chats:
            accepted = "a processor with a chat template"
            raise InputError(explain(f"{self.name} has none", accepted, "Save a chat_template.jinja beside the model"))
        known = self.processor.tokenizer.get_vocab()
        for row in rows:
            if row.shown and check_prompt(row.prompt, len(row.shown), self._placeholder(), known):
                accepted = "prompts without placeholders: the chat template puts them where they belong"
                raise InputError(explain(f"{row.prompt[:60]!r} holds a placeholder", accepted, "Leave it out"))
        clips = [one for row in rows for one in row.shown if isinstance(one, Clip)]
        if clips and not self.watches:
            raise InputError(explain(f"a video for {self.name}", "pictures", "Show its frames as pictures"))
        # frames are chosen already, and the processor is told when each of them is shown
        videos = {"do_sample_frames": False, "video_metadata": [clip.metadata() for clip in clips]} if clips else {}
        made = self.processor.apply_chat_template(
            [[{"role": "user", "content": row.content()}] for row in rows],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left", **videos},
        )
        return made.to(self.device, self.model.dtype)

    def answer(self, inputs: Any, *, max_new_tokens: int) -> str:
        """The model's greedy answer."""
        import torch

        with torch.inference_mode():
            output = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = output[:, inputs["input_ids"].shape[1] :]
        text: str = self.processor.batch_decode(new, skip_special_tokens=True)[0]
        return text.strip()

    def first_token(self, inputs: Any) -> None:
        """Run until the first new token is on the host: vision tower, projector, prefill and plugins."""
        import torch

        with torch.inference_mode():
            output = self.model.generate(**inputs, max_new_tokens=1, do_sample=False)
        output[0, -1].item()

    def seen(self, image: Image.Image) -> Image.Image:
        """The part of a picture that the model sees: the middle square where the processor crops."""
        if not getattr(self.processor.image_processor, "do_center_crop", False):
            return image
        side = min(image.size)
        return ImageOps.fit(image, (side, side))

    def _placeholder(self) -> str:
        found = getattr(self.processor, "boi_token", None) or getattr(self.processor, "image_token", None)
        return str(found or "<image>")


def check_prompt(prompt: str, images: int, placeholder: str, known: dict[str, int]) -> bool:
    """Whether the prompt holds its own image placeholders; raise `InputError` where they do not fit the images."""
    if not images:
        raise InputError(
            explain(
                "a prompt without an image", "one image or more", "Give an image: plugins here act on visual tokens"
            )
        )
    if not prompt.strip():
        raise InputError(explain("an empty prompt", "a question or an instruction", "Write what you want to know"))
    wrong = [found for found in _LOOKS_LIKE_PLACEHOLDER.findall(prompt) if found != placeholder and found not in known]
    if wrong:
        raise InputError(
            explain(
                f"the prompt holds {wrong[0]!r}, which this model does not know",
                f"a prompt without placeholders, or with one {placeholder!r} an image",
                "Leave the placeholder out: the chat template puts it where it belongs",
            )
        )
    count = prompt.count(placeholder)
    if count and count != images:
        raise InputError(
            explain(
                f"the prompt holds {count} times {placeholder!r} for {images} image(s)",
                "one placeholder an image, or none",
                "Leave the placeholders out: the chat template puts them where they belong",
            )
        )
    return count > 0


def open_image(path: Path) -> Image.Image:
    """Read a picture as RGB, turned as its camera says.

    Raises:
        InputError: the file is missing, no picture, or damaged.
    """
    try:
        with Image.open(path) as picture:
            return ImageOps.exif_transpose(picture).convert("RGB")
    except FileNotFoundError:
        problem = f"there is no file {path}"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        problem = f"{path} cannot be read as a picture ({str(error).splitlines()[0]})"
    raise InputError(
        explain(problem, "a PNG, JPEG, WebP or other file that Pillow reads", "Check the path and the file")
    )
