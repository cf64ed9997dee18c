"""EViT and Zero-TPrune keep what their definitions say, worked out a second time on a timm tower."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.test_lone_towers import TOWERS, output, pixels, timm_tower
from vlm_eff import attach
from vlm_eff.core.errors import CapabilityError, ConfigError
from vlm_eff.tokens import evit, zero_tprune

BLOCKS = 4


def parts(block: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Attention [B, H, T, T], keys [B, H, T, Dh] and the residual stream behind it, by plain matrices."""
    attention = block.attn
    split = attention.qkv(block.norm1(hidden)).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key, value = split
    weights = (query @ key.transpose(2, 3) * attention.scale).softmax(-1)
    mixed = attention.proj((weights @ value).transpose(1, 2).flatten(2))
    return weights, key, hidden + block.ls1(mixed)


def start(model: Any) -> Tensor:
    return model.norm_pre(model._pos_embed(model.patch_embed(pixels())))


def evit_features(model: Any, keep: float, at: int, weigh: str) -> Tensor:
    """The class token behind the last norm [B, D]."""
    hidden = start(model)
    for index, block in enumerate(model.blocks):
        weights, _, hidden = parts(block, hidden)
        if index == at:
            looks = weights[:, :, 0, 1:].mean(1)
            rows = []
            for row, look in zip(hidden, looks, strict=True):
                order = look.argsort(descending=True, stable=True)
                stays = order[: math.ceil(keep * len(look))].sort().values
                goes = order[len(stays) :]
                share = look[goes] / look[goes].sum() if weigh == "mean" else look[goes]
                fused = (share[:, None] * row[1:][goes]).sum(0, keepdim=True)
                rows.append(torch.cat([row[:1], row[1:][stays]] + ([] if weigh == "none" else [fused])))
            hidden = torch.stack(rows)
        hidden = hidden + block.ls2(block.mlp(block.norm2(hidden)))
    return model.norm(hidden)[:, 0]


@pytest.mark.parametrize(("weigh", "options"), [("mean", {}), ("sum", {"faithful": True}), ("none", {"fuse": False})])
@pytest.mark.parametrize("at", [0, 2])
def test_evit_equals_its_definition(weigh: str, options: dict[str, bool], at: int) -> None:
    model = timm_tower()
    with torch.no_grad():
        want = evit_features(model, 0.41, at, weigh)
        with attach(model, evit(0.41, blocks=(at,), **options)) as handle:
            got = model.forward_features(pixels())[:, 0]
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)
    report = handle.stats().towers[0]
    left = 1 + math.ceil(0.41 * 49) + (weigh != "none")
    assert report.left == (left, left)
    assert report.attended[at] == 50 and report.processed[at] == left


def test_evit_stages_by_default() -> None:
    model = timm_tower(depth=12)
    with attach(model, evit()) as handle:
        output(model, pixels())
    report = handle.stats().towers[0]
    # 49 -> ceil(.7 x 49) = 35 and one fused; of these 36, 26 and one; of these 27, 19 and one; class token besides
    assert report.processed == (50, 50, 50, 37, 37, 37, 28, 28, 28, 21, 21, 21)
    assert report.attended == (50, 50, 50, 50, 37, 37, 37, 28, 28, 28, 21, 21)
    assert 0.55 < report.flops / report.flops_bare < 0.75


def test_zero_tprune_equals_its_definition() -> None:
    model = timm_tower()
    with torch.no_grad():
        hidden = start(model)
        weights, keys, hidden = parts(model.blocks[0], hidden)
        with attach(model, zero_tprune(0.6, similar=0.15, blocks=(1,))) as handle:
            output(model, pixels())
    for image, (slot, place) in enumerate(handle.tower_groups(1)):
        heads = []
        for head in weights[image]:
            values, vectors = torch.linalg.eig(head.T.double())
            eigen = vectors[:, values.real.argmax()].real
            heads.append((eigen / eigen.sum()).float() * 50)
        passed = [head for head in heads if 0.01 <= float(head.var(correction=0)) <= 0.7] or heads
        score = torch.stack(passed).pow(2).mean(0).sqrt()[1:]
        order = score.argsort(descending=True, stable=True)[: math.ceil(0.6 * 49)].tolist()
        unit = torch.nn.functional.normalize(keys[image].mean(0)[1:], dim=-1)
        upper, lower = order[: (len(order) + 1) // 2], order[(len(order) + 1) // 2 :]
        alike = {one: max(float(unit[one] @ unit[other]) for other in upper) for one in lower}
        doubles = sorted(lower, key=lambda one: -alike[one])[: int(0.15 * 49)]
        want = sorted(set(order) - set(doubles))
        assert place.tolist() == [0, *(one + 1 for one in want)]
        assert (slot < 0).sum() == 49 - len(want)


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("plugin", [evit(0.5), zero_tprune(0.6)], ids=["evit", "zero_tprune"])
def test_every_library(name: str, plugin: Any) -> None:
    model, images = TOWERS[name](), pixels(3)
    bare = output(model, images)
    with attach(model, plugin) as handle:
        made = output(model, images)
        alone = torch.cat([output(model, image[None]) for image in images])
    assert made.shape == bare.shape
    torch.testing.assert_close(made, alone, atol=2e-4, rtol=1e-4)
    assert torch.equal(output(model, images), bare)
    assert handle.stats().towers[0].left[0] < 30


def test_dropped_patches_keep_their_last_state() -> None:
    model = TOWERS["timm"]()
    with torch.no_grad(), attach(model, zero_tprune(0.5, blocks=(2,))) as handle:
        got = model.get_intermediate_layers(pixels(), n=range(BLOCKS), return_prefix_tokens=False, norm=False)
    slot, _ = handle.tower_groups(3)[0]
    gone = slot[1:] < 0
    assert gone.any()
    # block 1's output is the state before block 2, where they were dropped
    for block in (2, 3):
        assert torch.equal(got[block][0][gone], got[1][0][gone])
        assert not torch.equal(got[block][0][~gone], got[1][0][~gone])


def test_what_is_refused() -> None:
    model = timm_tower()
    for make in (lambda: evit(0.0), lambda: evit(1.1), lambda: evit(blocks=(2, 1)), lambda: zero_tprune(0.5, 0.5)):
        with pytest.raises(ConfigError):
            make()
    with pytest.raises(CapabilityError, match="block 9"):
        attach(model, evit(blocks=(9,)))
    with pytest.raises(CapabilityError, match="from 1 on"):
        attach(model, zero_tprune(blocks=(0, 2)))
    with pytest.raises(CapabilityError, match="class token"):
        attach(TOWERS["siglip"](), evit(row="cls"))
