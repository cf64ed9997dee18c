"""ZipVL's sparse prefill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from vlm_eff.core.action import Attend
from vlm_eff.core.config import part
from vlm_eff.core.errors import ConfigError, explain
from vlm_eff.core.plugin import AttentionSite, BindContext, Observation, Plugin, QueryRows, Site
from vlm_eff.core.registry import method
from vlm_eff.core.resources import Resource
from vlm_eff.importance.attention import important
from vlm_eff.importance.keep import check_ratio
from vlm_eff.importance.select import from_mask
from vlm_eff.models.view import View
from vlm_eff.tokens.schedule import check_layers


@part
@dataclass(frozen=True)
class ImportantAttention(Plugin):
    """Lets the candidates that get little attention in a layer bypass the attention of this layer.

    keep_mass: fraction of the attention that the chosen tokens hold; layers: None until bound means all
    recent, random, seed: the probe rows; recent 1 looks at every row
    """

    keep_mass: float
    layers: tuple[int, ...] | None
    recent: float
    random: float
    seed: int

    @property
    def name(self) -> str:
        return "zipvl_attention"

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(AttentionSite(layer) for layer in self.layers or ())

    @property
    def needs(self) -> tuple[Observation, ...]:
        return () if self.keep_mass == 1 else tuple(QueryRows(layer) for layer in self.layers or ())

    @property
    def writes(self) -> frozenset[Resource]:
        return frozenset({Resource.ATTENTION_TOKENS})

    def bind(self, context: BindContext) -> ImportantAttention:
        bound = replace(self, layers=tuple(range(context.num_layers)) if self.layers is None else self.layers)
        for site in bound.sites:
            context.check_layer(self.name, site.layer)
        return bound

    def at(self, site: Site, view: View) -> Attend | None:
        if self.keep_mass == 1:
            return None
        prompt, spans = view.prompt.everything(), view.spans
        got = view.attention(QueryRows(site.layer), view.probes(self.recent, self.random, self.seed))
        chosen = important(*got.to(prompt), self.keep_mass, prompt.valid)
        # words and the last token take part in any case: only candidates are looked up
        length = view.survivors.length
        at_slot = torch.zeros(chosen.shape[0], length + 1, dtype=torch.bool, device=chosen.device)
        at_slot.scatter_(1, torch.where(prompt.valid, prompt.slot, length), chosen)
        stays = at_slot.gather(1, spans.slot) & spans.valid
        if bool((stays | ~spans.valid).all()):
            return None
        selection = from_mask(stays)
        return Attend(selection.index, selection.valid)


@method(room="tokens", acts="inside the attention of decoder layers", paper="arXiv:2410.08584")
def zipvl_attention(
    keep_mass: float = 0.975,
    layers: Sequence[int] | None = None,
    recent: float = 0.05,
    random: float = 0.05,
    seed: int = 0,
) -> ImportantAttention:
    """Compute each layer's attention only among the tokens that hold most of its mass; the others pass by.

    Score    attention each token gets from probe rows of the same layer, mean over heads; how many: the fewest that
             hold `keep_mass` of it; which: the best by what they get a look  [B, N]
    Reduce   none: tokens stay in the sequence and in the KV cache; a candidate that is not chosen gets no attention
             output in this layer and is no key in it. Decode steps attend to everything
    Paper    ZipVL, arXiv:2410.08584, section 4 (tau = `keep_mass`); probes as in ZipCache, arXiv:2405.14256
    Differs  no code was released. Text always takes part; the paper leaves that to the score. The mixed-precision
             cache of the paper is not part of this method
    Cost     the products of a tenth of the rows, in every layer: 5 % / (1 - f**2) of what is saved when a fraction f
             attends, 7 % for a half. Probes are rows, so long prompts need a smaller share: recent=random=0.01
    Saves    attention FLOPs of the prefill; realised. Linear maps are computed for every token, and no KV cache is
             saved. Rows of a batch that choose different counts are computed at the largest

    Args:
        keep_mass: (0, 1]; 1 leaves the model untouched.
        layers: decoder layers in which this is done; default all, as in the paper.
        recent: fraction of the prompt's last tokens among the probes; 1 makes every row a probe (exact, and dear).
        random: fraction of the prompt drawn as further probes.
        seed: of the draw, together with the prompt.

    Raises:
        ConfigError: a fraction outside its range, layers that do not ascend.
        CapabilityError: at attach, for layers the decoder does not have.
    """
    check_ratio("keep_mass", keep_mass)
    check_ratio("recent", recent)
    check_layers(layers)
    if isinstance(random, bool) or not isinstance(random, (int, float)) or not 0 <= random <= 1:
        raise ConfigError(explain(f"random={random!r}", "a fraction in [0, 1]", "Give the fraction of random probes"))
    return ImportantAttention(keep_mass, None if layers is None else tuple(layers), recent, random, seed)
