"""Joining packed segments of one form, so that a long answer does not end with one for each time it was packed.

A decode step pays for every segment: it is read, attended to and merged on its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlm_eff.models.kv.segments import Segment

# a segment is joined once what comes behind it has an eighth of its entries, so that sizes fall by more than eight and
# three or four are left. A thousand packings copy an entry 15 times, far less often than decode steps read it
_SHARE = 8

Joined = list[tuple[Segment, tuple[int, ...]]]


def joined(segments: Sequence[Segment]) -> Joined:
    """The segments of a layer, oldest first, as they are to be stored, and from which of them each one is.

    A join stands where its oldest segment stood. Nothing is quantised again, and nobody is asked: counts decide.
    """
    made: Joined = []
    for number, segment in enumerate(segments):
        made.append((segment, (number,)))
        tail = [len(made) - 1]
        entries = segment.count
        while (before := _before(made, tail[0])) is not None and made[before][0].count <= _SHARE * entries:
            tail.insert(0, before)
            entries += made[before][0].count
        if len(tail) > 1:
            parts = [made[place] for place in tail]
            whole = parts[0][0].join([part for part, _ in parts[1:]])
            made[tail[0]] = (whole, tuple(one for _, numbers in parts for one in numbers))
            for place in reversed(tail[1:]):
                del made[place]
    return made


def _before(made: Joined, place: int) -> int | None:
    """The newest segment before `place` that the one there can be laid behind."""
    return next((at for at in range(place - 1, -1, -1) if made[at][0].joins(made[place][0])), None)
