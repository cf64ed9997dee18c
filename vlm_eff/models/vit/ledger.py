"""The books of a tower: what each run computed, turned into numbers when the next one begins or somebody asks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from vlm_eff.core.errors import StateError, explain
from vlm_eff.core.tower_report import TowerReport
from vlm_eff.models.vit.kind import Tower, named
from vlm_eff.models.vit.layout import Layout
from vlm_eff.models.vit.run import Run


class TowerLedger:
    """Keeps one report a run."""

    def __init__(self, tower: Tower) -> None:
        self._tower = tower
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._reports: list[TowerReport] = []
        self._run: Run | None = None
        self._last: Run | None = None

    def begin(self, run: Run) -> None:
        """Note a run that begins; the one before is settled."""
        self._settle()
        self._run = self._last = run

    def groups(self, block: int) -> list[tuple[Tensor, Tensor]]:
        """What became of the tokens of each image behind `block` in the last run."""
        if self._last is None or not 0 <= block < self._tower.num_blocks:
            raise StateError(explain(f"tower block {block}", "a block of a tower that was run", "Run the model first"))
        found = [tokens for at, tokens in sorted(self._last.history.items()) if at <= block]
        tokens = found[-1] if found else self._last.start
        left = tokens.now.lengths if tokens.now.valid is None else tokens.now.valid.sum(1).tolist()
        rows = zip(tokens.slot, tokens.place, tokens.full.lengths, left, strict=True)
        return [(slot[:bare].cpu(), place[:now].cpu()) for slot, place, bare, now in rows]

    def reports(self) -> list[TowerReport]:
        """One report for each run so far."""
        self._settle()
        return list(self._reports)

    def _settle(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            self._reports.append(_report(self._tower, run))


def _report(tower: Tower, run: Run) -> TowerReport:
    full, blocks = run.tokens.full, range(tower.num_blocks)
    attended = [run.attended.get(block, full) for block in blocks]
    processed = [run.processed.get(block, full) for block in blocks]
    flops = bare = 0.0
    for block in blocks:
        given, used = run.borders.get(block, (None, None))
        module = tower.blocks[block]
        flops += block_flops(module, _total(attended[block]), _total(processed[block]), _pairs(attended[block], used))
        bare += block_flops(module, _total(full), _total(full), _pairs(full, given))
    last = run.tokens.now
    valid = last.valid
    return TowerReport(
        tower=tower.name,
        images=len(full.lengths),
        tokens=tuple(full.lengths),
        attended=tuple(_total(layout) / len(full.lengths) for layout in attended),
        processed=tuple(_total(layout) / len(full.lengths) for layout in processed),
        left=tuple(last.lengths if valid is None else valid.sum(1).tolist()),
        flops=flops,
        flops_bare=bare,
        selection_ms=run.deciding * 1e3,
        prefix=tower.prefix,
    )


def block_flops(block: nn.Module, attended: float, processed: float, pairs: float) -> float:
    """FLOPs of one block: `attended` tokens through the attention's maps, `processed` through the MLP, and
    query-key `pairs`; 2 a multiply-add, norms and activations left out, as `torch.utils.flop_counter` does."""
    attention = named(block, ("self_attn", "attention", "attn"))
    assert attention is not None
    inner = _linear(attention)
    width = _width(attention)
    return 2.0 * (inner * attended + (_linear(block) - inner) * processed) + 4.0 * width * pairs


def _linear(module: nn.Module) -> float:
    made = 0
    for part in module.modules():
        if isinstance(part, nn.MultiheadAttention):
            made += part.in_proj_weight.numel()
        if isinstance(part, nn.Linear):
            made += part.in_features * part.out_features
    return float(made)


def _width(attention: nn.Module) -> int:
    for name, parts in (("q_proj", 1), ("qkv", 3)):
        projection = getattr(attention, name, None)
        if isinstance(projection, nn.Linear):
            return projection.out_features // parts
    return int(attention.embed_dim)  # type: ignore[arg-type]


def _total(layout: Layout) -> int:
    return sum(layout.lengths)


def _pairs(layout: Layout, borders: Tensor | None) -> float:
    """Query-key pairs of one attention."""
    lengths: Sequence[int] = layout.lengths if borders is None else borders.diff().tolist()
    if borders is None and getattr(layout, "batched", False):
        # one sequence under a block mask: every pair is computed
        return float(sum(lengths)) ** 2
    return float(sum(length**2 for length in lengths))
