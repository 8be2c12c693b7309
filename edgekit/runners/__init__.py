"""Runners execute an artifact: one file per backend, all behind the `Runner` protocol."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from edgekit.errors import ConfigError, EdgekitError, RunnerError, option
from edgekit.runners.base import KvShare, Runner
from edgekit.runners.candidates import Candidate, LoadOptions, Offer, candidates

__all__ = [
    "Explain",
    "LoadOptions",
    "Rejected",
    "RunnerChoice",
    "choose_runner",
    "expected_runner",
    "named_candidates",
    "open_runner",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

Explain = Callable[[str, EdgekitError], EdgekitError]
"""Takes the name of a runner and why it cannot be used, and returns the reason that the user is told."""

_NO_FLOAT32_ATTENTION = "onnxruntime's CUDA provider has no attention in float32: export the model for `rtx` or an Orin"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A runner that was preferred, and could not be used.

    Attributes:
        name: Its name, as in `runner:` of the configuration.
        reason: Why, phrased to follow a colon.
        hint: What makes it work; None if unknown.
        code: Code of the error.
    """

    name: str
    reason: str
    hint: str | None = field(default=None, compare=False)
    code: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


@dataclass(frozen=True, slots=True)
class RunnerChoice:
    """The runner that was chosen.

    Attributes:
        runner: The runner, loaded.
        rejected: The runners that would have been preferred, in order.
    """

    runner: Runner
    rejected: tuple[Rejected, ...] = ()


def open_runner(
    folder: Path,
    kind: str,
    dialect: str = "",
    *,
    context_length: int,
    threads: int | None = None,
    sequence_slots: int = 1,
    max_chunk: int | None = None,
    kv_bits: int | None = None,
    shares_cores: bool = False,
    kv_share: KvShare | None = None,
    runner: str = "auto",
) -> Runner:
    """Load the artifact of a bundle into the best runner that works here.

    Args:
        folder: The bundle's folder.
        kind: `onnx` or `mlx`: `Artifact.kind` of the manifest.
        dialect: `Artifact.dialect` of the manifest.
        context_length: Tokens that one sequence slot must hold.
        threads: Threads of CPU backends; default: one per usable core (`cores.py`).
        sequence_slots: Maximum number of sequences at a time.
        max_chunk: Maximum tokens of one slot in one step; default: the runner's.
        kv_bits: 8 quantizes the KV cache to 8 bits; None keeps it in the model's precision.
        shares_cores: Another runner computes between the steps of this one, so its threads must not spin.
        kv_share: Asked by a runner that allocates the KV cache when it loads how much of the memory it may have.
        runner: `auto`, or the name of the only runner to try. `onnxruntime` computes graphs for TensorRT as TensorRT
            does, with FP16 activations, but slowly; the CPU kernels round activations to 8 bits.

    Raises:
        IncompatibleBundleError: No runner supports this kind.
        ConfigError: The runner has no 8-bit KV cache, `runner` is none that runs this artifact, or
            $EDGEKIT_CPU_KERNELS names a variant that is not available.
        BundleError: The artifact is damaged, or does not match the manifest.
        EdgekitError: `missing_extra`, if no runner works and one lacks a library.
        RunnerError: No runner works.
    """
    options = LoadOptions(context_length, threads, sequence_slots, max_chunk, kv_bits, shares_cores, kv_share)
    return choose_runner(folder, kind, dialect, options, runner=runner).runner


def choose_runner(
    folder: Path,
    kind: str,
    dialect: str,
    options: LoadOptions,
    *,
    runner: str = "auto",
    accept: Callable[[Runner], None] | None = None,
    explain: Explain | None = None,
) -> RunnerChoice:
    """Load an artifact into the first runner that works, and say why those before it do not; see `open_runner`.

    Backends are imported lazily, so that a device needs only its own. A damaged bundle and a user's mistake are errors:
    no other runner is tried.

    Args:
        folder: As for `open_runner`.
        kind: As for `open_runner`.
        dialect: As for `open_runner`.
        options: Its other arguments.
        runner: As for `open_runner`.
        accept: Called with a loaded runner; a `RunnerError` rejects it, and the next one is tried.
        explain: Replaces the reasons of runners that cannot be used by those of a caller who knows more.
    """
    if options.kv_bits is not None and kind != "mlx":
        raise ConfigError(
            "this runner cannot quantize its KV cache",
            hint="leave out `kv_cache_bits`: it is for MLX bundles",
        )

    def load(offer: Offer) -> Runner:
        loaded = offer.load(options)
        try:
            if accept is not None:
                accept(loaded)
        except BaseException:
            loaded.close()
            raise
        return loaded

    offer, loaded, rejected = _first(
        named_candidates(kind, dialect, runner), folder, dialect, load, runner=runner, explain=explain
    )
    why = f"; not on {', '.join(map(str, rejected))}" if rejected else ""
    hint = f" (hint: {rejected[0].hint})" if rejected and rejected[0].hint else ""
    logger.info("running on %s%s%s", offer.label, why, hint)
    return RunnerChoice(loaded, rejected)


