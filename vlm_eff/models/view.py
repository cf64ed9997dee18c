"""What a plugin sees at a site: the visual candidates that are left, and what was observed of them. Read only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from vlm_eff.core.plugin import (
    LayerInput,
    LayerKeys,
    QueryRow,
    QueryRows,
    TowerAttention,
    TowerFeatures,
    TowerKeys,
    TowerObservation,
)
from vlm_eff.kernels.compact import compact
from vlm_eff.models.rows import Attended, PromptRows, Rows
from vlm_eff.models.token_map import TokenMap
from vlm_eff.models.visual import VisualSpans


class Observed(Protocol):
    """Answers the observations of one view; `Observer.at` makes it."""

    def query_logits(self, wanted: QueryRow) -> tuple[Tensor, Tensor]: ...
    def attention(self, wanted: QueryRow | QueryRows, rows: Rows, reduce: Literal["sum", "max"]) -> Attended: ...
    def layer_input(self, wanted: LayerInput, rows: Rows) -> Tensor: ...
    def layer_keys(self, wanted: LayerKeys, rows: Rows | None) -> Tensor: ...
    def tower(self, wanted: TowerObservation) -> Tensor: ...
    def project(self, features: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class View:
    """The state of one prefill at the input of a decoder layer.

    spans:          the candidates that are left, with their place in the image
    hidden:         [B, N, D] hidden states of the whole sequence, survivors only
    physical:       [B, V] position of each candidate in `hidden`
    original:       [B] candidates that entered the language model, a row
    image_original: () -> [B, G], the same for every image of a row, 0 where a row has fewer images
    survivors:      tokens that are present: the map from sequence to `hidden`
    prompt:         finds tokens by what they are; `text` and `probes` read it
    projects:       True before the first layer, in families whose projector turns each tower feature into one token
    weights:        the plugin's own weights, a torch module, or None; training: the model is in training mode
    share:          [B, V] how much of each candidate earlier soft decisions left, or None; gradients pass
    prompt_hash:    () -> a number for each row that depends on its prompt alone, equal for all beams of one prompt
    """

    layer: int
    spans: VisualSpans
    hidden: Tensor
    physical: Tensor
    original: Tensor
    image_original: Callable[[], Tensor]
    prompt_hash: Callable[[], tuple[int, ...]]
    observed: Observed
    survivors: TokenMap
    prompt: PromptRows
    projects: bool = False
    weights: Any = None
    training: bool = False
    share: Tensor | None = None

    def visual_hidden(self) -> Tensor:
        """Hidden states of the candidates [B, V, D]; columns beyond a row's own count hold other tokens."""
        return compact([self.hidden], self.physical)[0]

    def query_logits(self, wanted: QueryRow) -> tuple[Tensor, Tensor]:
        """Attention logits of the last prompt token [B, H, S] over all keys, and each candidate's key column [B, V].

        Float32, with -inf where the query may not look. The observation must be among the plugin's `needs`.
        """
        return self.observed.query_logits(wanted)

    def text(self, where: Literal["after", "all"] = "after") -> Rows:
        """Text tokens of each row: "after" the last visual token of the row (the question), or "all" of this call's.

        Left out are padding, visual placeholders with their newlines, candidates of assisted decoding that are not
        verified yet, and the ids that the config names as begin, end or padding (of text and of images). Words of a
        chat template, and tags that only the tokenizer knows, count as text. A row may have none: where the image comes
        last, nothing is after it; a row without visual tokens has all its text after.
        """
        return self.prompt.text(where)

    def hidden_at(self, rows: Rows) -> Tensor:
        """Hidden states of `rows` [B, R, D]; columns beyond a row's own count hold other tokens."""
        return compact([self.hidden], self.physical_of(rows))[0]

    def physical_of(self, rows: Rows) -> Tensor:
        """Positions of `rows` in `hidden` [B, R]; meaningless where not valid."""
        return self.survivors.physical(rows.slot)

    def candidates(self) -> Rows:
        """The candidates that are left, as rows that can be asked for their attention."""
        return Rows(self.spans.slot, self.spans.valid)

    def probes(self, recent: float = 0.05, random: float = 0.05, seed: int = 0) -> Rows:
        """A few rows that stand for all: the last `recent` share of the prompt and a `random` share of the rest.

        Shares are rounded up and at least one token is recent. The draw depends on the seed and the prompt alone, so
        that beams, batches and padding do not matter; the global random state is not touched (ZipCache, 2405.14256).
        """
        return self.prompt.probes(recent, random, seed)

    def attention(self, wanted: QueryRow | QueryRows, rows: Rows, reduce: Literal["sum", "max"] = "sum") -> Attended:
        """Softmaxed attention of `rows` over all keys, summed or the largest over the rows [B, H, S].

        Float32, by `kernels.window_scores`: `prompt.everything()` gives exact column sums without an L x L matrix, at
        the price of all products. The observation must be among the plugin's `needs`.
        """
        return self.observed.attention(wanted, rows, reduce)

    def layer_input(self, wanted: LayerInput, rows: Rows | None = None) -> Tensor:
        """Hidden states of `rows` (default the candidates) at an earlier layer's input [B, R, D].

        Columns beyond a row's own count hold other tokens.
        """
        return self.observed.layer_input(wanted, self.candidates() if rows is None else rows)

    def layer_keys(self, wanted: LayerKeys, rows: Rows | None = None) -> Tensor:
        """Keys of the candidates [B, V, Hkv, Dh], or of `rows`; columns beyond a row's own count hold other tokens."""
        return self.observed.layer_keys(wanted, rows)

    def tower(self, wanted: TowerAttention) -> Tensor:
        """Tower attention of each candidate [B, V] float32, mean over the patches it is made from.

        Where the model shrinks a map of patches to fewer tokens by resizing, the mean has the resizing's own weights.
        """
        return self.observed.tower(wanted)[:, :, 0]

    def tower_keys(self, wanted: TowerKeys) -> Tensor:
        """Keys of a tower block for each candidate [B, V, Dk] float32, mean over the patches it is made from."""
        return self.observed.tower(wanted)

    def tower_features(self, wanted: TowerFeatures) -> Tensor:
        """What the projector was given for each candidate [B, V, Dv] in the model's dtype.

        In families without a projector of that kind, the hidden states of the candidates: see `project`.
        """
        return self.observed.tower(wanted) if self.projects else self.visual_hidden()

    def project(self, features: Tensor) -> Tensor:
        """Tokens [..., D] of tower features [..., Dv]; the features themselves where `tower_features` are tokens."""
        return self.observed.project(features) if self.projects else features
