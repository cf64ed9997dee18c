"""For each token of one set the token of another set that is most like it."""

from __future__ import annotations

from torch import Tensor

from vlm_eff.core.errors import InputError, explain
from vlm_eff.kernels.bipartite_match import fast, launch, reference
from vlm_eff.kernels.dispatch import Backend, Forms

_FORMS = Forms(
    "best_partner",
    reference=reference.best_partner,
    torch=fast.best_partner,
    triton=launch.best_partner,
    limits={"triton": launch.limits},
)


def best_partner(
    source: Tensor,
    goal: Tensor,
    *,
    source_group: Tensor | None = None,
    goal_group: Tensor | None = None,
    apart: bool = False,
    slack: float = 0.0,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Find the most similar partner of every token, by cosine.

    source: [N, A, C]; goal: [N, G, C] what partners are looked for among; floating, any strides
    source_group, goal_group: [N, A] and [N, G] integers below 2**31; only tokens of the same number pair, and one with
            a negative number takes no part. Give both, or none: then all may pair
    apart:  token i is no partner of token i (source and goal are the same tokens)
    slack:  partners whose similarity is within this of the best count as equal to it
    Returns (best [N, A] float32, partner [N, A] int64): the largest similarity and whose it is; -inf and 0 for a token
    with nobody to pair with. Ties go to the lower place. A token of zeros has similarity 0 to all. Float64 input is
    worked on in float64. Contents have to be finite, and lengths that are not 0 between 1e-18 and 1e18.

    The similarity search of ToMe (arXiv:2210.09461, section 3), for which the official code builds N * A * G numbers.
    Rounding may order two partners whose similarities are the same to within 1e-6 either way, unless `slack` says that
    they are equal; what was rounded differs between forms and lengths, so compare by the similarity of the pair.
    Cost: 2 N A G C FLOPs, twice that with slack; (A + G) N C numbers read. At most 5 MiB of similarities and masks are
    alive at a time in PyTorch, none in the kernel. Below about 2,000 tokens both forms are bound by their launches.

    Raises:
        InputError: shapes or types do not fit.
        CapabilityError: the form asked for cannot run here.
    """
    _check(source, goal, source_group, goal_group, apart, slack)
    return _FORMS.run(backend, source, goal, source_group, goal_group, apart, slack)  # type: ignore[no-any-return]


def _check(
    source: Tensor, goal: Tensor, source_group: Tensor | None, goal_group: Tensor | None, apart: bool, slack: float
) -> None:
    shapes = f"source {list(source.shape)} {source.dtype} and goal {list(goal.shape)} {goal.dtype}"
    fits = source.dim() == goal.dim() == 3 and source.shape[::2] == goal.shape[::2]
    if not fits or not source.is_floating_point() or source.dtype != goal.dtype:
        accepted = "[N, A, C] and [N, G, C], floating numbers of one type"
        raise InputError(explain(shapes, accepted, "Give both sets with the same rows and features"))
    if apart and source.shape != goal.shape:
        raise InputError(explain(f"{shapes} with apart", "one set of tokens, given twice", "Leave apart out"))
    if (source_group is None) != (goal_group is None):
        raise InputError(explain("groups of one side", "groups of both sides, or none", "Give both"))
    if not slack >= 0:
        raise InputError(explain(f"slack={slack!r}", "a number of at least 0", "Give 0 for none"))
    for tokens, group in ((source, source_group), (goal, goal_group)):
        if group is not None and (group.shape != tokens.shape[:2] or group.is_floating_point()):
            got = f"groups {list(group.shape)} {group.dtype} of tokens {list(tokens.shape)}"
            raise InputError(explain(got, "an integer for each token", "Number the tokens"))
