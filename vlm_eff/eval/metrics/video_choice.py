"""Multiple choice about videos: how each benchmark reads a letter and what it sums up.

gold: {"answer": letter, "options": [texts]} everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from vlm_eff.core.errors import InputError, explain
from vlm_eff.eval.metrics.choice import choose
from vlm_eff.eval.metrics.gold import letter_of
from vlm_eff.eval.metrics.letters import GLUED_PREFIXES, Reading, careful, first_capital, lone_letter, ranked
from vlm_eff.eval.metrics.metric import Compat, Gold, Scored, accuracy, check_compat, mean, parts_of, register, share
from vlm_eff.eval.metrics.score import Score

# kinds of questions of NExT-QA by their first letter
NEXTQA_KINDS: Final = {"C": "causal", "T": "temporal", "D": "descriptive"}


def video_mme(answer: str, gold: Gold, *, item_id: str = "", compat: Compat | None = None) -> Score:
    """The first capital that is an option's letter, once known prefixes are gone: Video-MME.

    gold:    {"answer": letter, "options": [texts]}
    groups:  {"duration": "short", "medium" or "long"}, {"subtitles": "with" or "without"} where both are asked
    cluster: the video

    compat="vlmevalkit" has two prefixes glued to their neighbours, as there, so that they never match: "Best answer: C"
    is read as B. compat="lmms" reads as lmms-eval's robust extraction (`letters.ranked`).

    Source: Fu et al. 2024, arXiv:2405.21075. The rule takes any capital, also within a word ("Both" is B).
    """
    check_compat(compat, "vlmevalkit", "lmms")
    return choose(answer, gold, ranked if compat == "lmms" else _capital(compat))


def _capital(compat: Compat | None) -> Reading:
    return partial(first_capital, prefixes=GLUED_PREFIXES) if compat == "vlmevalkit" else first_capital


def longvideobench(answer: str, gold: Gold, *, item_id: str = "", compat: Compat | None = None) -> Score:
    """The letter as Video-MME reads it, up to five options: LongVideoBench.

    gold:   {"answer": letter, "options": [texts]}
    groups: {"duration_group": "15", "60", "600" or "3600", seconds}

    compat="vlmevalkit": see `video_mme`.

    Source: Wu et al. 2024, arXiv:2407.15754.
    """
    check_compat(compat, "vlmevalkit")
    return choose(answer, gold, _capital(compat))


def mvbench(answer: str, gold: Gold, *, item_id: str = "", compat: Compat | None = None) -> Score:
    """The one option that the answer names: MVBench.

    gold:   {"answer": letter, "options": [texts, 2 to 5]}
    groups: {"task": one of the 20}

    compat="official" takes the first word without its dots, and calls it right when it is part of "(a)" or "(a)" is
    part of it: "." and ")" are right for every question, "The answer is A" is wrong; the variant "+empty" calls an
    empty answer right as well. compat="lmms" reads the first of a to e that stands alone, articles too, and leaves
    empty answers out of the denominator.

    Source: Li et al. 2023, arXiv:2311.17005.
    """
    check_compat(compat, "official", "lmms")
    if compat is None:
        return choose(answer, gold, careful)
    if compat == "lmms":
        return choose(answer, gold, lone_letter)
    wanted = f"({letter_of(gold).lower()})"
    word = answer.lower().strip().split(" ")[0]
    return Score(float(word.replace(".", "") in wanted or wanted in word), word)


def without_empty(items: Sequence[Scored]) -> dict[str, Any]:
    """What `mean_of_tasks` says of the items that were answered at all; the three rates are those of all items."""
    rates = {name: value for name, value in accuracy(items).items() if name.endswith("_rate")}
    answered = [item for item in items if item.score.status != "empty"]
    if not answered:
        raise InputError(explain("only empty answers", "one answer or more", "Use mvbench, where they are wrong"))
    return {**mean_of_tasks(answered), **rates}


def mean_of_tasks(items: Sequence[Scored]) -> dict[str, Any]:
    """What `accuracy` says, and `mean_of_tasks`: the mean of the accuracies of the tasks, None without tasks."""
    tasks = [share(some)["accuracy"] for some in parts_of(items, "task").values()]
    return {**accuracy(items), "mean_of_tasks": mean(tasks) if tasks else None}


def mlvu(answer: str, gold: Gold, *, item_id: str = "") -> Score:
    """The one option that the answer names; the number of the benchmark is `mean_of_tasks`: MLVU.

    gold:   {"answer": letter, "options": [texts]}
    groups: {"task": the question type}, 7 in dev, 9 in test

    Source: Zhou et al. 2024, arXiv:2406.04264. Its two tasks of free text need a judge and are not scored here.
    """
    return choose(answer, gold, careful)


def nextqa(answer: str, gold: Gold, *, item_id: str = "") -> Score:
    """The one option of five that the answer names: NExT-QA, multiple choice.

    gold:   {"answer": letter (the official 0 to 4 are A to E), "options": [texts]}
    groups: {"type": the official type, such as "CW", "TN" or "TP"}

    Source: Xiao et al. 2021, arXiv:2105.08276. Open-ended questions (WUPS) are not scored here.
    """
    return choose(answer, gold, careful)


def nextqa_total(items: Sequence[Scored]) -> dict[str, Any]:
    """What `accuracy` says, with TP counted as TN as officially, and `kinds`: causal, temporal, descriptive."""
    merged = [_merged(item) for item in items]
    kinds: dict[str, list[Scored]] = {}
    for item in merged:
        kind = NEXTQA_KINDS.get(item.groups.get("type", "")[:1])
        if kind is None:
            got = f"item {item.id!r} of type {item.groups.get('type')!r}"
            raise InputError(explain(got, "a type that starts with C, T or D", "Correct the reader of NExT-QA"))
        kinds.setdefault(kind, []).append(item)
    return {**accuracy(merged), "kinds": {kind: share(some) for kind, some in sorted(kinds.items())}}


def _merged(item: Scored) -> Scored:
    if item.groups.get("type") != "TP":
        return item
    return Scored(item.id, item.score, item.gold, item.cluster, {**item.groups, "type": "TN"})


def egoschema(answer: str, gold: Gold, *, item_id: str = "") -> Score:
    """The one option of five that the answer names: EgoSchema, the public subset.

    gold: {"answer": letter (the official 0 to 4 are A to E), "options": [texts]}

    Source: Mangalam et al. 2023, arXiv:2308.09126.
    """
    return choose(answer, gold, careful)


register("video_mme", video_mme, compat={"vlmevalkit": None, "lmms": None})
register("longvideobench", longvideobench, compat={"vlmevalkit": None})
register(
    "mvbench",
    mvbench,
    total=mean_of_tasks,
    compat={"official": None, "lmms": without_empty},
    counting_empty=("official",),
)
register("mlvu", mlvu, total=mean_of_tasks)
register("nextqa", nextqa, total=nextqa_total)
register("egoschema", egoschema)
