"""Target profiles: the facts of a device, read from `targets/*.yaml`.

A profile says what a device is and which artifact suits it. It knows no model: what fits is a matter of the
memory plan.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.resources import files
from typing import Annotated, Literal

from edgekit.errors import ConfigError, nearest
from edgekit.machine import Machine
from edgekit.yaml_lines import Between, Matches, Source, load

__all__ = ["FALLBACK", "Dialect", "Profile", "Target", "Variant", "load_target", "recognise", "targets"]

FALLBACK = "cpu"
"""Both the target and the `compatible` string of what runs everywhere."""

# Beyond any device.
_MOST_GIB = 4096

RunnerName = Literal["tensorrt", "tensorrt_rtx", "onnxruntime", "mlx", "cpu"]
Dialect = Literal["portable", "native", "onnxruntime"]
GroupSize = Annotated[int, Between(16, 1024)]
Gigabytes = Annotated[float, Between(0, _MOST_GIB)]


@dataclass(frozen=True, slots=True)
class Sourced:
    """A fact and the document that says so."""

    value: str
    source: str


@dataclass(frozen=True, slots=True)
class SourcedNumber:
    """A figure and the document that says so."""

    value: float
    source: str


@dataclass(frozen=True, slots=True)
class Facts:
    """Figures of the device itself.

    Attributes:
        compute_capability: CUDA compute capability, "8.7".
        int8_tops_sparse: 1e12 INT8 operations per second with structured sparsity, as NVIDIA counts.
    """

    compute_capability: Sourced | None = None
    int8_tops_sparse: SourcedNumber | None = None


@dataclass(frozen=True, slots=True)
class Variant:
    """One chip or card that a profile covers.

    Attributes:
        title: As its maker, and the device itself, names it.
        memory_gib: Sizes it is sold with, GiB.
        source: Where the figures come from.
        bandwidth_gb_s: Memory bandwidth, 1e9 bytes per second; None where it differs from card to card.
    """

    title: str
    memory_gib: tuple[Annotated[int, Between(1, _MOST_GIB)], ...]
    source: str
    bandwidth_gb_s: Gigabytes | None = None


@dataclass(frozen=True, slots=True)
class Reserve:
    """Memory that is not ours: `gib + fraction * memory`, and on what that rests."""

    gib: Gigabytes
    fraction: Annotated[float, Between(0, 0.9)]
    basis: str


@dataclass(frozen=True, slots=True)
class Export:
    """What to make for the device.

    Attributes:
        artifact: What the writer makes.
        activation_dtype: Of everything that is not a quantized weight.
        group_sizes: Of quantization, the preferred one first.
        runners: That can run the artifact there, the preferred one first.
        dialect: Of the ONNX graph.
    """

    artifact: Literal["onnx", "mlx"]
    activation_dtype: Literal["float16", "float32"]
    group_sizes: tuple[GroupSize, ...]
    runners: tuple[RunnerName, ...]
    dialect: Dialect | None = None


@dataclass(frozen=True, slots=True)
class JetPack:
    """What a Jetson's system software brings, from one version on until the next one listed.

    Attributes:
        since: JetPack version, "7.2".
        tensorrt: The TensorRT version in it.
        dialect: Of the ONNX graph that this TensorRT runs best.
        source: Where the versions come from.
    """

    since: Annotated[str, Matches(r"\d+\.\d+", "must be a version such as 7.2, in quotes")]
    tensorrt: str
    dialect: Dialect
    source: str


@dataclass(frozen=True, slots=True)
class Signs:
    """How the device recognises itself: shell patterns, of which any one must fit.

    Attributes:
        device_tree: Against the model and each compatible string of the device tree.
        cpu_brand: Against macOS's `machdep.cpu.brand_string`.
        gpu: Against the names of the cards that nvidia-smi lists.
        memory_gib: Lowest and highest memory, as the kernel counts it, GiB.
    """

    device_tree: tuple[str, ...] = ()
    cpu_brand: tuple[str, ...] = ()
    gpu: tuple[str, ...] = ()
    memory_gib: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """The shape of a file in `targets/`."""

    title: str
    compatible: str
    reserve: Reserve
    export: Export
    recognise: Signs
    facts: Facts = Facts()
    variants: tuple[Variant, ...] = ()
    jetpacks: tuple[JetPack, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """A device profile with a memory size chosen.

    Attributes:
        name: What `--target` takes.
        title: The device in words.
        compatible: The string a bundle and a device must share.
        memory_gib: Nominal memory, GiB; None for `cpu`, where it is whatever the machine has.
        reserve_gib: The part that the system keeps, GiB.
        bandwidth_gb_s: Memory bandwidth, 1e9 bytes per second; None if it is not known.
        compute_capability: CUDA compute capability, "8.7"; None without CUDA.
        int8_tops_sparse: 1e12 INT8 operations per second with structured sparsity; None if not published.
        artifact: "onnx" or "mlx".
        dialect: Of the ONNX graph; None for MLX.
        activation_dtype: "float16" or "float32".
        group_sizes: Quantization group sizes, the preferred one first.
        runners: What can run the artifact there, the preferred one first.
        jetpack: The JetPack version exported for; None for any that the profile lists, and off Jetson.
        tensorrt: The TensorRT version in it; None where `jetpack` is.
        memory_choices_gib: Sizes that `load_target` takes; empty means any.
        sources: Each figure's name and where it comes from.
        profile: The file as read.
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
        """The `compatible` strings of bundles that run here: its own, and `cpu`, which runs everywhere."""
        return tuple(dict.fromkeys((self.compatible, FALLBACK)))

    def group_size_for(self, in_features: int) -> int | None:
        """Return the first group size that divides `in_features`, or None if none does."""
        return next((size for size in self.group_sizes if in_features % size == 0), None)

    def describe(self) -> dict[str, object]:
        """Return every attribute but the profile as plain JSON-able values."""
        plain = {item.name: getattr(self, item.name) for item in fields(self) if item.name != "profile"}
        plain["sources"] = dict(self.sources)
        return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}


