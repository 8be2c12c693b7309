"""Targets: a device profile with a memory size, and on a Jetson a JetPack version, chosen."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import cast

from edgekit.errors import ConfigError, nearest, option, spelled
from edgekit.profile import (
    ENGINES,
    FALLBACK,
    MAX_GIB,
    Dialect,
    Profile,
    Variant,
    read_profile,
    target_names,
    version_numbers,
)

__all__ = ["Target", "load_target", "load_targets", "make_target"]

# Names of devices without a target of their own, as letters and digits -> the target that covers them.
_RELATED = (
    (r"m[2-9](pro|max|ultra)?", "m2"),
    (r"m1(pro|max|ultra)", "m1"),
    (r"(nvidia)?(geforce)?rtx\d{4}(ti|super|ada)*", "rtx"),
    (r"(raspberry)?pi\d?|rk\d{4}|x86(64)?|amd64|arm64|aarch64|pc|linux", "cpu"),
    (r"(jetson)?(agx)?orin(agx)?(64)?", "orin"),
)


@dataclass(frozen=True, slots=True)
class Target:
    """A device profile with a memory size chosen.

    Attributes:
        name: Argument of `--target`.
        title: The device's name.
        compatible: The string that a bundle and a device must share.
        memory_gib: Nominal memory, GiB; None for `cpu` without a given size.
        reserve_gib: Memory that the system keeps, GiB.
        bandwidth_gb_s: Memory bandwidth, 1e9 bytes per second; None if unknown.
        compute_capability: CUDA compute capability, "8.7"; None without CUDA.
        int8_tops_sparse: 1e12 INT8 operations per second with structured sparsity; None if not published.
        artifact: "onnx" or "mlx".
        dialect: Dialect of the ONNX graph; None for MLX.
        dialects: Dialects that its TensorRT builds; empty without TensorRT.
        activation_dtype: "float16" or "float32".
        group_sizes: Quantization group sizes, the preferred one first.
        runners: Runners for the artifact, the preferred one first.
        jetpack: JetPack version to export for; None for any that the profile lists, and off Jetson.
        tensorrt: Its TensorRT version; None if `jetpack` is None.
        memory_choices_gib: Sizes that `load_target` accepts; empty means any.
        sources: Name and source of each figure.
        profile: The parsed file.
    """

    name: str
    title: str
    compatible: str
    memory_gib: float | None
    reserve_gib: float
    bandwidth_gb_s: float | None
    compute_capability: str | None
    int8_tops_sparse: float | None
    artifact: str
    dialect: Dialect | None
    dialects: tuple[str, ...]
    activation_dtype: str
    group_sizes: tuple[int, ...]
    runners: tuple[str, ...]
    jetpack: str | None
    tensorrt: str | None
    memory_choices_gib: tuple[int, ...]
    sources: tuple[tuple[str, str], ...]
    profile: Profile

    @property
    def group_size(self) -> int:
        """The preferred quantization group size."""
        return self.group_sizes[0]

    @property
    def accepts(self) -> tuple[str, ...]:
        """The `compatible` strings of bundles that run here: the target's own, and `cpu`."""
        return tuple(dict.fromkeys((self.compatible, FALLBACK)))

    def group_size_for(self, in_features: int) -> int | None:
        """Return the first group size that divides `in_features`, or None if none does."""
        return next((size for size in self.group_sizes if in_features % size == 0), None)

    def describe(self) -> dict[str, object]:
        """Return every attribute except the profile as JSON-serializable values."""
        plain = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "profile"}
        plain["sources"] = dict(self.sources)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}


def load_target(
    name: str, memory_gib: float | None = None, jetpack: str | None = None, dialect: str | None = None
) -> Target:
    """Return the target called `name`.

    Args:
        name: One of `target_names()`.
        memory_gib: Memory of the device in GiB, where the profile covers several sizes; by default the first one
            listed, or None for `cpu`. A size that several chips share means the slowest of them.
        jetpack: JetPack version of a Jetson: "7.2", or "7" for the newest 7.x. None is any that the profile lists.
        dialect: Dialect of the ONNX graph, for TensorRT: `portable` or `native`, which only newer versions build; None
            is `portable`.

    Raises:
        ConfigError: Unknown target, a memory size it is not sold with, a JetPack version it does not have, or a mistake
            in the target's file.
    """
    # Looked up in the list, so that a name cannot lead out of the folder.
    if name not in target_names():
        meant = _related(name) or nearest(name, target_names())
        known = "known targets: " + ", ".join(target_names())
        hint = f"did you mean `{meant}`? {known}" if meant else known
        raise ConfigError(f"unknown target `{name}`", hint=hint, code="unknown_target")
    target = _sized(name, read_profile(name), memory_gib)
    target = target if jetpack is None else _with_jetpack(target, jetpack)
    return target if dialect is None else _with_dialect(target, dialect)