def expected_runner(folder: Path, kind: str, dialect: str, *, runner: str = "auto") -> tuple[str, tuple[Rejected, ...]]:
    """Return what `choose_runner` would probably choose, for people, without loading the model.

    Raises:
        EdgekitError: As `choose_runner`.
    """
    _, label, rejected = _first(
        named_candidates(kind, dialect, runner), folder, dialect, lambda offer: offer.label, runner=runner
    )
    return label, rejected


def _first(
    listed: Sequence[Candidate],
    folder: Path,
    dialect: str,
    use: Callable[[Offer], T],
    *,
    runner: str,
    explain: Explain | None = None,
) -> tuple[Offer, T, tuple[Rejected, ...]]:
    """The first offer that can be used, what came of that, and why those before it were rejected."""
    failures: list[EdgekitError] = []
    for candidate in listed:
        result = _tried(candidate, folder, dialect, use)
        if not isinstance(result, EdgekitError):
            rejected = zip(listed, failures, strict=False)
            return *result, tuple(Rejected(one.name, error.message, error.hint, error.code) for one, error in rejected)
        if len(listed) > 1:
            # Its frames hold what was loaded, for which the next runner needs the memory.
            result.__traceback__ = result.__cause__ = result.__context__ = None
        failures.append(result if explain is None else explain(candidate.name, result))
    raise _nothing_runs(listed, failures, runner)


def _tried(
    candidate: Candidate, folder: Path, dialect: str, use: Callable[[Offer], T]
) -> tuple[Offer, T] | EdgekitError:
    """Use a candidate, or return why another may do better."""
    try:
        offer = candidate.offer(folder, dialect)
        return offer, use(offer)
    except EdgekitError as error:
        if isinstance(error, RunnerError) or error.code in {"missing_extra", "broken_library"}:
            return error
        raise


def named_candidates(kind: str, dialect: str, runner: str) -> tuple[Candidate, ...]:
    """Return the candidates for an artifact, or the one that `runner` names.

    Raises:
        ConfigError: It names none of them.
        IncompatibleBundleError: As `candidates`.
    """
    listed = candidates(kind, dialect)
    if runner == "auto":
        return listed
    named = tuple(candidate for candidate in listed if candidate.name == runner)
    if named:
        return named
    hint = f"choose {' or '.join(candidate.name for candidate in listed)}, or auto"
    if runner == "cuda" and dialect == "onnxruntime":
        hint = f"{hint}; {_NO_FLOAT32_ATTENTION}"
    raise ConfigError(
        f"no runner `{runner[:40]}` for this bundle, whose artifact is {f'{kind} {dialect}'.strip()}", hint=hint
    )


def _nothing_runs(listed: Sequence[Candidate], failures: Sequence[EdgekitError], runner: str) -> EdgekitError:
    """The error if every candidate failed."""
    if runner != "auto":
        (error,) = failures
        hint = error.hint or f"{option('runner', 'auto')} takes the best runner that works here"
        return RunnerError(f"this bundle cannot run on {listed[0].title}: {error.message}", hint=hint, code=error.code)
    if len(failures) == 1:
        return failures[0]
    reasons = "; ".join(f"{one.title}: {error.message}" for one, error in zip(listed, failures, strict=True))
    hints = dict.fromkeys(_hints(failures))
    codes = {error.code for error in failures}
    code = "missing_extra" if "missing_extra" in codes else next(iter(codes)) if len(codes) == 1 else "runner_failed"
    return RunnerError(f"nothing here runs this bundle: {reasons}", hint="; ".join(hints), code=code)


def _hints(failures: Sequence[EdgekitError]) -> Iterator[str]:
    yield from (error.hint for error in failures if error.hint)
    yield "to see what is missing: edgekit doctor"
