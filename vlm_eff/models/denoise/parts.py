"""Attention and MLPs of a denoiser's blocks: found by how diffusers names and builds them, in the order they run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import nn

from vlm_eff.core.denoise import MODULE_KINDS
from vlm_eff.core.errors import CapabilityError, explain

# what blocks call their MLPs; one of a stream of its own has its own name
_MLPS = frozenset(
    {"ff", "ff_i", "ff_in", "ff_t", "ff_context", "ffn", "mlp", "mlp_context", "img_mlp", "txt_mlp"}
    | {"audio_ff", "feed_forward", "proj_mlp"}
)
# lists of blocks that take turns, and sections that follow each other, in this order; other lists do as they stand
_TURNS = ("attentions", "motion_modules", "temp_attentions", "transformer_blocks", "temporal_transformer_blocks")
_SECTIONS = ("transformer_in", "down_blocks", "mid_block", "up_blocks")
# attention that belongs to the conditions or to an adapter, not to what is denoised
_STRANGERS = ("embed", "fuser", "projector", "text_")


@dataclass(frozen=True)
class Part:
    """A module that can be skipped.

    name:   of the module in the denoiser
    kind:   "self", "cross" or "temporal" attention, "mlp", or "fused": both at once, where a block adds them up in one
            projection
    index:  number of its block, 0-based, in the order in which blocks run; blocks: how many there are
    module: the one whose output counts
    before: modules that run in front of it and for it alone
    """

    name: str
    kind: str
    index: int
    blocks: int
    module: nn.Module
    before: tuple[nn.Module, ...] = ()


def find_parts(denoiser: nn.Module, kinds: Sequence[str] = MODULE_KINDS) -> list[Part]:
    """Parts of these kinds, in the order of their blocks; empty where the denoiser has none."""
    blocks = list(_blocks(denoiser))
    seen = list(dict.fromkeys(piece for path, _ in blocks for piece in path.split(".")))
    blocks.sort(key=lambda block: _place(block[0], seen))
    found: list[Part] = []
    for index, (path, block) in enumerate(blocks):
        members = dict(_members(path, block))
        merges = {"proj_mlp", "proj_out"} <= set(block._modules) and {"self", "mlp"} <= set(kinds)
        if merges and sum(kind == "self" for kind in members.values()) == 1:
            before = tuple(block._modules[name] for name in members if members[name] in ("self", "mlp"))
            inside = tuple(module for module in before if module is not None)
            found.append(Part(_join(path, "proj_out"), "fused", index, len(blocks), block.proj_out, inside))
            continue
        for name, kind in members.items():
            if kind in kinds:
                module = block if name == "" else block._modules[name]
                assert module is not None
                found.append(Part(_join(path, name), kind, index, len(blocks), module))
    return found


def parts_of(
    denoiser: nn.Module, kinds: Sequence[str], needed: Sequence[str], blocks: Sequence[int] | None
) -> list[Part]:
    """As `find_parts`, of some blocks only.

    Raises:
        CapabilityError: no part of any of these kinds, or of one that is needed, or a block that does not exist.
    """
    have = {part.kind for part in find_parts(denoiser, ("self", "cross", "temporal"))}
    have |= {part.kind for part in find_parts(denoiser, ("mlp",))}
    lacking = [kind for kind in needed if kind not in have]
    if lacking or not have & set(kinds):
        raise CapabilityError(
            explain(
                f"{' and '.join(lacking or kinds)} in blocks of {type(denoiser).__name__}",
                ", ".join(kind for kind in MODULE_KINDS if kind in have) or "a denoiser with attention in blocks",
                "Ask for kinds that it has, or use forecast(), which needs to know nothing of blocks",
            )
        )
    found = find_parts(denoiser, kinds)
    count = found[0].blocks
    if blocks is not None and not all(0 <= block < count for block in blocks):
        raise CapabilityError(
            explain(f"blocks {tuple(blocks)} of {type(denoiser).__name__}", f"0 to {count - 1}", "Name such blocks")
        )
    return [part for part in found if blocks is None or part.index in blocks]


def _blocks(denoiser: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules that have attention inside: blocks, or attention that stands for itself in a list."""
    for path, module in denoiser.named_modules():
        if any(word in piece for piece in path.split(".") for word in _STRANGERS):
            continue
        if isinstance(module, nn.ModuleList):
            for name, child in module.named_children():
                if _is_attention(child) and not _adds_input(child):
                    yield _join(path, name), child
        elif path and not _is_attention(module) and any(_is_attention(child) for child in module.children()):
            yield path, module


def _members(path: str, block: nn.Module) -> Iterator[tuple[str, str]]:
    if _is_attention(block):
        yield "", _attention_kind(path, block)
        return
    for name, child in block.named_children():
        if _is_attention(child):
            if not _adds_input(child):
                yield name, _attention_kind(_join(path, name), child)
        elif name in _MLPS:
            yield name, "mlp"


def _is_attention(module: nn.Module) -> bool:
    return "Attention" in type(module).__name__ and (hasattr(module, "to_q") or hasattr(module, "to_out"))


def _adds_input(module: nn.Module) -> bool:
    # what such attention returns has its input in it, which must not be kept
    return bool(getattr(module, "residual_connection", False))


def _attention_kind(path: str, module: nn.Module) -> str:
    name = path.split(".")[-1]
    cross = getattr(module, "is_cross_attention", None)
    if cross if cross is not None else name == "attn2" or "cross" in name:
        return "cross"
    over_time = any(piece.startswith(("temp", "motion")) for piece in path.split("."))
    return "temporal" if over_time else "self"


def _place(path: str, seen: list[str]) -> tuple[tuple[int, ...], ...]:
    """Where a block comes in the order of execution; seen: names on all paths, in order of appearance."""
    pieces, places = path.split("."), []
    for place, piece in enumerate(pieces):
        if piece.isdigit():
            continue
        follows = pieces[place + 1] if place + 1 < len(pieces) else ""
        number = int(follows) if follows.isdigit() else 0
        if piece in _TURNS:
            places.append((len(_SECTIONS), -1, number, _TURNS.index(piece)))
        else:
            section = _SECTIONS.index(piece) if piece in _SECTIONS else len(_SECTIONS)
            places.append((section, seen.index(piece), number, 0))
    return tuple(places)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name