def _related(name: str) -> str | None:
    """The target that covers a device of this name."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("apple")
    return next((target for pattern, target in _RELATED if re.fullmatch(pattern, plain)), None)


def load_targets() -> tuple[Target, ...]:
    """Return every target whose file can be read; `unreadable()` says what is wrong with the others."""
    found = []
    for name in target_names():
        with suppress(ConfigError):
            found.append(load_target(name))
    return tuple(found)


def _sized(name: str, profile: Profile, memory_gib: float | None) -> Target:
    """The target with a memory size, by default the first one listed."""
    if memory_gib is None:
        first = profile.variants[0] if profile.variants else None
        return make_target(name, profile, first.memory_gib[0] if first else None, first)
    size = f"{spelled(memory_gib)} GiB"
    if not profile.variants:
        if not memory_gib <= MAX_GIB:
            raise ConfigError(f"{size} is not a valid memory size", hint=f"give at most {MAX_GIB} GiB")
        if memory_gib <= profile.reserve.gib:
            hint = f"give more than {spelled(profile.reserve.gib)} GiB"
            raise ConfigError(f"{size} is not more than the system reserve of `{name}`", hint=hint)
        return make_target(name, profile, memory_gib, None)
    for variant in profile.variants:
        if memory_gib in variant.memory_gib:
            return make_target(name, profile, memory_gib, variant)
    choices = ", ".join(str(size) for size in _memory_choices(profile))
    raise ConfigError(f"target `{name}` is not sold with {size} of memory", hint=f"choose one of {choices}")


def _with_jetpack(target: Target, version: str) -> Target:
    """The target with a JetPack version, its TensorRT version and dialects."""
    listed = target.profile.jetpacks
    if not listed:
        names = ", ".join(other.name for other in load_targets() if other.profile.jetpacks)
        raise ConfigError(
            f"target `{target.name}` has no JetPack", hint=f"leave out {option('jetpack')}; Jetsons are: {names}"
        )
    if not re.fullmatch(r"\d{1,3}(\.\d{1,3}){0,2}", version):
        raise ConfigError(f"`{version[:20]}` is not a JetPack version", hint="write it as 6.2 or 7.2")
    # A major version alone means its newest release.
    wanted = version_numbers(version) if "." in version else (int(version), 999)
    found = None
    for pack in listed:  # ascending
        since = version_numbers(pack.since)
        if since[0] == wanted[0] and since <= wanted:
            found = pack
    if found is None:
        known = ", ".join(f"{pack.since} and later {version_numbers(pack.since)[0]}.x" for pack in listed)
        raise ConfigError(f"there is no JetPack {version} for `{target.name}`", hint=f"known: {known}")
    return replace(
        target,
        jetpack=version,
        tensorrt=found.tensorrt,
        dialects=found.dialects,
        sources=(*target.sources, ("tensorrt", found.source)),
    )


def _with_dialect(target: Target, dialect: str) -> Target:
    """The target with another dialect for TensorRT."""
    if dialect in target.dialects:
        return replace(target, dialect=cast("Dialect", dialect))
    if dialect == "native" and target.profile.jetpacks:
        first = next((pack.since for pack in target.profile.jetpacks if dialect in pack.dialects), None)
        system = "older JetPacks" if target.jetpack is None else f"JetPack {target.jetpack}"
        raise ConfigError(
            f"`native` is not built by the TensorRT of {system}", hint=f"for newer ones: {option('jetpack', first)}"
        )
    known = f"choose {' or '.join(target.dialects)}" if target.dialects else f"leave out {option('dialect')}"
    raise ConfigError(f"`{target.name}` has no dialect `{dialect[:20]}`", hint=known)


def _dialects(profile: Profile) -> tuple[str, ...]:
    """The dialects that every version of the device's TensorRT builds."""
    if profile.jetpacks:
        return profile.jetpacks[0].dialects
    return ("portable", "native") if ENGINES.intersection(profile.export.runners) else ()


def _memory_choices(profile: Profile) -> tuple[int, ...]:
    return tuple(sorted({size for variant in profile.variants for size in variant.memory_gib}))


def make_target(name: str, profile: Profile, memory_gib: float | None, variant: Variant | None) -> Target:
    """Return the target of a profile, with a memory size (GiB) and the figures of one of its variants."""
    sources = [("reserve_gib", profile.reserve.basis)]
    if variant is not None and variant.bandwidth_gb_s is not None:
        sources.append(("bandwidth_gb_s", variant.source))
    capability = profile.facts.compute_capability
    if capability is not None:
        sources.append(("compute_capability", capability.source))
    tops = profile.facts.int8_tops_sparse
    if tops is not None:
        sources.append(("int8_tops_sparse", tops.source))
    return Target(
        name=name,
        title=variant.title if variant else profile.title,
        compatible=profile.compatible,
        memory_gib=memory_gib,
        reserve_gib=profile.reserve.gib + profile.reserve.fraction * (memory_gib or 0.0),
        bandwidth_gb_s=variant.bandwidth_gb_s if variant else None,
        compute_capability=capability.value if capability else None,
        int8_tops_sparse=tops.value if tops else None,
        artifact=profile.export.artifact,
        dialect=profile.export.dialect,
        dialects=_dialects(profile),
        activation_dtype=profile.export.activation_dtype,
        group_sizes=profile.export.group_sizes,
        runners=profile.export.runners,
        jetpack=None,
        tensorrt=None,
        memory_choices_gib=_memory_choices(profile),
        sources=tuple(sources),
        profile=profile,
    )
