"""What the code of a page finds when it begins: the names that the page takes for granted, and files it reads.

A reader has a model, inputs and a prompt of their own; here these are the models that come along, or tiny ones.
"""

import copy
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import vlm_eff
from vlm_eff import attach
from vlm_eff.reference import load_reference
from vlm_eff.reference.scenes import make_scene, render

Names = dict[str, Any]
QUESTION = "user: <image> what word is written? assistant:"


@cache
def bundled() -> tuple[Any, Any]:
    """The bundled model and its processor, once."""
    return load_reference()


def asked() -> Names:
    """A model, its processor, and one question about one picture; answers of three tokens."""
    model, processor = bundled()
    model.generation_config.max_new_tokens = 3
    inputs = processor(images=render(make_scene(3, "test")), text=QUESTION, return_tensors="pt")
    return {"model": model, "processor": processor, "inputs": inputs}


def drawing() -> Names:
    """The tiniest Stable Diffusion that has an inside, under a stand-in for its text encoder: pages run it often."""
    import diffusers

    from tests.tiny.pipelines import WIDTH, make_pipeline

    tiny = make_pipeline("sd")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(8, 8),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    tiny.pipe.register_modules(unet=unet.eval())
    tiny.pipe.encode_prompt = lambda *_, **__: (tiny.call["prompt_embeds"], tiny.call["negative_prompt_embeds"])
    return {"pipe": tiny.pipe, "prompt": "a red bicycle"}


def _readme(_: pytest.MonkeyPatch) -> Names:
    return asked() | drawing()


def _diffusion(_: pytest.MonkeyPatch) -> Names:
    return drawing()


def _attached(_: pytest.MonkeyPatch) -> Names:
    return asked() | {"attach": attach}


def _beside(_: pytest.MonkeyPatch) -> Names:
    """A model of the page's own: it wraps it."""
    names = asked()
    return names | {"model": copy.deepcopy(names["model"])}


def _costs(monkeypatch: pytest.MonkeyPatch) -> Names:
    from vlm_eff.eval.subject import Subject
    from vlm_eff.tokens import fastv

    names = _attached(monkeypatch)
    return names | {"subject": Subject(*bundled(), "bundled"), "fastv": fastv}


def _revival(monkeypatch: pytest.MonkeyPatch) -> Names:
    from vlm_eff.tokens import lazyllm

    return _attached(monkeypatch) | {"lazyllm": lazyllm}


def _registers(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Two small batches; labels on the last token alone."""
    names = _attached(monkeypatch)
    labels = names["inputs"]["input_ids"].clone()
    labels[:, :-1] = -100
    return names | {"batches": [(names["inputs"], labels)] * 2}


def _towers(monkeypatch: pytest.MonkeyPatch) -> Names:
    import timm

    whole = timm.create_model
    # no weights are downloaded in a test
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: whole(name, pretrained=False))
    return {"pixels": torch.rand(1, 3, 224, 224)}


def _tuning(_: pytest.MonkeyPatch) -> Names:
    """A preset as `vlm-eff tune` writes it."""
    from vlm_eff.recipes.preset import Preset, save_preset

    save_preset(Path("tuned.json"), Preset("tuned", (vlm_eff.plugin("fastv"),), 8, "bundled"))
    return asked() | {"vlm_eff": vlm_eff}


def _video(_: pytest.MonkeyPatch) -> Names:
    from tests.video.clips import write_clip
    from tests.video.watcher import watching_subject

    write_clip(Path("clip.mp4"), frames=40)
    return {"processor": watching_subject().processor, "text": "<|vision_start|><|video_pad|><|vision_end|> w20"}


def _bridges(monkeypatch: pytest.MonkeyPatch) -> Names:
    """The names of VLMEvalKit that our bridge touches, and a run of it that does nothing."""
    kit, config, run = ModuleType("vlmeval"), ModuleType("vlmeval.config"), ModuleType("vlmeval.run")
    config.supported_VLM = {"llava_next_vicuna_7b": Callable}  # type: ignore[attr-defined]
    for module in (kit, config, run):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("runpy.run_module", lambda name, run_name: None)
    monkeypatch.setattr("sys.argv", [])
    monkeypatch.setattr("atexit.register", lambda *_: None)
    return {}


def _nothing(_: pytest.MonkeyPatch) -> Names:
    return {}


NAMES: dict[str, Callable[[pytest.MonkeyPatch], Names]] = {
    "README.md": _readme,
    "docs/adaptive.md": _attached,
    "docs/add-a-method.md": _attached,
    "docs/beside.md": _beside,
    "docs/bridges.md": _bridges,
    "docs/costs.md": _costs,
    "docs/diffusion.md": _diffusion,
    "docs/how-it-works.md": _attached,
    "docs/kvcache.md": _attached,
    "docs/registers.md": _registers,
    "docs/revival.md": _revival,
    "docs/towers.md": _towers,
    "docs/tuning.md": _tuning,
    "docs/video.md": _video,
}


def names_of(page: str, monkeypatch: pytest.MonkeyPatch) -> Names:
    """What the code of a page finds; nothing, where its first block makes everything it needs."""
    return {"__name__": f"page_{page}"} | NAMES.get(page, _nothing)(monkeypatch)
