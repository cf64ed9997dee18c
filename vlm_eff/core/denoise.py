"""What plugins of a diffusion pipeline are asked, and what they may answer."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import BindContext, Plugin

if TYPE_CHECKING:
    from torch import Tensor

MODULE_KINDS = ("self", "cross", "temporal", "mlp")


@part
@dataclass(frozen=True)
class DenoiseSite:
    """Where plugins of a diffusion pipeline are asked; subclasses say of which part."""


@part
@dataclass(frozen=True)
class DenoiserSite(DenoiseSite):
    """A whole call of the denoiser: the UNet or transformer of the pipeline."""


@part
@dataclass(frozen=True)
class StackSite(DenoiseSite):
    """The blocks of a transformer from `first` on, as one: what they add to their input.

    first: blocks in front of it, which are always computed; last: blocks behind it, the same
    looks: probes that the plugin will ask for, so that a model that cannot show them is refused at attach
    """

    first: int = 1
    last: int = 0
    looks: tuple[str, ...] = ()


@part
@dataclass(frozen=True)
class DeepSite(DenoiseSite):
    """The inside of a UNet, below skip connection `branch` (0-based, counted from the input): what comes up from it."""

    branch: int = 0


@part
@dataclass(frozen=True)
class ModuleSite(DenoiseSite):
    """Single modules of the denoiser's blocks: what they return.

    kinds:  of "self", "cross" and "temporal" attention, and "mlp": those of them that the denoiser has
    needed: kinds without which the plugin refuses to be attached
    blocks: 0-based numbers of the blocks, in the order in which they run; None for all

    Joint attention of text and image counts as "self". A block that adds attention and MLP up in one projection (Flux's
    single blocks) is one unit of kind "fused" for those who name both.
    """

    kinds: tuple[str, ...] = MODULE_KINDS
    needed: tuple[str, ...] = ()
    blocks: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.kinds or not set(self.kinds) <= set(MODULE_KINDS):
            raise ConfigError(
                explain(f"kinds={self.kinds!r}", " or ".join(map(repr, MODULE_KINDS)), "Name at least one of them")
            )


@part
@dataclass(frozen=True)
class GuidanceSite(DenoiseSite):
    """The unconditional half of classifier-free guidance, in one batch with the other half or in a call of its own.

    Asked once a step for both halves. `Predict` holds the difference of the two outputs, first minus second in the
    pipeline's own order; `Unguided` gives up the guidance of this step. The history of the view holds such differences,
    and as inputs the first half's output.

    inside: asked only where caches of the denoiser's output let it compute, so that what is supplied is to them what
            was computed; False puts it around them, where guidance itself is to change
    """

    inside: bool = False


@part
@dataclass(frozen=True)
class TokenSite(DenoiseSite):
    """The tokens of the image on which modules of the denoiser's blocks compute; answered with `MergeTokens`.

    kinds:    of "self" and "cross" attention, and "mlp"
    guidance: show how much the guidance changed each token at the step before
    """

    kinds: tuple[str, ...] = ("self",)
    guidance: bool = False


@part
@dataclass(frozen=True)
class SamplerSite(DenoiseSite):
    """The scheduler of the pipeline, asked once, at attach."""


@part
@dataclass(frozen=True)
class StartSite(DenoiseSite):
    """The beginning and the end of a run: where its latents start from, and what is kept of it.

    look: steps that are computed before the plugin is asked
    keep: shares of the steps behind which latents are kept
    """

    look: int = 0
    keep: tuple[float, ...] = ()


@dataclass(frozen=True)
class Step:
    """One step of a run of the scheduler.

    index, count: number of the step from 0, and of all steps of the run; a solver with two evaluations a step counts
                  each of them
    timestep:     as the scheduler names it, 0 to 1000 for most
    sigma:        noise level: of x = x0 + sigma * noise, or of x = (1 - sigma) * x0 + sigma * noise under flow matching
    log_snr:      log(signal^2 / noise^2)
    """

    index: int
    count: int
    timestep: float
    sigma: float
    log_snr: float
    run: int = 0

    @property
    def last(self) -> bool:
        """True for the last step of the run."""
        return self.index == self.count - 1


@dataclass(frozen=True)
class Predict:
    """Use `value` in place of what the unit would compute.

    value: the unit's output streams, each [R, ...]
    rows:  [R] bool, the rows that are predicted; the others are computed. None for all
    """

    value: tuple[Tensor, ...]
    rows: Tensor | None = None


@dataclass(frozen=True)
class Unguided:
    """Compute the conditional half alone and let it stand for the other too: guidance then changes nothing."""


class NoGuidance(UserWarning):
    """A whole run had no guidance that a plugin could have saved work of."""


@dataclass(frozen=True)
class MergeTokens:
    """Compute a block's modules on fewer tokens: means of those that go into one place, copied back to each of them.

    into: [R, N] place of every token of the block among the `home.shape[1]` that are left
    home: [R, K] the token whose position each place takes, where the model has rotary positions
    flops: spent on finding them
    """

    into: Tensor
    home: Tensor
    flops: int = 0


@dataclass(frozen=True)
class DenoiseContext(BindContext):
    """What a plugin may know of a pipeline when it is attached.

    family:    class of the denoiser                      kind: "unet" or "transformer"
    pipeline:  class of the pipeline                      scheduler: class of its scheduler
    flow:      whether the scheduler is one of flow matching
    denoisers: how many the pipeline has (two in Wan 2.2)
    """

    kind: str = "transformer"
    pipeline: str = ""
    scheduler: str = ""
    flow: bool = False
    denoisers: int = 1


@dataclass(frozen=True)
class DenoisePlugin(Plugin):
    """A plugin of a diffusion pipeline."""

    @property
    @abstractmethod
    def sites(self) -> tuple[DenoiseSite, ...]:
        """Which parts of the pipeline the plugin wants to be asked at."""

    @property
    def depth(self) -> int:
        """How many computed outputs of each unit are kept for it."""
        return 1

    @property
    def sees_inputs(self) -> bool:
        """Whether the inputs of those calls are kept too."""
        return False

    def bind(self, context: BindContext) -> DenoisePlugin:
        """The plugin for one pipeline; `CapabilityError` when it cannot work there."""
        return self

    @abstractmethod
    def at(self, site: Any, view: Any) -> Any:
        """Decide at a site; None computes.

        Units that are skipped as a whole answer with `Predict`; what other sites show and expect stands with their
        drivers in `models/denoise/`.
        """
