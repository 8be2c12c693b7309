"""Device profiles: the schema of the files in `targets/`, and the reader that checks them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from itertools import chain, pairwise
from typing import Annotated, Literal

from edgekit.errors import ConfigError
from edgekit.yaml_lines import Between, Matches, OneOf, Source, load

__all__ = [
    "ENGINES",
    "FALLBACK",
    "GROUP_SIZES",
    "MAX_GIB",
    "Dialect",
    "MatchRules",
    "Profile",
    "Variant",
    "parse_profile",
    "read_profile",
    "target_names",
    "unreadable",
    "version_numbers",
]

FALLBACK = "cpu"
"""Target and `compatible` string of bundles that run on any machine."""
GROUP_SIZES = (32, 64, 128)
"""The quantization group sizes that every artifact's writer writes and every runner runs."""
MAX_GIB = 4096
"""More memory than any device has."""
FOLDER = files("edgekit") / "targets"

RunnerName = Literal["tensorrt", "tensorrt_rtx", "cuda", "onnxruntime", "mlx", "cpu"]
ENGINES: frozenset[RunnerName] = frozenset({"tensorrt", "tensorrt_rtx"})
"""The runners that run an engine, which must be built of a bundle first. None has run on a device yet."""
Dialect = Literal["portable", "native", "onnxruntime"]
Text = Annotated[str, Matches(r"[\s\S]*\S[\s\S]*", "must contain more than blanks")]
Gigabytes = Annotated[float, Between(0, MAX_GIB)]
Version = Annotated[str, Matches(r"\d{1,3}\.\d{1,3}", "must be a version such as 7.2, in quotes")]
Pattern = Annotated[str, Matches(r".*[^*?\s].*", "must have more than wildcards")]

# For each dialect, and for MLX: the dtype in which its writer stores unquantized tensors, and what runs it.
_FORMATS: dict[str, tuple[str, tuple[RunnerName, ...]]] = {
    "portable": ("float16", ("tensorrt", "tensorrt_rtx", "cuda", "cpu", "onnxruntime")),
    "native": ("float16", ("tensorrt", "tensorrt_rtx", "cuda", "cpu", "onnxruntime")),
    "onnxruntime": ("float32", ("cpu", "onnxruntime")),
    "mlx": ("float16", ("mlx",)),
}


@dataclass(frozen=True, slots=True)
class ComputeCapability:
    """A CUDA compute capability and the document it comes from."""

    value: Annotated[str, Matches(r"\d{1,2}\.\d", "must be a compute capability such as 8.7, in quotes")]
    source: Text


@dataclass(frozen=True, slots=True)
class Tops:
    """1e12 operations per second and the document they come from."""

    value: Annotated[float, Between(1, 100_000)]
    source: Text


@dataclass(frozen=True, slots=True)
class Facts:
    """Facts about the chip.

    Attributes:
        compute_capability: CUDA compute capability, "8.7".
        int8_tops_sparse: 1e12 INT8 operations per second with structured sparsity, as NVIDIA counts them.
    """

    compute_capability: ComputeCapability | None = None
    int8_tops_sparse: Tops | None = None


@dataclass(frozen=True, slots=True)
class Variant:
    """One chip or card that a profile covers.

    Attributes:
        title: The maker's name for it, which the device also reports.
        memory_gib: Memory sizes it is sold with, GiB, ascending.
        source: Where the figures come from.
        bandwidth_gb_s: Memory bandwidth, 1e9 bytes per second; None if it differs between cards.
    """

    title: Text
    memory_gib: tuple[Annotated[int, Between(1, MAX_GIB)], ...]
    source: Text
    bandwidth_gb_s: Annotated[float, Between(1, 100_000)] | None = None


@dataclass(frozen=True, slots=True)
class Reserve:
    """Memory reserved for the system, `gib + fraction * memory`, and the basis of the figures."""

    gib: Gigabytes
    fraction: Annotated[float, Between(0, 0.9)]
    basis: Text


