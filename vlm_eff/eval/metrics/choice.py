"""Multiple choice about pictures: one gold form for all, and the ways in which each benchmark reads a letter.

gold of every metric here and in `video_choice`: {"answer": letter, "options": [texts, in the order of their letters]}
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from vlm_eff.core.errors import InputError, explain
from vlm_eff.eval.metrics.gold import LETTERS, choice_of, index_of, letter_of, options_of
from vlm_eff.eval.metrics.letters import (
    Reading,
    careful,
    first_character,
    last_form,
    leading_capital,
    ranked,
    single_word,
)
from vlm_eff.eval.metrics.metric import Compat, Gold, Scored, accuracy, check_compat, mean, register
from vlm_eff.eval.metrics.open_answers import open_answer
from vlm_eff.eval.metrics.score import Score

# MMBench numbers the rotations of a question so: index = question + rotation * ROTATION
ROTATION: Final = 1_000_000


def choose(answer: str, gold: Gold, reading: Reading) -> Score:
    """Score what a way of reading finds; nothing found is wrong."""
    right = letter_of(gold)
    read = reading(answer.strip(), options_of(gold))
    return Score(0.0, None, "unparsed") if read is None else Score(float(read == right), read)


def multiple_choice(answer: str, gold: Gold, *, item_id: str = "", compat: Compat | None = None) -> Score:
    """The one option that the answer names by letter or by text, and unparsed where it could mean several.

    gold: {"answer": letter, "options": [texts]}

    Ours, for sets without a script of their own; see `letters.careful`. compat="lmms" reads as lmms-eval's robust
    extraction, which takes "A dog is on the left" for A and finds nothing in "the answer is (c)".
    """
    check_compat(compat, "lmms")
    return choose(answer, gold, ranked if compat == "lmms" else careful)


def mmmu(answer: str, gold: Gold, *, item_id: str = "", compat: Compat | None = None, seed: int = 0) -> Score:
    """Multiple choice and open questions of 30 subjects: MMMU.

    gold:   {"question_type": "multiple-choice", "answer": letter, "options": [texts]} or
            {"question_type": "open", "answers": [strings]}
    groups: {"subject": ...}; the overall accuracy is the mean over questions

    Choice: the last (X), else "X ", else X., else the last option text in more than five words. Open: see
    `open_answers`. compat="official" answers a choice question at random where nothing was found, as the official code
    does; here the option comes from a hash of the item's id and `seed`, and the status stays "unparsed". And of several
    X. it takes the first option, not the last one found.

    Source: Yue et al. 2023, arXiv:2311.16502.
    """
    check_compat(compat, "official")
    if choice_of(gold, "question_type", ("multiple-choice", "open")) == "open":
        return open_answer(answer, gold, official=compat == "official")
    score = choose(answer, gold, partial(last_form, first_dotted=compat == "official"))
    if compat == "official" and score.status == "unparsed":
        guess = hashed_letter(item_id, len(options_of(gold)), seed)
        return Score(float(guess == letter_of(gold)), guess, "unparsed")
    return score


def hashed_letter(item_id: str, options: int, seed: int = 0) -> str:
    """Draw a letter for an item: the same in every process and order of items."""
    text = f"{seed}:{item_id}".encode(errors="surrogatepass")
    return LETTERS[int.from_bytes(hashlib.sha256(text).digest()[:8], "big") % options]


def scienceqa(answer: str, gold: Gold, *, item_id: str = "") -> Score:
    """The letter, large or small, or the capital letter and a dot at the start: ScienceQA.

    gold: {"answer": letter, "options": [texts, 2 to 5]}

    Source: Lu et al. 2022, arXiv:2209.09513; the script of LLaVA.
    """
    return choose(answer, gold, leading_capital)


def seed_bench(answer: str, gold: Gold, *, item_id: str = "") -> Score:
    """The first character of the answer, large or small: SEED-Bench. "The answer is A" is wrong.

    gold: {"answer": letter, "options": [texts]}

    Source: Li et al. 2023, arXiv:2307.16125; lmms-eval. The paper ranks options by perplexity instead.
    """
    return choose(answer, gold, first_character)


def mmbench(answer: str, gold: Gold, *, item_id: str = "") -> Score:
    """The only letter, within the last four words, or the only option's text: MMBench, without a judge.

    gold: {"answer": letter, "options": [texts, rotated as asked],
           "index": the official index, question + rotation x 10^6}

    Officially a language model reads what this finds no letter in; here that is wrong, and `unparsed_rate` says how
    much it is.

    Source: Liu et al. 2023, arXiv:2307.06281.
    """
    index_of(gold, "index")
    return choose(answer, gold, single_word)


def mmbench_total(items: Sequence[Scored]) -> dict[str, Any]:
    """What `accuracy` says of all rows, and the two numbers of MMBench.

    vanilla:    mean over questions as they stand (rotation 0), None without any
    circular:   share of questions with ALL rotations right, None without any
    questions:  how many `circular` counts; incomplete: how many had rotations missing, as under a limit, and are not
                in it. A question has as many rotations as options
    """
    questions: dict[int, dict[int, Scored]] = defaultdict(dict)
    for item in items:
        rotation, question = divmod(index_of(item.gold, "index"), ROTATION)
        if rotation in questions[question]:
            twice = f"row {index_of(item.gold, 'index')} twice"
            raise InputError(explain(twice, "unique indices", "Let the reader keep the official index"))
        questions[question][rotation] = item
    vanilla = [rows[0].score.value for rows in questions.values() if 0 in rows]
    whole = [rows for rows in questions.values() if len(rows) >= max(len(options_of(r.gold)) for r in rows.values())]
    return {
        **accuracy(items),
        "vanilla": mean(vanilla) if vanilla else None,
        "circular": mean(float(all(row.score.value == 1 for row in rows.values())) for rows in whole)
        if whole
        else None,
        "questions": len(whole),
        "incomplete": len(questions) - len(whole),
    }


register("multiple_choice", multiple_choice, compat={"lmms": None})
register("mmmu", mmmu, compat={"official": None})
register("scienceqa", scienceqa)
register("seed_bench", seed_bench)
register("mmbench", mmbench, total=mmbench_total)
