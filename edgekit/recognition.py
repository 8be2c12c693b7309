"""Which target a machine is, and whether two targets claim the same machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import combinations

from edgekit.errors import ConfigError
from edgekit.machine import Gpu, Machine
from edgekit.profile import FALLBACK, MAX_GIB, MatchRules, Profile, unreadable
from edgekit.target import Target, load_target, load_targets, make_target

__all__ = ["Match", "check_targets", "collisions", "matches", "recognise"]

_KINDS = ("device_tree", "cpu_brand", "gpu")


@dataclass(frozen=True, slots=True)
class Match:
    """A target that matches a machine.

    Attributes:
        target: Its name.
        kind: `device_tree`, `cpu_brand` or `gpu`.
        pattern: The most specific of its patterns that match.
        text: What the pattern matched.
    """

    target: str
    kind: str
    pattern: str
    text: str

    @property
    def specificity(self) -> int:
        """The number of characters that must be as written; wildcards do not count."""
        return len(re.sub(r"\[.[^]]*\]|[*?]", "", self.pattern))


def recognise(machine: Machine) -> Target:
    """Return the target of `machine`, with the machine's own memory; `cpu` if no other profile matches.

    If several profiles match, the one with the most specific pattern wins: `Apple M1` beats `Apple M*`. A target whose
    file has a mistake is left out.
    """
    found = matches(machine)
    best = load_target(found[0].target if found else FALLBACK)
    profile, variants = best.profile, best.profile.variants
    if not found or not variants:
        return make_target(best.name, profile, round(machine.memory_gib, 1), None)
    if found[0].kind == "gpu":
        card = next(gpu for gpu in machine.gpus if gpu.name == found[0].text)
        listed = next((variant for variant in variants if variant.title == card.name), None)
        target = make_target(best.name, profile, round(card.memory_gib), listed)
        return replace(target, title=card.name, compute_capability=card.compute_capability)
    if found[0].kind == "cpu_brand":
        # A chip newer than the profile is at least as fast as the slowest one listed.
        chip = next((variant for variant in variants if variant.title == machine.cpu_brand), variants[0])
        return replace(make_target(best.name, profile, round(machine.memory_gib), chip), title=found[0].text)
    # The kernel counts less than is installed.
    sizes = best.memory_choices_gib
    return load_target(best.name, next((size for size in sizes if size >= machine.memory_gib), sizes[-1]))


def matches(machine: Machine) -> tuple[Match, ...]:
    """Return the targets that match a machine, the most specific first; of equals, the first by name."""
    found = (_match(target.name, target.profile.recognise, machine) for target in load_targets())
    return tuple(sorted((match for match in found if match), key=lambda match: -match.specificity))


def _match(name: str, rules: MatchRules, machine: Machine) -> Match | None:
    """The most specific pattern that matches; None if none does, or the memory is out of range."""
    if rules.memory_gib and not rules.memory_gib[0] <= machine.memory_gib <= rules.memory_gib[1]:
        return None
    is_mac = machine.system == "Darwin" and machine.cpu_brand is not None
    texts = {
        "device_tree": machine.device_tree,
        "cpu_brand": (machine.cpu_brand or "",) if is_mac else (),
        "gpu": tuple(gpu.name for gpu in machine.gpus),
    }
    found = [
        Match(name, kind, pattern, text)
        for kind in _KINDS
        for pattern in getattr(rules, kind)
        for text in texts[kind]
        if fnmatchcase(text, pattern)
    ]
    return max(found, key=lambda match: match.specificity, default=None)


def check_targets() -> tuple[ConfigError, ...]:
    """Return what is wrong with the files in `targets/`: files that cannot be read, and targets that collide."""
    return (*unreadable(), *collisions())


def collisions() -> Iterator[ConfigError]:
    """Yield an error for each pair of targets that claim one device, or whose bundles do not fit each other's."""
    for one, other in combinations(load_targets(), 2):
        pair = f"targets/{one.name}.yaml and targets/{other.name}.yaml"
        if one.compatible == other.compatible and (one.artifact, one.dialect) != (other.artifact, other.dialect):
            yield ConfigError(
                f"{pair} are both `compatible: {one.compatible}`, but are exported differently: "
                f"{_exported(one)} and {_exported(other)}",
                hint="a bundle for one would be accepted by the other: change `compatible` of one, or its `export`",
            )
        claimed = _claimed_by_both(one, other)
        if claimed is not None:
            machine, first, second = claimed
            yield ConfigError(
                f"{pair} both recognise a device whose {_WORDS[first.kind]} is `{first.text}`, with "
                f"{machine.memory_gib:g} GiB of memory: by `{first.pattern}` and `{second.pattern}`",
                hint=f"in `recognise` of one of them, write a longer `{first.kind}` pattern than the other's, "
                "or give both a `memory_gib` so that the ranges do not overlap",
            )


_WORDS = {"device_tree": "model or compatible string in the device tree", "cpu_brand": "CPU brand", "gpu": "GPU"}


def _exported(target: Target) -> str:
    return f"{target.artifact} {target.dialect or ''}".strip()


def _claimed_by_both(one: Target, other: Target) -> tuple[Machine, Match, Match] | None:
    """A device of one target that the other one's patterns match as specifically, or more so."""
    memory_gib = _common_memory(one.profile.recognise, other.profile.recognise)
    if memory_gib is None:
        return None
    for owner, rival in ((one, other), (other, one)):
        for machine in _devices(owner.profile, memory_gib):
            own = _match(owner.name, owner.profile.recognise, machine)
            claim = _match(rival.name, rival.profile.recognise, machine)
            if own is not None and claim is not None and claim.specificity >= own.specificity:
                return (machine, own, claim) if owner is one else (machine, claim, own)
    return None


def _common_memory(one: MatchRules, other: MatchRules) -> float | None:
    """A memory size in the ranges of both, GiB; None if they do not overlap."""
    low, high = zip(one.memory_gib or (0.0, MAX_GIB), other.memory_gib or (0.0, MAX_GIB), strict=True)
    if max(low) > min(high):
        return None
    return min(high) if min(high) < MAX_GIB else max(*low, 8.0)


def _devices(profile: Profile, memory_gib: float) -> Iterator[Machine]:
    """Devices that a profile is for: for each pattern the shortest text that it matches, and its variants' names."""
    for kind in _KINDS:
        patterns = getattr(profile.recognise, kind)
        shortest = [re.sub(r"\[(.)[^]]*\]", r"\1", pattern).replace("*", "").replace("?", "0") for pattern in patterns]
        for text in (*shortest, *(variant.title for variant in profile.variants)):
            if kind == "device_tree":
                yield Machine("Linux", "aarch64", memory_gib, device_tree=(text,))
            elif kind == "cpu_brand":
                yield Machine("Darwin", "arm64", memory_gib, cpu_brand=text)
            else:
                yield Machine("Linux", "x86_64", memory_gib, gpus=(Gpu(text, memory_gib, None),))
