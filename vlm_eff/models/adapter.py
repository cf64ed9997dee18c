"""What is known of one model: found by looking at it, plus what its family says. Describes, never decides."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

import vlm_eff.models.vlm  # noqa: F401  (registers the families)
from vlm_eff.core.errors import UnsupportedModelError, explain
from vlm_eff.models.family import FAMILIES, Family
from vlm_eff.models.ranks import Ranks, ranks_of
from vlm_eff.models.visual import Layout

_STRUCTURAL = (
    "bos_token_id", "eos_token_id", "pad_token_id", "vision_start_token_id", "vision_end_token_id",
    "boi_token_index", "eoi_token_index",
)  # fmt: skip


@dataclass(frozen=True)
class Adapter:
    """The parts of a vision-language model that the runtime needs.

    top:       what the user calls; core: the module that receives input ids; decoder: the module that has `layers`
    tokens:    placeholder ids of images; video_tokens: of videos
    structural: ids that are no words: begin and end of text and of images, padding, as far as the config names them
    tower:     the vision tower; blocks: its transformer blocks
    """

    family: Family
    top: nn.Module
    core: nn.Module
    decoder: nn.Module
    layers: nn.ModuleList
    tokens: tuple[int, ...]
    video_tokens: tuple[int, ...]
    structural: tuple[int, ...]
    layout: Layout
    tower: nn.Module
    blocks: nn.ModuleList

    @property
    def name(self) -> str:
        """Model family, as in `config.model_type`."""
        return self.family.model_type

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.layers)

    @property
    def cache_layers(self) -> tuple[int, ...]:
        """Decoder layers whose cache grows with the sequence: neither sliding nor of another kind."""
        config = self.decoder.config
        kinds = getattr(config, "layer_types", None)
        if kinds is None:
            kinds = ["full_attention"] * self.num_layers
        return tuple(index for index, kind in enumerate(kinds) if kind == "full_attention")

    @property
    def class_token(self) -> bool:
        """True when the tower's first token is a class token."""
        names = (name for name, _ in self.tower.named_parameters())
        return self.family.class_token and any(name.endswith(("class_embedding", "cls_token")) for name in names)

    @property
    def projector(self) -> nn.Module | None:
        """What turns each tower feature into one token by itself, in families that have such a part."""
        return getattr(self.core, self.family.projector) if self.family.projector else None

    def block(self, index: int | None) -> int:
        """Number of a tower block, 0-based; see `TowerAttention` for None and negative numbers."""
        config = self.core.config
        if index is None:
            # an index into hidden states, of which the first is the input of block 0
            chosen = getattr(config, "vision_feature_layer", -1)
            last = chosen if isinstance(chosen, int) else max(chosen, key=lambda layer: layer % (len(self.blocks) + 1))
            index = last - 1 - len(self.blocks) if last >= 0 else last
        whole = getattr(config.vision_config, "fullatt_block_indexes", None)
        found = index % len(self.blocks)
        return max((block for block in whole if block <= found), default=found) if whole and index < 0 else found

    @property
    def ordered(self) -> bool:
        """Whether a token sees only what comes before it; False where a prompt is attended in both directions."""
        return bool(getattr(self.layers[0].self_attn, "is_causal", True))

    @property
    def width(self) -> int:
        """Width of the decoder's hidden states."""
        return int(self.decoder.config.hidden_size)

    @cached_property
    def ranks(self) -> Ranks:
        """How the decoder's attention heads lie on ranks; one that has them all without tensor parallelism."""
        return ranks_of(self.decoder.config, self.decoder)

    def newline(self) -> Tensor | None:
        """The image-newline embedding [D] of families that have one."""
        return getattr(self.core, self.family.newline) if self.family.newline else None

    def rotary(self, layer: int, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Rotary tables (cos, sin) [B, N, Dh] of one layer at `positions` [B, N]."""
        rotary = self.decoder.rotary_emb
        if "layer_type" in inspect.signature(rotary.forward).parameters:
            made = rotary(hidden, positions, self.decoder.config.layer_types[layer])
        else:
            made = rotary(hidden, positions)
        return made  # type: ignore[no-any-return]

    @property
    def head(self) -> nn.Module:
        """What makes logits of the decoder's last hidden states."""
        made: nn.Module = self.top.get_output_embeddings()
        return made

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of the decoder's last hidden states [..., D], as the model's own head makes them."""
        made: Tensor = self.head(hidden)
        code = inspect.unwrap(type(self.top).forward).__code__
        cap = getattr(self.decoder.config, "final_logit_softcapping", None)
        # some families have the number in their config and leave it to their text-only models
        if cap is not None and "final_logit_softcapping" in (*code.co_names, *code.co_consts):
            made = cap * (made / cap).tanh()
        return made

    def explain(self) -> str:
        """What was found, in lines for a person."""
        kinds = getattr(self.decoder.config, "layer_types", None)
        return "\n".join(
            [
                f"family      {self.name} (tested with transformers {self.family.transformers})",
                f"core        {type(self.core).__name__}",
                f"decoder     {type(self.decoder).__name__}, {self.num_layers} layers"
                + (f" ({', '.join(f'{kinds.count(k)} {k}' for k in sorted(set(kinds)))})" if kinds else ""),
                f"attention   {self.decoder.config._attn_implementation}",
                f"tower       {type(self.tower).__name__}, {len(self.blocks)} blocks"
                + (", class token" if self.class_token else ""),
                f"image ids   {self.tokens or 'none'}, video ids {self.video_tokens or 'none'}",
                f"positions   {'time, height, width' if self.family.multi_axis_rope else 'one axis'}",
            ]
        )


def adapter_for(model: Any) -> Adapter:
    """Describe a model, or refuse it by name.

    Accepts a transformers model, a transformers pipeline (its `model`), and a PEFT-wrapped model.

    Raises:
        UnsupportedModelError: not a model, an unknown family, or a family whose parts are not where they should be.
    """
    top = unwrap(model)
    config = getattr(top, "config", None)
    model_type = getattr(config, "model_type", None)
    if model_type not in FAMILIES:
        raise UnsupportedModelError(
            explain(
                f"no adapter for model_type {model_type!r} ({type(top).__name__})",
                ", ".join(FAMILIES),
                "Use one of these families, or write an adapter: see docs/add-a-model.md",
            )
        )
    family = FAMILIES.get(model_type)
    core = top.base_model
    decoder = top.get_decoder()
    while not hasattr(decoder, "layers"):
        inner = getattr(decoder, "model", None) or getattr(decoder, "decoder", None)
        if inner is None:
            raise _without(family, "a decoder with layers")
        decoder = inner
    tower = core.get_encoder(modality="image")
    if tower is core:
        raise _without(family, "a vision tower")
    tokens = _ids(config, "image_token_id")
    if not tokens:
        raise _without(family, "an image token id in its config")
    return Adapter(
        family=family,
        top=top,
        core=core,
        decoder=decoder,
        layers=decoder.layers,
        tokens=tokens,
        video_tokens=_ids(config, "video_token_id"),
        structural=_structural(config),
        layout=family.make_layout(config),
        tower=tower,
        blocks=_blocks(family, tower),
    )


def unwrap(model: Any) -> Any:
    """The transformers model inside a pipeline, a PEFT model or a data-parallel wrapper."""
    if not isinstance(model, nn.Module) and isinstance(getattr(model, "model", None), nn.Module):
        model = model.model
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            explain(
                f"attach was given {type(model).__name__}",
                "a transformers model, a transformers pipeline or a PEFT model",
                "Pass the model itself",
            )
        )
    return model


def _ids(config: Any, name: str) -> tuple[int, ...]:
    value = getattr(config, name, None)
    return () if value is None else (int(value),)


def _structural(config: Any) -> tuple[int, ...]:
    """Every id that the config names as the begin or end of something, or as padding."""
    found: set[int] = set()
    for part in (config, config.get_text_config()):
        for name in _STRUCTURAL:
            value = getattr(part, name, None)
            found.update(value if isinstance(value, (list, tuple)) else () if value is None else (value,))
    return tuple(sorted(found))


def _blocks(family: Family, tower: nn.Module) -> nn.ModuleList:
    for path in ("encoder.layers", "encoder.layer", "blocks", "transformer.layers", "layers"):
        found: Any = tower
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList):
            return found
    raise _without(family, "blocks in its vision tower")


def _without(family: Family, what: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        explain(
            f"this {family.model_type} model lacks {what}",
            f"the layout of transformers {family.transformers}",
            "Check the transformers version, or write an adapter: see docs/add-a-model.md",
        )
    )
