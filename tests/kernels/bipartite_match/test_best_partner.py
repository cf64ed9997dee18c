"""The search for partners: every form against float64, and each check against a form that is broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tests.kernels.kit import BACKENDS, fresh, normal
from vlm_eff.core.errors import InputError
from vlm_eff.kernels import why_not
from vlm_eff.kernels.bipartite_match import best_partner, fast, launch, op

FAST = ("torch", "triton")
Found = tuple[Tensor, Tensor]


def cosines(source: Tensor, goal: Tensor) -> Tensor:
    source, goal = source.double(), goal.double()
    return (source @ goal.mT) / (source.norm(dim=2)[:, :, None] * goal.norm(dim=2)[:, None])


def check(found: Found, source: Tensor, goal: Tensor, may: Tensor | None = None) -> None:
    """The value is that of the pair, and no pair that may be is better."""
    best, partner = found
    like = cosines(source, goal)
    if may is not None:
        like = like.masked_fill(~may, -torch.inf)
    want = like.amax(2)
    nobody = want == -torch.inf
    assert best.shape == partner.shape == want.shape and partner.dtype == torch.long
    assert torch.equal(best == -torch.inf, nobody) and (partner[nobody] == 0).all()
    pair = like.gather(2, partner[:, :, None])[:, :, 0]
    assert ((best - want)[~nobody].abs() < 1e-6).all() and ((pair - want)[~nobody].abs() < 1e-6).all()


def halves(dtype: torch.dtype, rows: int, tokens: int, width: int) -> tuple[Tensor, Tensor]:
    """Even and odd places of one tensor, as ToMe gives them: neither is contiguous."""
    x = normal(fresh(), rows, tokens, width, dtype=dtype)
    return x[:, 0::2], x[:, 1::2]


def groups(source: Tensor, goal: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers from -1 to 2, one token with a number of its own, and which pairs may be."""
    draw = fresh()
    one = torch.randint(-1, 3, source.shape[:2], generator=draw)
    other = torch.randint(-1, 3, goal.shape[:2], generator=draw)
    one[:, 5] = 9
    return one, other, (one[:, :, None] == other[:, None]) & (one >= 0)[:, :, None]


def copies() -> tuple[Tensor, Tensor]:
    """Signs, whose products have no rounding: goals 7, 70 and 139 are one vector, 3 and 138 another."""
    draw = fresh()
    goal = torch.randint(0, 2, (1, 140, 64), generator=draw).float() * 2 - 1
    goal[:, [70, 139]], goal[:, 138] = goal[:, 7:8].clone(), goal[:, 3].clone()
    return goal[:, [7, 3, 139, 138]].clone(), goal


def check_ties(found: Found) -> None:
    assert found[1].tolist() == [[7, 3, 7, 3]] and (found[0] == 1).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("rows", "tokens", "width"), [(2, 150, 72), (1, 577, 64), (3, 41, 80), (1, 300, 200), (2, 9, 8)]
)
def test_the_best_of_all(backend: str, dtype: torch.dtype, rows: int, tokens: int, width: int, poisoned: None) -> None:
    source, goal = halves(dtype, rows, tokens, width)
    check(best_partner(source, goal, backend=backend), source, goal)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("slack", [0.0, 1e-9])
def test_only_tokens_of_one_group_pair(backend: str, slack: float, poisoned: None) -> None:
    source, goal = halves(torch.float32, 2, 301, 96)
    one, other, may = groups(source, goal)
    made = best_partner(source, goal, source_group=one, goal_group=other, slack=slack, backend=backend)
    check(made, source, goal, may)
    assert (made[0][:, 5] == -torch.inf).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("slack", [0.0, 1e-6])
