"""Building the real-weights model: once, into a folder that `from_pretrained` reads, whole or not at all."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from vlm_eff.core.errors import ConfigError, InputError, StateError, explain
from vlm_eff.core.files import make_folder

from .assemble import assemble
from .decoder import IMAGE_TOKEN, load_decoder, load_tokenizer
from .processor import VISUAL_TOKENS, build_processor
from .shipped import apply_shipped
from .stamp import is_current, read_stamp, write_stamp
from .tower import load_tower

DTYPES = ("float16", "bfloat16", "float32")


@dataclass(frozen=True)
class Built:
    """Where the model is, and whether this call built it."""

    folder: Path
    fresh: bool
    bytes: int


def build_smol(folder: Path, dtype: str = "float16") -> Built:
    """Build the model into a folder; where it is already, built from what is shipped now, nothing is done.

    Everything is written into a folder beside it and moved when it was read again and found equal, so that nobody ever
    sees half of it. A folder built from earlier weights, or in another dtype, is replaced.

    dtype: of the stored weights; float16 (314 MB) rounds eight times finer than bfloat16 at the same size

    Raises:
        CapabilityError: a package of the extra `smol` is missing.
        ConfigError:     an unknown dtype.
        InputError:      the folder holds something else, or cannot be made.
        StateError:      what was written does not read back equal.
    """
    if dtype not in DTYPES:
        raise ConfigError(explain(f"dtype {dtype!r}", ", ".join(DTYPES), "Choose one of these"))
    folder = folder.expanduser()
    found = read_stamp(folder)
    if is_current(folder) and found is not None and found["dtype"] == dtype:
        return Built(folder, fresh=False, bytes=_size(folder))
    if found is None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            explain(f"{folder} holds something that was not built here", "an empty or a new folder", "Name another one")
        )
    make_folder(folder.parent)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as place:
        part = Path(place) / "model"
        model, processor = _made(getattr(torch, dtype))
        model.save_pretrained(part)
        processor.save_pretrained(part)
        _check(part, model, processor)
        write_stamp(part, dtype)
        for path in part.iterdir():
            # safetensors lets nobody else read; a model may be read by whoever may read the folder
            path.chmod(0o644)
        if folder.exists():
            folder.replace(Path(place) / "earlier")
        part.replace(folder)
    return Built(folder, fresh=True, bytes=_size(folder))


def _made(dtype: torch.dtype) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    tokenizer = load_tokenizer()
    model = assemble(load_tower(), load_decoder(), tokenizer, VISUAL_TOKENS)
    apply_shipped(model)
    return model.to(dtype), build_processor(tokenizer)


def _check(folder: Path, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Read what was written and compare: every weight, and what the processor makes of a question."""
    again, said = LlavaForConditionalGeneration.from_pretrained(folder, dtype=model.dtype, output_loading_info=True)
    wrong = [name for kind in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in said[kind]]
    read = again.state_dict()
    wrong += [name for name, value in model.state_dict().items() if not torch.equal(read[name], value)]
    words = [
        one.apply_chat_template([{"role": "user", "content": "what color is the circle?"}], tokenize=True)
        for one in (processor, AutoProcessor.from_pretrained(folder))
    ]
    same = str(words[0]) == str(words[1])
    image = processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    if wrong or not same or image != model.config.image_token_index:
        raise StateError(
            explain(
                f"a written model that reads back differently ({wrong[:3] or 'its processor'})",
                "what was written",
                "Check the disk, and build again",
            )
        )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