@dataclass(frozen=True, slots=True)
class Export:
    """How to export for the device.

    Attributes:
        artifact: Kind of artifact.
        activation_dtype: Dtype of everything that is not a quantized weight.
        group_sizes: Quantization group sizes, the preferred one first.
        runners: Runners for the artifact, the preferred one first.
        dialect: Dialect of the ONNX graph.
    """

    artifact: Literal["onnx", "mlx"]
    activation_dtype: Literal["float16", "float32"]
    group_sizes: tuple[Annotated[int, OneOf(GROUP_SIZES)], ...]
    runners: tuple[RunnerName, ...]
    dialect: Dialect | None = None


@dataclass(frozen=True, slots=True)
class JetPack:
    """A version range of a Jetson's system software, up to the next version listed.

    Attributes:
        since: First JetPack version of the range, "7.2".
        tensorrt: Its TensorRT version.
        dialects: Dialects of the ONNX graph that this TensorRT builds, the one that is exported first.
        source: Where the versions come from.
    """

    since: Version
    tensorrt: Version
    dialects: tuple[Literal["portable", "native"], ...]
    source: Text


@dataclass(frozen=True, slots=True)
class MatchRules:
    """How to recognise the device: shell patterns, one of which must match.

    Attributes:
        device_tree: Matched against the model and each compatible string of the device tree.
        cpu_brand: Matched against macOS's `machdep.cpu.brand_string`.
        gpu: Matched against the names of the cards that nvidia-smi lists.
        memory_gib: Minimum and maximum memory as the kernel counts it, GiB.
    """

    device_tree: tuple[Pattern, ...] = ()
    cpu_brand: tuple[Pattern, ...] = ()
    gpu: tuple[Pattern, ...] = ()
    memory_gib: tuple[Gigabytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """The schema of a file in `targets/`.

    Attributes:
        title: The device's name.
        compatible: The string that a bundle and a device must share.
        reserve: Memory reserved for the system.
        export: How to export for the device.
        recognise: How to recognise the device; only `cpu`, the fallback, has no patterns.
        facts: Facts about the chip.
        variants: Chips or cards that the profile covers, slower ones first; only `cpu`, which has any memory, has none.
        jetpacks: Version ranges of a Jetson's system software, older ones first.
    """

    title: Text
    compatible: Annotated[
        str, Matches(r"[a-z0-9]+([-._][a-z0-9]+)*", "must be lower-case letters and digits, joined by hyphens")
    ]
    reserve: Reserve
    export: Export
    recognise: MatchRules
    facts: Facts = Facts()
    variants: tuple[Variant, ...] = ()
    jetpacks: tuple[JetPack, ...] = ()


@lru_cache(maxsize=1)
def target_names() -> tuple[str, ...]:
    """Return the names of all targets, sorted: one per file, whether it can be read or not."""
    names = (item.name for item in FOLDER.iterdir())
    # Editors leave hidden files beside the one they have open.
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml") and name[0] != "."))


@lru_cache(maxsize=64)
def read_profile(name: str) -> Profile:
    """Read the profile of a target.

    Args:
        name: One of `target_names()`.

    Raises:
        ConfigError: As `parse_profile`; or the file cannot be read.
    """
    file = f"targets/{name}.yaml"
    try:
        text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text") from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror}") from error
    return parse_profile(text, file)


def unreadable() -> tuple[ConfigError, ...]:
    """Return the error of each target whose file cannot be read."""
    return tuple(filter(None, map(_error, target_names())))


def _error(name: str) -> ConfigError | None:
    try:
        read_profile(name)
    except ConfigError as error:
        return error
    return None


def parse_profile(text: str, file: str) -> Profile:
    """Parse a profile.

    Args:
        text: The YAML.
        file: `targets/NAME.yaml`, for messages; only the target `cpu` may do without variants.

    Raises:
        ConfigError: An unknown or missing key, an invalid value, or values that contradict each other.
    """
    source = Source(file)
    profile = load(text, Profile, source)
    name = file.rpartition("/")[2].removesuffix(".yaml")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise source.error(
            "a target is named by its file, in lower-case letters and digits joined by hyphens",
            hint="rename the file, as in targets/orin-nano-8.yaml",
        )
    checks = (_export(profile), _memory(profile, name), _jetpacks(profile), _recognise(profile, name))
    for message, hint in chain(*checks):
        raise source.error(message, hint=hint)
    return profile


Complaints = Iterator[tuple[str, str]]
"""Messages, each with its hint."""


