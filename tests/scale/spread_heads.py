"""Every method on a tiny LLaVA whose heads are spread over two processes, against one process; see `launch`.

Writes as JSON what is wrong, by method; under "cut" what the same comparison finds where ranks hear nothing of one
another; and under "refused" what cannot be done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import AutoModelForImageTextToText, PreTrainedModel
from transformers.distributed import DistributedConfig

from tests.contracts import cases, kit, kv_cases, tower_cases
from tests.recipes.cases import RECIPES
from tests.tiny import tiny_inputs
from tests.tiny.models import CONFIGS, sharpen
from vlm_eff import attach
from vlm_eff.core.errors import CapabilityError
from vlm_eff.core.report import Stats
from vlm_eff.kvcache import snapkv
from vlm_eff.models.ranks import Ranks
from vlm_eff.tokens import fastv, lazyllm, streaming_heads, victor

SIZE, STEPS, RELATIVE = 2, 2, 1e-4
METHODS: dict[str, tuple[Any, ...]] = {
    name: (plugin,)
    for name, plugin in (
        cases.HARD
        | {name: hard for name, (_, hard, _) in cases.BYPASS_CASES.items()}
        | {name: hard for name, (_, hard, _) in cases.SPARSE_CASES.items()}
        | tower_cases.TOWER_HARD
        | kv_cases.HARD
        | {name: hard for name, (_, hard) in kv_cases.LOGIT_CASES.items()}
        | {name: hard for name, (_, hard) in RECIPES.items()}
    ).items()
    if name not in cases.VIDEO_METHODS
} | {
    "lazyllm, revived": (lazyllm(keep_ratio=0.6, layers=(1, 2, 4)),),
    "fastv + snapkv": (fastv(layer=1, keep_ratio=0.5), snapkv(keep_ratio=0.5, window=4)),
    # a head of the second rank is named
    "streaming, one dense head": (streaming_heads(sinks=2, local=7, dense_heads=((1, 3), (2, 0)), tile=(4, 4)),),
}
# one that ranks by a mean of heads, one that shares a budget among heads, one that looks into single heads
CUT = ("fastv", "adakv", "sparsevlm")


def build() -> PreTrainedModel:
    """A LLaVA with four key heads, two for each rank, and as many query heads again."""
    config = CONFIGS["llava"](kit.LAYERS)
    text = config.text_config
    text.num_attention_heads, text.num_key_value_heads, text.head_dim = 8, 4, 8
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    sharpen(model, torch.Generator().manual_seed(0))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def run(model: PreTrainedModel, inputs: Any, plugins: tuple[Any, ...]) -> dict[str, Any]:
    """What a run shows of itself; entries of the cache are those of this rank's heads."""
    with attach(model, *plugins) as handle:
        tokens, logits = kit.generate(model, inputs, STEPS)
        return {
            "logits": logits,
            "tokens": tokens,
            "survivors": [handle.survivors(layer) for layer in range(kit.LAYERS)],
            "attended": [handle.attended(layer) for layer in range(kit.LAYERS)],
            "entries": [handle.kv_positions(layer) for layer in range(kit.LAYERS)],
        }


def differences(got: dict[str, Any], want: dict[str, Any], rank: int = 0, size: int = 1) -> list[str]:
    """In what a run differs from one on one device, of which a rank has its part of the heads."""
    made = []
    for name in ("survivors", "attended"):
        pairs = zip(got[name], want[name], strict=True)
        same = all(torch.equal(a, b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))
        made += [] if same else [name]
    for layer, (ours, theirs) in enumerate(zip(got["entries"], want["entries"], strict=True)):
        heads = theirs.shape[1] // size
        if _sets(ours) != _sets(theirs[:, rank * heads : (rank + 1) * heads]):
            made.append(f"entries of layer {layer}")
            break
    worst = float((got["logits"] - want["logits"]).abs().max() / want["logits"].abs().max())
    made += [f"logits, by {worst:.1e}"] if not worst < RELATIVE else []
    return made if torch.equal(got["tokens"], want["tokens"]) else [*made, "tokens"]


def compared(model: PreTrainedModel, inputs: Any, name: str, want: dict[str, Any]) -> list[str]:
    """What is wrong with a method on a model whose heads are spread."""
    try:
        got = run(model, inputs, METHODS[name])
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    return differences(got, want, dist.get_rank(), SIZE)


def _sets(positions: Tensor) -> list[list[int]]:
    return [sorted(head[head >= 0].tolist()) for row in positions for head in row]


@contextmanager
def cut() -> Iterator[None]:
    """While open, a rank hears nothing of the others and takes its own heads for theirs."""
    whole = Ranks.gather
    Ranks.gather = lambda self, states: [states] * self.size  # type: ignore[method-assign]
    try:
        yield
    finally:
        Ranks.gather = whole  # type: ignore[method-assign]


def work(rank: int, folder: Path) -> None:
    """One of two ranks, as torchrun would start it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(SIZE)}
    meet = f"file://{folder / 'meet'}"
    dist.init_process_group("gloo", meet, timedelta(seconds=60), world_size=SIZE, rank=rank)
    alone, inputs = build(), tiny_inputs("llava", (1, 2))
    if rank == 0:
        alone.save_pretrained(folder / "model")
    # each rank makes half of what has to come out
    mine = {name: run(alone, inputs, METHODS[name]) for name in list(METHODS)[rank::SIZE]}
    parts: list[Any] = [None] * SIZE
    dist.all_gather_object(parts, mine)
    wanted = {name: made for part in parts for name, made in part.items()}
    split = AutoModelForImageTextToText.from_pretrained(
        folder / "model", attn_implementation="sdpa", distributed_config=DistributedConfig(tp_size=SIZE, tp_plan="auto")
    ).eval()
    split.generation_config = alone.generation_config
    wrong = {name: compared(split, inputs, name, wanted[name]) for name in METHODS}
    with cut():
        found = {name: compared(split, inputs, name, wanted[name]) for name in CUT}
    report = {"wrong": {name: what for name, what in wrong.items() if what}, "cut": found, "refused": refusals(split)}
    report["stats"] = str(stats(split, inputs))
    (folder / f"rank-{rank}.json").write_text(json.dumps(report))
    dist.barrier()
    dist.destroy_process_group()


def refusals(model: PreTrainedModel) -> dict[str, str]:
    """What is refused when plugins are attached, by what was done to the model."""
    made = {}
    plan = model._tp_plan
    for name, change in {
        "training": lambda: model.train(),
        "sequence": lambda: model._tp_plan.__setitem__("norm", "sequence_parallel"),
        "uneven": lambda: setattr(model.get_decoder().layers[2].self_attn, "head_dim", 16),
        "nothing": lambda: None,
    }.items():
        model._tp_plan = dict(plan)
        change()
        try:
            attach(model, victor(untrained=True)).detach()
        except CapabilityError as error:
            made[name] = str(error)
        model.eval()
        model.get_decoder().layers[2].self_attn.head_dim = 8
    model._tp_plan = plan
    return made


def stats(model: PreTrainedModel, inputs: Any) -> Stats:
    """The report of one rank."""
    with attach(model, snapkv(keep_ratio=0.5, window=4)) as handle:
        kit.generate(model, inputs, 2)
        return handle.stats()