@lru_cache(maxsize=1)
def targets() -> tuple[str, ...]:
    """Return the names of all targets, sorted."""
    names = (item.name for item in (files("edgekit") / "targets").iterdir())
    return tuple(sorted(name[: -len(".yaml")] for name in names if name.endswith(".yaml")))


def load_target(name: str, memory_gib: float | None = None, jetpack: str | None = None) -> Target:
    """Return the profile called `name`.

    Args:
        name: One of `targets()`.
        memory_gib: Size of the device's memory where the profile covers several, GiB; the smallest one
            sold, or None for `cpu`, unless given. A size that several chips share stands for the slowest.
        jetpack: JetPack version of a Jetson, "7.2", which chooses the dialect; "7" stands for the newest of its
            kind. None chooses the dialect that every version runs.

    Raises:
        ConfigError: No such target, it is not made with that much memory, or it has no such JetPack.
    """
    # Looked up in the list, so that no name can lead out of the folder.
    if name not in targets():
        meant = nearest(name, targets())
        known = "known targets: " + ", ".join(targets())
        hint = f"did you mean `{meant}`? {known}" if meant else known
        raise ConfigError(f"unknown target `{name}`", hint=hint, code="unknown_target")
    target = _sized(name, _profile(name), memory_gib)
    return target if jetpack is None else _with_jetpack(target, jetpack)


def _sized(name: str, profile: Profile, memory_gib: float | None) -> Target:
    """The profile with a memory size; the first one it lists unless given."""
    if memory_gib is None:
        first = profile.variants[0] if profile.variants else None
        return _target(name, profile, first.memory_gib[0] if first else None, first)
    if not profile.variants:
        if not memory_gib <= _MOST_GIB:
            raise ConfigError(f"{memory_gib:g} GiB is no size of a memory", hint=f"give at most {_MOST_GIB}")
        if memory_gib <= profile.reserve.gib:
            hint = f"give more than {profile.reserve.gib:g} GiB"
            raise ConfigError(f"{memory_gib:g} GiB is no more than the system of `{name}` itself needs", hint=hint)
        return _target(name, profile, memory_gib, None)
    for variant in profile.variants:
        if memory_gib in variant.memory_gib:
            return _target(name, profile, memory_gib, variant)
    choices = ", ".join(str(size) for size in _memory_choices(profile))
    raise ConfigError(f"target `{name}` is not made with {memory_gib:g} GiB of memory", hint=f"choose one of {choices}")