def _export(profile: Profile) -> Complaints:
    export = profile.export
    if (export.artifact == "onnx") != (export.dialect is not None):
        yield "`export.dialect` is for artifact `onnx`, which needs it; `mlx` has none", "add or remove it"
        return
    dtype, runners = _FORMATS[export.dialect or export.artifact]
    kind = f"dialect `{export.dialect}`" if export.dialect else f"artifact `{export.artifact}`"
    if export.activation_dtype != dtype:
        yield f"`export.activation_dtype` must be {dtype} for {kind}, not `{export.activation_dtype}`", "change it"
    for key, values, allowed in (
        ("export.group_sizes", export.group_sizes, GROUP_SIZES),
        ("export.runners", export.runners, runners),
    ):
        yield from _list(key, values, f"choose from {', '.join(map(str, allowed))}")
    wrong = next((runner for runner in export.runners if runner not in runners), None)
    if wrong:
        yield f"`export.runners`: `{wrong}` does not run {kind}", f"choose from {', '.join(runners)}"


def _list(key: str, values: Sequence[object], hint: str) -> Complaints:
    """Complain about an empty list, and about a value that is listed twice."""
    if not values:
        yield f"`{key}` must not be empty", hint
    if len(set(values)) != len(values):
        yield f"`{key}` lists a value twice", hint


def _memory(profile: Profile, name: str) -> Complaints:
    reserve = profile.reserve
    if not profile.variants and name != FALLBACK:
        example = "{title: …, memory_gib: [8, 16], bandwidth_gb_s: 102.4, source: …}"
        yield "`variants` is missing, and with it the memory to plan for", f"list what it is sold as: `- {example}`"
    for index, variant in enumerate(profile.variants):
        key = f"variants[{index}].memory_gib"
        yield from _list(key, variant.memory_gib, "list the sizes it is sold with, in GiB")
        if list(variant.memory_gib) != sorted(variant.memory_gib):
            yield f"`{key}` must be ascending", f"write {sorted(variant.memory_gib)}"
        for size in variant.memory_gib:
            if reserve.gib + reserve.fraction * size >= size:
                yield f"`reserve` takes all of the {size} GiB of `variants[{index}]`", "lower `reserve.gib`"
    titles = [variant.title for variant in profile.variants]
    if len(set(titles)) != len(titles):
        yield "two of `variants` have the same `title`", "give each the name that the device reports"
    # A size that several variants share means the first of them.
    known = [(index, v.bandwidth_gb_s) for index, v in enumerate(profile.variants) if v.bandwidth_gb_s is not None]
    for (_, slower), (index, faster) in pairwise(known):
        if faster < slower:
            yield f"`variants[{index}].bandwidth_gb_s` is less than that of an earlier one", "list slower ones first"


def _jetpacks(profile: Profile) -> Complaints:
    if not profile.jetpacks:
        return
    if "tensorrt" not in profile.export.runners:
        yield "`jetpacks` is for targets with the runner `tensorrt`", "remove it, or add the runner"
    for index, pack in enumerate(profile.jetpacks):
        yield from _list(f"jetpacks[{index}].dialects", pack.dialects, "choose from portable, native")
        if pack.dialects and pack.dialects[0] != profile.export.dialect:
            yield (
                f"`jetpacks[{index}].dialects` must begin with `export.dialect`: one bundle is for all of them",
                f"write `{profile.export.dialect}` first",
            )
    since = [version_numbers(pack.since) for pack in profile.jetpacks]
    if since != sorted(set(since)):
        yield "`jetpacks` must be ascending by `since`, without repetition", "list older versions first"


def version_numbers(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, to compare it by: "7.2" is (7, 2)."""
    return tuple(int(part) for part in version.split("."))


def _recognise(profile: Profile, name: str) -> Complaints:
    rules = profile.recognise
    if not (rules.device_tree or rules.cpu_brand or rules.gpu or name == FALLBACK):
        yield (
            "`recognise` has no pattern, so `edgekit doctor` would never find this target",
            "add `device_tree`, `cpu_brand` or `gpu`",
        )
    if rules.memory_gib and (len(rules.memory_gib) != 2 or rules.memory_gib[0] > rules.memory_gib[1]):
        yield "`recognise.memory_gib` must be minimum and maximum", "write it as [6, 9], or leave it out"
