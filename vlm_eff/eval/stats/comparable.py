"""Which runs may be compared: the same items, asked in the same way of the same model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vlm_eff.core.errors import InputError, explain
from vlm_eff.eval.runs.folder import Header, Run, Sample
from vlm_eff.eval.stats.baselines import is_downsized

# what may differ between two runs without changing what is asked
_OF_THE_PLACE = {"batch_size", "limit"}
_TASK = ("name", "version", "metric", "max_new_tokens", "sampling")
_FRAMES = ("convention", "indices", "partial")
_NAMED = 3

Look = Callable[[Sample], Any]
_LOOKS: dict[str, Look] = {
    "prompts": lambda sample: sample.prompt,
    "gold answers": lambda sample: sample.gold,
    "clusters": lambda sample: sample.cluster,
    "groups": lambda sample: sample.groups,
}


def comparable(one: Run, other: Run, *, across_models: bool = False) -> None:
    """Return quietly where both runs asked the same items in the same way, or say what differs.

    Compared are: model, task, item ids, prompts, gold answers, clusters, groups, pictures (by the digest of their
    pixels), frames (digest, convention, indices), seed, data type, attention and every other setting but the size of
    batches. A run whose `settings["baseline"]` is "downsize" was shown smaller pictures on purpose: those are not
    compared.
    across_models: the models may differ

    Raises:
        InputError: naming the first of these that differs, or the run that is not finished.
    """
    for run in (one, other):
        require_finished(run)
    if not across_models and one.header.model != other.header.model:
        raise _refusal(one, other, f"models differ: {one.header.model} and {other.header.model}")
    for what in _TASK:
        _same(one, other, f"the task's {what}", one.header.task.get(what), other.header.task.get(what))
    _same_ids(one, other)
    _same_settings(one, other)
    pairs = {name: (sample, other.samples[name]) for name, sample in one.samples.items()}
    # what could not be read was not shown: nothing is known of its pictures
    shown = {name: pair for name, pair in pairs.items() if "error" not in (pair[0].status, pair[1].status)}
    on_media = _looks_at_media(downsized=is_downsized(one.header) or is_downsized(other.header))
    for looks, of in ((_LOOKS, pairs), (on_media, shown)):
        for what, look in looks.items():
            differ = [name for name, (first, second) in of.items() if look(first) != look(second)]
            if differ:
                raise _refusal(one, other, f"{what} differ for {_listed(differ)}")


def require_finished(run: Run) -> None:
    """Raise `InputError` where items have no answer yet."""
    if not run.finished:
        items = run.header.task["items"]
        raise InputError(
            explain(
                f"{run.folder} is not finished: {len(run.samples)} of {items} items",
                "runs in which every item was asked",
                "Take the run up again with vlm-eff eval",
            )
        )


def place_differences(one: Header, other: Header) -> list[str]:
    """What differs of machine, packages and batches: it may move answers a little, and it makes times incomparable."""
    found = other_place(one.device, other.device, one.packages, other.packages)
    sizes = [header.settings.get("batch_size") for header in (one, other)]
    if sizes[0] != sizes[1]:
        found.append(f"batch_size: {sizes[0]} and {sizes[1]}")
    return found


def other_place(device: str, other: str, packages: Mapping[str, str], others: Mapping[str, str]) -> list[str]:
    """What differs of two machines and of the packages on them."""
    found = [] if device == other else [f"machine: {device} and {other}"]
    for name in sorted(set(packages) | set(others)):
        versions = [known.get(name, "not installed") for known in (packages, others)]
        if versions[0] != versions[1]:
            found.append(f"{name}: {versions[0]} and {versions[1]}")
    return found


def _same_ids(one: Run, other: Run) -> None:
    for run, without in ((one, other), (other, one)):
        missing = [name for name in run.samples if name not in without.samples]
        if missing:
            raise _refusal(
                one, other, f"{len(missing)} items of {run.folder} are not in {without.folder}: {_listed(missing)}"
            )


def _same_settings(one: Run, other: Run) -> None:
    # what a baseline is told of its own kind begins with its name
    names = set(one.header.settings) | set(other.header.settings)
    for name in sorted(name for name in names - _OF_THE_PLACE if not name.startswith("baseline")):
        _same(one, other, f"the setting {name}", one.header.settings.get(name), other.header.settings.get(name))


def _looks_at_media(*, downsized: bool) -> dict[str, Look]:
    found = {
        "number and kind of pictures and videos": _of_media(lambda entry: "video" in entry),
        "frames": _of_media(lambda entry: [entry.get(key) for key in _FRAMES]),
    }
    if not downsized:
        found["pictures"] = _of_media(lambda entry: (entry.get("picture"), entry.get("size")))
        found["pixels of videos"] = _of_media(lambda entry: entry.get("digest"))
    return found


def _of_media(look: Callable[[dict[str, Any]], Any]) -> Look:
    return lambda sample: [look(entry) for entry in sample.media]


def _same(one: Run, other: Run, what: str, first: Any, second: Any) -> None:
    if first != second:
        raise _refusal(one, other, f"{what} differs: {first!r} and {second!r}")


def _listed(names: Iterable[str]) -> str:
    found = sorted(names)
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{', '.join(map(repr, found[:_NAMED]))}{more}"


def _refusal(one: Run, other: Run, got: str) -> InputError:
    return InputError(
        explain(
            f"{one.folder} and {other.folder} cannot be compared: {got}",
            "runs that asked the same items in the same way",
            "Run both with the same task, model and settings",
        )
    )