def test_no_token_is_its_own_partner(backend: str, slack: float) -> None:
    x = normal(fresh(), 2, 150, 64)
    made = best_partner(x, x, apart=True, slack=slack, backend=backend)
    check(made, x, x, ~torch.eye(150, dtype=torch.bool).expand(2, -1, -1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("slack", [0.0, 1e-6])
def test_ties_go_to_the_lower_place(backend: str, slack: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for busy in (1, 132):
        monkeypatch.setattr(launch, "_BUSY", busy)
        check_ties(best_partner(*copies(), slack=slack, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_slack_takes_the_first_that_is_good_enough(backend: str, poisoned: None) -> None:
    source, goal = halves(torch.float32, 2, 300, 64)
    like = cosines(source, goal)
    want = (like >= like.amax(2, keepdim=True) - 0.05).to(torch.uint8).argmax(2)
    best, partner = best_partner(source, goal, slack=0.05, backend=backend)
    assert (want != like.argmax(2)).any() and torch.equal(partner, want)
    assert ((best - like.amax(2)).abs() < 1e-6).all()


@pytest.mark.parametrize("backend", FAST)
def test_a_row_does_not_depend_on_its_neighbours(backend: str) -> None:
    source, goal = halves(torch.float16, 3, 150, 64)
    one, other, _ = groups(source, goal)
    best, partner = best_partner(source, goal, source_group=one, goal_group=other, backend=backend)
    for row in range(3):
        part = slice(row, row + 1)
        alone = best_partner(source[part], goal[part], source_group=one[part], goal_group=other[part], backend=backend)
        assert torch.equal(alone[1], partner[part])
        torch.testing.assert_close(alone[0], best[part], atol=1e-6, rtol=0)


@pytest.mark.parametrize("backend", FAST)
def test_twice_the_same_bits(backend: str) -> None:
    source, goal = halves(torch.float16, 1, 301, 80)
    one, other = (best_partner(source, goal, backend=backend) for _ in range(2))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_there(backend: str) -> None:
    x = normal(fresh(), 2, 7, 16)
    best, partner = best_partner(x, x[:, :0], backend=backend)
    assert (best == -torch.inf).all() and best.shape == (2, 7) and (partner == 0).all()
    for source, goal in ((x[:, :0], x), (x[:0], x[:0])):
        best, partner = best_partner(source, goal, backend=backend)
        assert best.shape == partner.shape == source.shape[:2]
    best, partner = best_partner(torch.zeros(1, 3, 16), x[:1], backend=backend)
    assert (best == 0).all() and (partner == 0).all()


@pytest.mark.parametrize("backend", ["reference", "torch"])
def test_float64_stays_float64(backend: str) -> None:
    source, goal = halves(torch.float64, 2, 41, 8)
    best, partner = best_partner(source, goal, backend=backend)
    assert best.dtype == torch.float64
    torch.testing.assert_close(best, cosines(source, goal).amax(2), atol=1e-14, rtol=0)
    assert torch.equal(partner, cosines(source, goal).argmax(2))


class _Largest(TorchDispatchMode):
    """Numbers in the largest tensor that an operation makes."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **kwargs or {})
        self.numbers = max([self.numbers, *(t.numel() for t in tree_leaves(made) if isinstance(t, Tensor))])
        return made


@pytest.mark.parametrize("block", [1, 1000, 4000, 9000])
@pytest.mark.parametrize("slack", [0.0, 1e-6])
def test_any_block_gives_the_same_and_none_is_larger(block: int, slack: float, monkeypatch: pytest.MonkeyPatch) -> None:
    source, goal = halves(torch.float32, 3, 120, 8)
    one, other, _ = groups(source, goal)
    want = best_partner(source, goal, source_group=one, goal_group=other, slack=slack, backend="torch")
    monkeypatch.setattr(fast, "_BLOCK", block)
    with _Largest() as largest:
        got = best_partner(source, goal, source_group=one, goal_group=other, slack=slack, backend="torch")
    assert largest.numbers <= max(block, goal.numel())
    assert torch.equal(got[1], want[1])
    torch.testing.assert_close(got[0], want[0], atol=1e-6, rtol=0)
    # as much as asked for is taken: no more turns than needed
    monkeypatch.setattr(fast, "_BLOCK", 3 * 60 * 60)
    with _Largest() as largest:
        best_partner(source, goal, backend="torch")
    assert largest.numbers == 3 * 60 * 60


def test_however_goals_are_shared_out_the_bits_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    source, goal = halves(torch.float16, 1, 901, 64)
    made = []
    for busy in (1, 8, 132):
        monkeypatch.setattr(launch, "_BUSY", busy)
        made.append(best_partner(source, goal, backend="triton"))
    assert all(torch.equal(one, other) for pair in made[1:] for one, other in zip(made[0], pair, strict=True))


def test_torch_knows_the_kernel() -> None:
    x = normal(fresh(), 2, 20, 16)
    groups = torch.zeros(2, 20, dtype=torch.long)
    for given in ((x, x, groups, groups, True, 0.0), (x, x[:, :7], None, None, False, 1e-6)):
        torch.library.opcheck(launch.best_partner, given, test_utils=("test_schema", "test_faketensor"))
    with FlopCounterMode(display=False) as counter:
        best_partner(x, x[:, :7], backend="triton")
    assert counter.get_total_flops() == 2 * 2 * 20 * 7 * 16


@pytest.mark.parametrize("backend", FAST)
def test_compiles_in_one_graph(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast, "_BLOCK", 200)
    x = normal(fresh(), 2, 20, 16)
    made = torch.compile(lambda x: best_partner(x, x, apart=True, backend=backend), fullgraph=True, backend="aot_eager")
    for got, want in zip(made(x), best_partner(x, x, apart=True, backend=backend), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"goal": torch.zeros(2, 3, 5)}, "source"),
        ({"goal": torch.zeros(2, 3, 4).half()}, "float16"),
        ({"source": torch.zeros(2, 3, 4).long(), "goal": torch.zeros(2, 3, 4).long()}, "floating"),
        ({"source_group": torch.zeros(2, 6).long()}, "one side"),
        ({"source_group": torch.zeros(2, 6), "goal_group": torch.zeros(2, 3).long()}, "an integer"),
        ({"apart": True}, "apart"),
        ({"slack": -1.0}, "slack"),
        ({"slack": float("nan")}, "slack"),
    ],
)
def test_refuses(given: dict[str, Any], words: str) -> None:
    fine = {"source": torch.zeros(2, 6, 4), "goal": torch.zeros(2, 3, 4)}
    with pytest.raises(InputError, match=words):
        best_partner(**fine | given)


def test_says_why_the_kernel_does_not_run() -> None:
    x = normal(fresh(), 2, 20, 16)
    assert why_not(best_partner, x, x, None, None, False, 0.0) is None
    for source, goal, word in ((x.double(), x.double(), "float64"), (x, x.mT.contiguous().mT, "stride")):
        assert word in (why_not(best_partner, source, goal, None, None, False, 0.0) or "")
    # never allocated
    far = torch.empty_strided((1, 1 << 16, 16), (0, 1 << 15, 1), device="meta")
    assert "2**31" in (launch.limits(far, far, None, None, False, 0.0) or "")


def _without_last_goal(source, goal, one, other, apart, slack):
    return fast.best_partner(source, goal[:, :-1], one, other and other[:, :-1], apart, slack)


def _one_beside(*given):
    best, partner = fast.best_partner(*given)
    return best, partner + 1


def _last_of_ties(source, goal, *rest):
    best, partner = fast.best_partner(source, goal.flip(1), *rest)
    return best, goal.shape[1] - 1 - partner


def _without_groups(source, goal, one, other, apart, slack):
    return fast.best_partner(source, goal, None, None, apart, slack)


def _without_length(source, goal, *rest):
    best, partner = (source.float() @ goal.float().mT).max(2)
    return best, partner


def _never_apart(source, goal, one, other, apart, slack):
    return fast.best_partner(source, goal, one, other, False, slack)


def test_the_last_one_counts() -> None:
    source, goal = halves(torch.float32, 1, 41, 8)
    goal = torch.cat([goal, source[:, 3:4]], 1)
    check(best_partner(source, goal), source, goal)


SABOTEURS: dict[str, tuple[Callable[..., Found], Callable[[], None]]] = {
    "the last goal is forgotten": (_without_last_goal, test_the_last_one_counts),
    "places are one too high": (_one_beside, lambda: check_ties(best_partner(*copies()))),
    "the last of ties": (_last_of_ties, lambda: check_ties(best_partner(*copies()))),
    "lengths are forgotten": (_without_length, lambda: test_the_best_of_all("auto", torch.float32, 2, 41, 8, None)),
    "groups are forgotten": (_without_groups, lambda: test_only_tokens_of_one_group_pair("auto", 0.0, None)),
    "apart is forgotten": (_never_apart, lambda: test_no_token_is_its_own_partner("auto", 0.0)),
}


@pytest.mark.parametrize("name", SABOTEURS)
def test_every_check_notices_what_is_broken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, holds = SABOTEURS[name]
    holds()
    monkeypatch.setitem(op._FORMS.forms, "torch", broken)
    with pytest.raises(AssertionError):
        holds()
