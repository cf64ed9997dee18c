"""What a metric is: a rule that scores one answer, and a way to sum up all of them.

An answer of blanks alone is wrong whatever the rule says, and unparsed answers, empty ones and items that could not be
asked stay in every denominator; a variant that does otherwise, because the code it repeats does, has a name that says
so.
"""

from __future__ import annotations

import inspect
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from vlm_eff.core.errors import ConfigError, InputError, explain
from vlm_eff.core.registry import Registry
from vlm_eff.eval.metrics.score import EMPTY, Score

Gold = Mapping[str, Any]
Compat = Literal["official", "lmms", "vlmevalkit"]
# characters that nobody sees: controls, formats (zero-width space, soft hyphen), separators
_UNSEEN = {"Cc", "Cf", "Zs", "Zl", "Zp"}


@dataclass(frozen=True)
class Scored:
    """One item and what its answer was worth.

    id, cluster, groups, gold: of the item
    """

    id: str
    score: Score
    gold: Gold = field(default_factory=dict)
    cluster: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)


Rule = Callable[..., Score]
Aggregate = Callable[[Sequence[Scored]], dict[str, Any]]


@dataclass(frozen=True)
class Metric:
    """A rule for one answer and a sum over all of them.

    rule:         (answer, gold, item_id=...) -> Score
    total:        what `aggregate` says of all items
    counts_empty: an empty answer goes to the rule as well, which may call it right: a fault of the code it repeats
    """

    name: str
    rule: Rule
    total: Aggregate
    counts_empty: bool = False

    def score(self, answer: str, gold: Gold, *, item_id: str) -> Score:
        """Score one answer; the keys of `gold` are those of the rule's docstring.

        Raises:
            InputError: a gold answer without the keys that the rule reads, or with values that it cannot use.
        """
        if is_empty(answer) and not self.counts_empty:
            return EMPTY
        score = self.rule(answer, gold, item_id=item_id)
        if not 0 <= score.value <= 1:
            raise InputError(explain(f"{self.name} gave {score.value}", "a value from 0 to 1", "Correct its rule"))
        return score

    def check(self, gold: Gold) -> None:
        """Refuse a gold answer that the rule cannot use, before anything is asked; see `score`."""
        self.rule("x", gold, item_id="")

    def aggregate(self, items: Sequence[Scored]) -> dict[str, Any]:
        """Sum up all items of a run: JSON, the same in any order of the items.

        Raises:
            InputError: no items.
        """
        if not items:
            raise InputError(explain("no items to sum up", "one item or more", "Check the run"))
        # groups come out in the order of ids, not of answering
        return self.total(sorted(items, key=lambda item: item.id))

    @property
    def summary(self) -> str:
        """First sentence of the rule's docstring."""
        rule = self.rule.func if isinstance(self.rule, partial) else self.rule
        return (inspect.getdoc(rule) or "").split("\n")[0]


METRICS: Registry[Metric] = Registry("metric")


def is_empty(answer: str) -> bool:
    """True when nothing can be seen of the answer: no characters, or blanks and controls alone."""
    return all(unicodedata.category(mark) in _UNSEEN for mark in answer)


def mean(values: Iterable[float]) -> float:
    """The mean, correctly rounded: it does not depend on the order."""
    values = list(values)
    return math.fsum(values) / len(values)


def share(items: Sequence[Scored]) -> dict[str, Any]:
    """Mean value of items and how many they are."""
    return {"accuracy": mean(item.score.value for item in items), "n": len(items)}


def parts_of(items: Sequence[Scored], name: str) -> dict[str, list[Scored]]:
    """Items by their part in one breakdown; items without it are left out."""
    parts: dict[str, list[Scored]] = defaultdict(list)
    for item in items:
        if name in item.groups:
            parts[item.groups[name]].append(item)
    return dict(sorted(parts.items()))


def accuracy(items: Sequence[Scored]) -> dict[str, Any]:
    """Sum up as every metric does.

    accuracy:     mean value over ALL items, from 0 to 1
    n:            how many items
    by:           by name of a breakdown and by its part, the same two of the items that belong there
    unparsed_rate, empty_rate, error_rate: shares of all items that have this status, from 0 to 1
    """
    counts = Counter(item.score.status for item in items)
    names = sorted({name for item in items for name in item.groups})
    return {
        **share(items),
        "by": {name: {part: share(some) for part, some in parts_of(items, name).items()} for name in names},
        "unparsed_rate": counts["unparsed"] / len(items),
        "empty_rate": counts["empty"] / len(items),
        "error_rate": counts["error"] / len(items),
    }


def register(
    name: str,
    rule: Rule,
    *,
    total: Aggregate = accuracy,
    compat: Mapping[Compat, Aggregate | None] | None = None,
    counting_empty: Sequence[Compat] = (),
) -> None:
    """Offer a rule as `name`, and its variants as `name/compat`.

    compat:         what the rule takes as `compat`, each with the sum of that variant, None where it is `total`
    counting_empty: of these, the ones whose code can call an empty answer right; they are offered twice, and only the
                    variant `name/compat+empty` does it
    """
    METRICS.add(name, Metric(name, rule, total))
    for code, other in (compat or {}).items():
        variant, sums = f"{name}/{code}", other or total
        METRICS.add(variant, Metric(variant, partial(rule, compat=code), sums))
        if code in counting_empty:
            full = f"{variant}+empty"
            METRICS.add(full, Metric(full, partial(rule, compat=code), sums, counts_empty=True))


def check_compat(compat: str | None, *accepted: Compat) -> None:
    """Refuse the name of a code whose behaviour a rule does not repeat."""
    if compat is not None and compat not in accepted:
        raise ConfigError(explain(f"compat={compat!r}", ", ".join(("None", *accepted)), "Choose one of them"))
