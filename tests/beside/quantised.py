"""Ways in which a user gets quantised linears: a tiny LLaVA from a folder, loaded through transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, TorchAoConfig

# bitsandbytes on a CPU runs 4-bit linears whose input width is a multiple of its block of 64; here these are the rest
NARROW = ["model.vision_tower", "model.multi_modal_projector", "down_proj", "lm_head"]


def _int8() -> Any:
    quantization = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


def _int8_dynamic() -> Any:
    quantization = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(quantization.Int8DynamicActivationInt8WeightConfig())


def _bnb_int8() -> Any:
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_8bit=True)


def _bnb_nf4() -> Any:
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", llm_int8_skip_modules=NARROW)


KINDS: dict[str, Callable[[], Any]] = {
    "torchao int8": _int8,
    "torchao int8 dynamic": _int8_dynamic,
    "bitsandbytes int8": _bnb_int8,
    "bitsandbytes nf4": _bnb_nf4,
}
# these round activations as well: an input that differs in its last bit may land on the next of 255 levels
ROUNDS_ACTIVATIONS = ("torchao int8 dynamic", "bitsandbytes int8")
# classes of the weights that prove a model quantised
WEIGHTS = {
    "torchao int8": "Int8Tensor",
    "torchao int8 dynamic": "Int8Tensor",
    "bitsandbytes int8": "Int8Params",
    "bitsandbytes nf4": "Params4bit",
}


def load(kind: str, folder: Path) -> Any:
    """The model in `folder` with quantised linears; the test is skipped where the package is missing."""
    return AutoModelForImageTextToText.from_pretrained(folder, quantization_config=KINDS[kind](), device_map="cpu")
