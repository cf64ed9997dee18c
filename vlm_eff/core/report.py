"""What a handle says of its work: what was asked, what was got, what was realised."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from vlm_eff.core.denoise_report import DenoiseReport
    from vlm_eff.core.tower_report import TowerReport


@dataclass(frozen=True)
class VisualTokens:
    """Every visual candidate of one row of a prefill, in sequence order, and which of them are left at a layer.

    slot:  [n] original sequence position       image: [n] number of the image or video in its row, from 0
    group: [n] tile or frame in its row, from 0: the unit with a rectangular grid
    y, x:  [n] row and column in the group; -1 where the layout does not tell
    kept:  [n] True where the candidate is still present
    weight: [n] tokens of the bare model that it stands for: more than 1 where others were merged into it, 0 when gone
    """

    slot: Tensor
    image: Tensor
    group: Tensor
    y: Tensor
    x: Tensor
    kept: Tensor
    weight: Tensor


@dataclass(frozen=True)
class StageReport:
    """One decision of one plugin in one prefill.

    before, got: visual tokens of each row before and after; filler: slots that stay in the tensor only to keep rows of
    different lengths rectangular (computed, masked, so not saved).
    """

    plugin: str
    layer: int
    before: tuple[int, ...]
    got: tuple[int, ...]
    filler: int


@dataclass(frozen=True)
class RevivalReport:
    """One look back: dropped tokens of each row that came back into the layers from `layer` on.

    call: number of the call among all that the handle saw, from 0; 0 tokens where nothing came back
    """

    plugin: str
    call: int
    layer: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class ModalityReport:
    """What became of one modality ("text", "image" or "video") when the cache was compressed after a prompt.

    before, after: entries, mean over layers, rows and key heads; padding is none
    bytes_before, bytes_after: its share of the bytes, by its share of the entries of each stored part
    """

    modality: str
    before: float
    after: float
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True)
class CompressionReport:
    """One time that a plugin compressed the cache.

    when:   "prompt" after a prompt or turn, "step" between later decode steps; seen: logical length then
    layers: decoder layers that can be compressed; before, after: entries each stored, mean over rows and key heads
    bytes_before, bytes_after: what those layers held; host_ms: scoring, selecting and writing, on the host
    modalities: the same by modality, after a prompt
    """

    plugin: str
    when: str
    seen: int
    layers: tuple[int, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]
    bytes_before: int
    bytes_after: int
    host_ms: float
    modalities: tuple[ModalityReport, ...] = ()


@dataclass(frozen=True)
class PrefillReport:
    """One prefill (or one continuation with several tokens) seen by the handle.

    rows, length, past: batch rows, tokens of this call a row, tokens already cached
    visual:             visual tokens entering the language model, a row
    visual_per_layer:   visual tokens present at each decoder layer, mean over the rows
    sequence_per_layer: sequence length computed at each decoder layer, fillers included
    attended_per_layer: the part of it that takes part in the layer's attention
    listed_per_layer:   share of the pairs of tokens of a causal pass that the layer attends in, mean over heads
    computed_per_layer: the share that counts as computed: all of them where no kernel runs
    asked_per_layer:    visual tokens the plugins asked for at each layer, mean over the rows
    kv_tokens:          cache entries a row at each layer after the call; kv_logical is what a bare model stores
    kv_bytes:           bytes of keys and values after the call; kv_bytes_bare is what a bare model stores
    flops:              decoder FLOPs of this call (2 a multiply-add, causal attention not halved), fillers included
    flops_bare:         the same for the bare model
    host_ms:            wall time between entering and leaving the decoder on the host; not synchronised on a GPU
    selection_ms:       what plugins took to look at the tower, to score and to select; on the host
    """

    rows: int
    length: int
    past: int
    visual: tuple[int, ...]
    visual_per_layer: tuple[float, ...]
    sequence_per_layer: tuple[int, ...]
    attended_per_layer: tuple[int, ...]
    asked_per_layer: tuple[float, ...]
    stages: tuple[StageReport, ...]
    kv_tokens: tuple[int, ...]
    kv_logical: int
    kv_bytes: int
    kv_bytes_bare: int
    flops: float
    flops_bare: float
    host_ms: float
    selection_ms: float
    masks_built: int
    listed_per_layer: tuple[float, ...] = ()
    computed_per_layer: tuple[float, ...] = ()

    @property
    def n_eq(self) -> float:
        """Visual tokens averaged over layers and rows: how budgets of different methods are compared."""
        return _mean(self.visual_per_layer)

    @property
    def n_eq_asked(self) -> float:
        """What the plugins asked for, averaged the same way."""
        return _mean(self.asked_per_layer)

    @property
    def visual_tokens(self) -> float:
        """Visual tokens entering the language model, mean over the rows."""
        return _mean(self.visual)


@dataclass
class Stats:
    """Everything a handle saw since it was attached or reset.

    `prefills` holds one report a prefill; `decode_steps` counts single-token calls; `plugins` names what was attached;
    `towers` holds one report a run of the vision tower, when plugins act inside it. `calls` counts runs of the decoder,
    of a tower that stands alone, or of a denoiser. `runs` holds one report a run of a diffusion pipeline.
    `revivals` holds one report a stage of every later call of a method that brings dropped tokens back; `store_bytes`
    is what the tokens still dropped take beside the cache after the last call.
    `compressions` holds one report each time that the cache was compressed; `kv_bytes` is what all its layers held
    after the last call, storages counted once, `kv_bytes_bare` what a bare model would hold of the same sequence.
    `ranks` is on how many ranks the heads lie (tensor parallelism): entries and bytes are those of one of them.
    `step_flops` are decoder FLOPs of the last decode step, all rows, counted as those of a prefill; 0 before the first.
    """

    plugins: tuple[str, ...]
    family: str
    prefills: list[PrefillReport] = field(default_factory=list)
    decode_steps: int = 0
    calls: int = 0
    towers: list[TowerReport] = field(default_factory=list)
    revivals: list[RevivalReport] = field(default_factory=list)
    store_bytes: int = 0
    compressions: list[CompressionReport] = field(default_factory=list)
    kv_bytes: int = 0
    kv_bytes_bare: int = 0
    step_flops: float = 0.0
    step_flops_bare: float = 0.0
    runs: list[DenoiseReport] = field(default_factory=list)
    ranks: int = 1

    @property
    def last(self) -> PrefillReport | None:
        """The newest prefill that had visual tokens."""
        return next((report for report in reversed(self.prefills) if any(report.visual)), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict for JSON, with n_eq written out."""
        made = asdict(self)
        for plain, report in zip(made["prefills"], self.prefills, strict=True):
            plain["n_eq"] = report.n_eq
            plain["n_eq_asked"] = report.n_eq_asked
        for plain, run in zip(made["runs"], self.runs, strict=True):
            plain["evaluations"], plain["evaluations_bare"] = run.evaluations, run.evaluations_bare
        return made

    def __str__(self) -> str:
        head = f"{' + '.join(self.plugins)} on {self.family}"
        head += f", cache of one of {self.ranks} ranks" if self.ranks > 1 else ""
        if self.calls == 0 and not self.towers:
            return f"{head}: the model was not called while attached"
        if self.runs:
            return f"{head}, {len(self.runs)} runs\n{self.runs[-1].line()}"
        tower = [f"{self.towers[-1].line()}, {len(self.towers)} runs"] if self.towers else []
        if self.last is None:
            seen = f": no visual tokens seen in {len(self.prefills)} prefills" if self.prefills or not tower else ""
            return "\n".join([head + seen, *tower])
        made = [f"{head}, {len(self.prefills)} prefills, {self.decode_steps} decode steps", *tower, *_lines(self.last)]
        if self.revivals or self.store_bytes:
            back = sum(sum(report.tokens) for report in self.revivals)
            made.append(
                f"  brought back     {back} tokens in {len(self.revivals)} looks, {self.store_bytes:,} bytes held"
            )
        made += _compressed(self)
        return "\n".join(made)