def _with_jetpack(target: Target, version: str) -> Target:
    """The target under a version of JetPack: with its TensorRT, and the dialect for that."""
    listed = target.profile.jetpacks
    if not listed:
        names = ", ".join(name for name in targets() if _profile(name).jetpacks)
        raise ConfigError(f"target `{target.name}` has no JetPack", hint=f"leave --jetpack out; Jetsons are: {names}")
    if not re.fullmatch(r"\d{1,3}(\.\d{1,3}){0,2}", version):
        raise ConfigError(f"`{version[:20]}` is not a JetPack version", hint="such as 6.2 or 7.2")
    # A major number alone is the newest of its kind.
    wanted = _numbers(version) if "." in version else (int(version), 999)
    fitting = [pack for pack in listed if wanted[0] == _numbers(pack.since)[0] and _numbers(pack.since) <= wanted]
    if not fitting:
        known = " or ".join(f"{pack.since} and its successors" for pack in listed)
        raise ConfigError(f"edgekit knows no JetPack {version} for `{target.name}`", hint=f"it knows {known}")
    found = max(fitting, key=lambda pack: _numbers(pack.since))
    return replace(
        target,
        jetpack=version,
        tensorrt=found.tensorrt,
        dialect=found.dialect,
        sources=(*target.sources, ("tensorrt", found.source)),
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def recognise(machine: Machine) -> Target:
    """Return the target that `machine` is, with its own memory; `cpu` if no other profile knows it.

    Where several profiles fit, the one with the longest fitting pattern (the most specific) wins, so
    `Apple M2` beats `Apple M*`.
    """
    best, length = FALLBACK, 0
    for name in targets():
        fit = _fit(_profile(name).recognise, machine)
        if fit > length:
            best, length = name, fit
    profile = _profile(best)
    if profile.recognise.gpu:
        card = next(gpu for gpu in machine.gpus if _fits(gpu.name, profile.recognise.gpu))
        listed = next((variant for variant in profile.variants if variant.title == card.name), None)
        target = _target(best, profile, round(card.memory_gib), listed)
        return replace(target, title=card.name, compute_capability=card.compute_capability)
    if profile.recognise.cpu_brand:
        # A chip younger than the profile is at least as fast as the slowest one listed.
        chip = next((v for v in profile.variants if v.title == machine.cpu_brand), profile.variants[0])
        return replace(_target(best, profile, round(machine.memory_gib), chip), title=machine.cpu_brand or chip.title)
    if not profile.variants:
        return _target(best, profile, round(machine.memory_gib, 1), None)
    return load_target(best)


def _fits(text: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)


def _fit(signs: Signs, machine: Machine) -> int:
    """The length of the longest pattern that fits; 0 if none does or the memory is of another size."""
    if signs.memory_gib and not signs.memory_gib[0] <= machine.memory_gib <= signs.memory_gib[1]:
        return 0
    on_a_mac = machine.system == "Darwin" and machine.cpu_brand is not None
    pairs = (
        (signs.device_tree, machine.device_tree),
        (signs.cpu_brand, (machine.cpu_brand or "",) if on_a_mac else ()),
        (signs.gpu, tuple(gpu.name for gpu in machine.gpus)),
    )
    return max(
        (len(p) for patterns, texts in pairs for p in patterns if any(fnmatchcase(t, p) for t in texts)), default=0
    )


def _memory_choices(profile: Profile) -> tuple[int, ...]:
    return tuple(sorted({size for variant in profile.variants for size in variant.memory_gib}))


def _target(name: str, profile: Profile, memory_gib: float | None, variant: Variant | None) -> Target:
    sources = [("reserve_gib", profile.reserve.basis)]
    if variant is not None:
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
        activation_dtype=profile.export.activation_dtype,
        group_sizes=profile.export.group_sizes,
        runners=profile.export.runners,
        jetpack=None,
        tensorrt=None,
        memory_choices_gib=_memory_choices(profile),
        sources=tuple(sources),
        profile=profile,
    )


@lru_cache(maxsize=64)
def _profile(name: str) -> Profile:
    text = (files("edgekit") / "targets" / f"{name}.yaml").read_text(encoding="utf-8")
    return parse_profile(text, f"targets/{name}.yaml")


def parse_profile(text: str, name: str) -> Profile:
    """Read a profile.

    Raises:
        ConfigError: With `name` and line: an unknown or missing key, a wrong value, or two that contradict.
    """
    source = Source(name)
    profile = load(text, Profile, source)
    if (profile.export.artifact == "onnx") != (profile.export.dialect is not None):
        raise source.error("a `dialect` goes with artifact `onnx`, and with no other")
    if not profile.export.group_sizes or not profile.export.runners:
        raise source.error("`group_sizes` and `runners` must each name at least one")
    if len(profile.recognise.memory_gib) not in {0, 2}:
        raise source.error("`recognise.memory_gib` must be the lowest and the highest")
    if profile.jetpacks and profile.export.dialect != profile.jetpacks[0].dialect:
        raise source.error("`export.dialect` must be that of the first of `jetpacks`, which later ones run too")
    if any(not variant.memory_gib for variant in profile.variants):
        raise source.error("a variant must name its memory sizes")
    return profile
