"""The blocks of a diffusion transformer: in which order they run, and which streams each takes and returns."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vlm_eff.core.errors import CapabilityError, explain


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# lists of blocks, as models name them, in the order in which they run
_LISTS = (
    "transformer_blocks",
    "joint_transformer_blocks",
    "double_blocks",
    "blocks",
    "layers",
    "visual_transformer_blocks",
    "single_transformer_blocks",
)
# models of which those lists are not all that runs in a row: the axes of the stream change between blocks
_WOVEN = ("temporal_transformer_blocks",)
# blocks that return one stream, the first of their parameters
_ONE = _names(
    """
    AceStepTransformerBlock AllegroTransformerBlock AnyFlowTransformerBlock AuraFlowSingleTransformerBlock
    BasicTransformerBlock BriaFiboSingleTransformerBlock ChromaSingleTransformerBlock CosmosTransformerBlock
    Flux2SingleTransformerBlock HeliosTransformerBlock HunyuanDiTBlock Ideogram4TransformerBlock
    Kandinsky5TransformerDecoderBlock Krea2TransformerBlock LTXVideoTransformerBlock Lumina2TransformerBlock
    LuminaNextDiTBlock NucleusMoEImageTransformerBlock OmniGenBlock PRXBlock SanaTransformerBlock
    SanaVideoTransformerBlock SkyReelsV2TransformerBlock StableAudioDiTBlock WanTransformerBlock
    ZImageTransformerBlock
    """
)
# blocks that return two, in the order of their first two parameters
_AS_GIVEN = _names(
    """
    CogVideoXBlock CogView3PlusTransformerBlock CogView4TransformerBlock ConsisIDBlock
    EasyAnimateTransformerBlock GlmImageTransformerBlock HunyuanImageSingleTransformerBlock
    HunyuanImageTransformerBlock HunyuanVideo15TransformerBlock HunyuanVideoSingleTransformerBlock
    HunyuanVideoTransformerBlock HunyuanVideoTokenReplaceSingleTransformerBlock
    HunyuanVideoTokenReplaceTransformerBlock JoyImageTransformerBlock LTX2VideoTransformerBlock
    MochiTransformerBlock
    """
)
# blocks that return two, the other way round
_TURNED = _names(
    """
    AuraFlowJointTransformerBlock BriaFiboTransformerBlock BriaSingleTransformerBlock BriaTransformerBlock
    ChromaTransformerBlock Flux2TransformerBlock FluxSingleTransformerBlock FluxTransformerBlock
    JointTransformerBlock LongCatImageSingleTransformerBlock LongCatImageTransformerBlock
    OvisImageSingleTransformerBlock OvisImageTransformerBlock QwenImageTransformerBlock
    """
)


@dataclass(frozen=True, eq=False)
class Block:
    """A block of a transformer.

    name:    of the module in the model       index: number of the block, in the order in which they run
    main:    parameter of the stream that is denoised
    streams: parameters that it returns, in the order in which it does
    """

    name: str
    index: int
    module: nn.Module
    main: str
    streams: tuple[str, ...]

    def given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments of a call by name."""
        if not args:
            return kwargs
        names = list(inspect.signature(type(self.module).forward).parameters)[1:]
        return dict(zip(names, args, strict=False)) | kwargs

    def returned(self, output: Any) -> dict[str, Tensor]:
        """What came out of it, by the parameter that it takes the place of; without what is None.

        Raises:
            CapabilityError: an output of another form than the block's class has.
        """
        items = output if isinstance(output, tuple | list) else (output,)
        if len(items) != len(self.streams):
            raise CapabilityError(
                explain(
                    f"{type(self.module).__name__} {self.name} returned {len(items)} streams",
                    f"{len(self.streams)}: {', '.join(self.streams)}",
                    "Use forecast(), which needs to know nothing of blocks",
                )
            )
        return {name: item for name, item in zip(self.streams, items, strict=True) if isinstance(item, Tensor)}

    def output(self, values: dict[str, Any]) -> Any:
        """Streams by name in the form in which it returns them."""
        made = tuple(values.get(name) for name in self.streams)
        return made if len(made) > 1 else made[0]


def blocks_of(model: nn.Module) -> list[Block]:
    """The blocks of a denoiser in the order in which they run.

    A subclass of a known block is taken for one. Streams are told by the class: where both have one shape, nothing else
    tells the text from the image.

    Raises:
        CapabilityError: none are found, one is of an unknown class, or the axes change between them.
    """
    lists = [(name, found) for name in _LISTS if isinstance(found := getattr(model, name, None), nn.ModuleList)]
    modules = [(f"{name}.{number}", block) for name, found in lists for number, block in enumerate(found)]
    if not modules or any(hasattr(model, name) for name in _WOVEN):
        raise _refused(f"{type(model).__name__}, of which no run of blocks is known")
    return [_block(name, index, module) for index, (name, module) in enumerate(modules)]


def _block(name: str, index: int, module: nn.Module) -> Block:
    kinds = [kind.__name__ for kind in type(module).__mro__]
    names = tuple(list(inspect.signature(type(module).forward).parameters)[1:])
    if any(kind in _ONE for kind in kinds):
        return Block(name, index, module, names[0], names[:1])
    if any(kind in _AS_GIVEN for kind in kinds):
        return Block(name, index, module, names[0], names[:2])
    if any(kind in _TURNED for kind in kinds):
        return Block(name, index, module, names[0], names[1::-1])
    raise _refused(f"blocks of class {kinds[0]}, of which it is not known what they return")


def _refused(got: str) -> CapabilityError:
    return CapabilityError(
        explain(got, "transformers of diffusers whose blocks are known", "Use forecast(), which needs to know none")
    )