def _compressed(stats: Stats) -> list[str]:
    """Rows of the printed table for plugins of the cache."""
    if not stats.compressions:
        return []
    last = stats.compressions[-1]
    prompt = next((one for one in stats.compressions if one.when == "prompt"), last)
    steps = sum(one.when == "step" for one in stats.compressions)
    return [
        f"  compressed       {_mean(prompt.before):.1f} -> {_mean(prompt.after):.1f} entries a layer and head by "
        f"{prompt.plugin} at length {prompt.seen}" + (f", {steps} times while decoding" if steps else ""),
        *(
            f"    {one.modality:<14} {one.before:.1f} -> {one.after:.1f} entries, {one.bytes_before:,} -> "
            f"{one.bytes_after:,} bytes"
            for one in prompt.modalities
        ),
        f"  KV cache now     {stats.kv_bytes_bare:,} bytes bare, {stats.kv_bytes:,} stored "
        f"({_ratio(stats.kv_bytes, stats.kv_bytes_bare):.0%})",
    ]


def _lines(report: PrefillReport) -> list[str]:
    """Rows of the printed table: name, bare, asked, realised."""
    visual, n_eq, asked = report.visual_tokens, report.n_eq, report.n_eq_asked
    stages = ", ".join(f"layer {s.layer}: {_mean(s.before):.0f} -> {_mean(s.got):.0f}" for s in report.stages)
    among = []
    if report.attended_per_layer != report.sequence_per_layer:
        mean, whole = _mean(report.attended_per_layer), _mean(report.sequence_per_layer)
        among = [f"  attention        {whole:.0f} tokens bare, among {mean:.1f} realised, mean over layers"]
    if any(share < 1 for share in report.listed_per_layer):
        listed, computed = _mean(report.listed_per_layer), _mean(report.computed_per_layer)
        among.append(f"  attention        {listed:.1%} of its pairs asked, {computed:.1%} computed, mean over layers")
    return [
        f"  visual tokens    {visual:.0f} bare, by stage {stages or 'none dropped'}",
        f"  n_eq             {visual:.0f} bare, {asked:.1f} asked, {n_eq:.1f} realised ({n_eq / visual:.0%})",
        *among,
        f"  KV cache         {report.kv_bytes_bare:,} bytes bare, {report.kv_bytes:,} stored "
        f"({_ratio(report.kv_bytes, report.kv_bytes_bare):.0%})",
        f"  prefill FLOPs    {report.flops_bare:.3g} bare, {report.flops:.3g} realised "
        f"({_ratio(report.flops, report.flops_bare):.0%}, decoder only)",
        f"  prefill          {report.host_ms:.1f} ms on the host, {report.selection_ms:.1f} of them selecting, "
        f"{report.masks_built} masks built",
    ]


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _mean(values: tuple[float, ...] | tuple[int, ...]) -> float:
    return sum(values) / len(values) if values else 0.0
