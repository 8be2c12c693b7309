"""The memory plan of a model on a target: what it takes, whether it fits, how fast memory lets it be, what would help.

It puts together what a model is (`plan_source`), what an artifact of it weighs (`artifact_sizes`), and the arithmetic
(`edgekit.memory`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.bundle.manifest import MANIFEST_NAME
from edgekit.errors import ConfigError, EdgekitError, ExportError, IncompatibleBundleError
from edgekit.export.architectures import describe
from edgekit.export.architectures.decoder import Decoder, Layer, Linear
from edgekit.export.artifact_sizes import Rows, Sizes, predicted_sizes, runner_for, sizes_of_files
from edgekit.export.checkpoints.files import read_json
from edgekit.export.options import ExportOptions
from edgekit.export.plan_source import Source, plan_source
from edgekit.export.progress import Report, silent
from edgekit.export.recipe import METHODS, recipe_for
from edgekit.memory import GIB, RUNTIMES, Footprint, Plan, Shapes, tokens_per_s
from edgekit.runners.cores import usable_cores
from edgekit.target import FALLBACK, Target, load_target, targets

__all__ = ["ModelPlan", "largest", "note_on_context", "plan_model", "refuse_oversize"]

# What an export needs to be of any use where no context is asked for.
_USEFUL = 2048
# mlx-lm keeps no more than the window in the layers that see one.
_WINDOWED_BY_MLX = {"gemma3_text"}
_GROUP_SIZES = (64, 128)


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """A model on a target.

    Attributes:
        name: The model.
        basis: What the figures of the weights rest on.
        target: The device.
        runner: What runs it there.
        recipe: What the artifact is made with.
        sizes: The artifact.
        plan: What it takes, and what there is.
        advice: What would make it fit; each was computed.
    """

    name: str
    basis: str
    target: Target
    runner: str
    recipe: str
    sizes: Sizes
    plan: Plan
    advice: tuple[str, ...] = ()

    def bytes_per_token(self, context: int) -> int:
        """Bytes that one token's step reads behind so many tokens."""
        return self.sizes.read_per_token + self.plan.footprint.kv_cache(context)

    def ceiling(self, context: int) -> float | None:
        """Tokens per second that the target's memory allows; None where its bandwidth is not known."""
        bandwidth = self.target.bandwidth_gb_s
        return None if bandwidth is None else tokens_per_s(bandwidth, self.bytes_per_token(context))

    def to_json(self) -> dict[str, Any]:
        """Everything as data; bytes, tokens, tokens per second."""
        plan, footprint = self.plan, self.plan.footprint
        return {
            "model": self.name,
            "basis": self.basis,
            "target": self.target.name,
            "runner": self.runner,
            "recipe": self.recipe,
            "context": plan.context,
            "parallel": plan.parallel,
            "model_context": plan.most,
            "fits": plan.fits,
            "bytes": {
                "weights": footprint.weights,
                "kv_cache": plan.parallel * footprint.kv_cache(plan.context),
                "activations": footprint.step(plan.context),
                "workspace": footprint.workspace,
                "needed": plan.needed,
                "memory": plan.memory,
                "reserve": plan.reserve,
                "left": plan.left,
            },
            "artifact_bytes": self.sizes.stored,
            "kv_bytes_per_token": footprint.kv_cache(1),
            "longest_context": {str(count): plan.longest_context(count) for count in sorted({1, plan.parallel})},
            "bytes_read_per_token": self.sizes.read_per_token,
            "ceiling_tokens_per_s": {str(context): self.ceiling(context) for context in (0, plan.context)},
            "advice": list(self.advice),
        }


def plan_model(
    model: str,
    target: Target,
    options: ExportOptions | None = None,
    *,
    parallel: int = 1,
    runner: str | None = None,
    report: Report = silent,
) -> ModelPlan:
    """Plan a model's memory without its weights.

    Args:
        model: What `edgekit export` takes; or a `config.json`, or a bundle.
        target: The device.
        options: As for an export. Without a context, the model's own is planned for, or the longest that fits.
        parallel: Sequence slots.
        runner: Of the target's, what runs it there; None takes the first that can.
        report: Receives progress.

    Raises:
        ExportError: The model cannot be found or described.
        ConfigError: The options do not fit together.
        BundleError: A bundle is damaged, or not for this target.
    """
    options = options or ExportOptions()
    if parallel < 1:
        raise ConfigError("--parallel must be at least 1")
    folder = Path(model).expanduser()
    if (folder / MANIFEST_NAME).is_file():
        made = _bundled(open_bundle(folder), target, options, parallel, runner)
        return replace(made, advice=tuple(_shorter(made))) if made.plan.fits is False else made
    with closing(plan_source(model, revision=options.revision, report=report)) as source:
        made = _planned(source, target, options, parallel, runner)
        return replace(made, advice=tuple(_advice(made, source, options))) if made.plan.fits is False else made


def _planned(
    source: Source, target: Target, options: ExportOptions, parallel: int, runner: str | None = None
) -> ModelPlan:
    decoder = options.describe(source.config)
    longest = replace(options, context_length=None).describe(source.config).max_position
    recipe = recipe_for(target, options.recipe, options.group_size)
    recipe = recipe.with_bits(decoder, head=options.head_bits, embedding=options.embedding_bits)
    if options.fit_bytes is not None:
        recipe.check_fit()
    known: dict[tuple[object, ...], Rows] = {}

    def sample(linear: Linear) -> Rows:
        encoding = source.encoding(linear)
        bits = recipe.chosen_bits.get(linear.stored.name)
        key = (encoding, linear.in_features, linear.name.startswith("model.layers."), bits)
        if key not in known:
            known[key] = recipe.apply(linear, source.rows(linear), encoding)[0]
        return known[key]

    sizes = predicted_sizes(decoder, target.dialect or target.artifact, sample)
    if options.fit_bytes is not None:
        sizes = sizes.widened(options.fit_bytes)
    runner = runner_for(target, target.dialect, sizes, runner)
    footprint = _footprint(decoder, sizes, runner, RUNTIMES[runner].kv_element)
    plan = _plan(footprint, target, options.context_length, longest, parallel)
    return ModelPlan(source.name, source.basis, target, runner, options.recipe, sizes, plan)


def _bundled(bundle: Bundle, target: Target, options: ExportOptions, parallel: int, runner: str | None) -> ModelPlan:
    """A bundle is planned for as it is: its files say what they weigh."""
    manifest, artifact = bundle.manifest, bundle.manifest.artifact
    if not set(manifest.compatible) & set(target.accepts):
        raise IncompatibleBundleError(
            f"{bundle.path} was made for {', '.join(manifest.compatible)}, and not for `{target.name}`",
            hint="plan for the checkpoint instead, or for a target that the bundle is for",
        )
    longest, context = manifest.context_length, options.context_length
    if context is not None and not 0 < context <= longest:
        raise ConfigError(f"the bundle holds {longest} tokens, not {context}", hint="export again for a longer context")
    decoder = describe(read_json(bundle.path / "config.json"))
    sizes = sizes_of_files(bundle.path, artifact.kind, decoder)
    # What was made for any CPU runs as it does there.
    on = load_target(FALLBACK) if FALLBACK in manifest.compatible else target
    runner = runner_for(on, artifact.dialect, sizes, runner)
    element = RUNTIMES[runner].kv_element
    if artifact.dialect == "optimum":
        element = max(1, manifest.memory.kv_cache_per_token // max(1, decoder.kv_bytes_per_token(1)))
    footprint = _footprint(decoder, sizes, runner, element)
    plan = _plan(footprint, target, context, longest, parallel)
    recipe = str(manifest.recipe.get("method", "unknown"))
    return ModelPlan(manifest.name, "the bundle's files", target, runner, recipe, sizes, plan)


def _footprint(decoder: Decoder, sizes: Sizes, runner: str, element: int) -> Footprint:
    shapes = Shapes(
        decoder.hidden_size,
        decoder.intermediate_size,
        decoder.num_heads,
        decoder.vocab_size,
        decoder.num_kv_heads,
        decoder.head_dim,
    )
    one_layer = decoder.kv_bytes_per_token(element) // len(decoder.layers)
    windows = [layer.window for layer in decoder.layers if _windowed(decoder, layer, runner)]
    return RUNTIMES[runner].footprint(
        shapes,
        weights=sizes.resident(runner),
        kv_per_token=one_layer * (len(decoder.layers) - len(windows)),
        windows=tuple((one_layer, window or 0) for window in windows),
        # Of RoPE's tables these have the context's rows in memory; elsewhere all are among the weights.
        rope_per_token=sizes.rope // decoder.max_position if runner in {"cpu", "onnxruntime"} else 0,
        # Of the device nobody knows better.
        threads=usable_cores(),
    )


def _windowed(decoder: Decoder, layer: Layer, runner: str) -> bool:
    return runner == "mlx" and layer.window is not None and decoder.model_type in _WINDOWED_BY_MLX


def _plan(footprint: Footprint, target: Target, context: int | None, longest: int, parallel: int) -> Plan:
    memory = None if target.memory_gib is None else int(target.memory_gib * GIB)
    plan = Plan(footprint, context or longest, parallel, longest, memory, int(target.reserve_gib * GIB))
    if context is None and plan.fits is False:
        return replace(plan, context=plan.longest_context(parallel) or min(_USEFUL, longest))
    return plan


def _shorter(made: ModelPlan) -> Iterator[str]:
    plan = made.plan
    longest = plan.longest_context(plan.parallel)
    if longest:
        yield f"--context {longest} fits" + (f" with --parallel {plan.parallel}" if plan.parallel > 1 else "")
    fewer = range(plan.parallel - 1, 0, -1)
    fitting = next((count for count in fewer if (plan.longest_context(count) or 0) >= plan.context), None)
    if fitting:
        yield f"--parallel {fitting} fits with --context {plan.context}"


def _advice(made: ModelPlan, source: Source, options: ExportOptions) -> Iterator[str]:
    """What would make it fit: less context, a smaller recipe, a larger device."""
    plan = made.plan
    yield from _shorter(made)
    changes = [replace(options, recipe=method) for method in METHODS if method != options.recipe]
    changes += [replace(options, group_size=size) for size in _GROUP_SIZES if size != options.group_size]
    smaller: dict[int, tuple[ExportOptions, ModelPlan]] = {}
    for changed in changes:
        try:
            other = _planned(source, made.target, replace(changed, context_length=plan.context), plan.parallel)
        except (ConfigError, ExportError):
            continue
        # Less than a hundredth is no advice.
        if other.plan.needed < 0.99 * plan.needed:
            smaller.setdefault(other.plan.needed, (changed, other))
    for needed in sorted(smaller)[:2]:
        changed, other = smaller[needed]
        what = (
            f"--recipe {changed.recipe}" if changed.recipe != options.recipe else f"--group-size {changed.group_size}"
        )
        yield f"{what} saves {(plan.needed - needed) / GIB:.2f} GiB" + (" and fits" if other.plan.fits else "")
    roomier = _roomier(made, source, replace(options, context_length=plan.context))
    if roomier is not None:
        yield roomier


def _roomier(made: ModelPlan, source: Source, options: ExportOptions) -> str | None:
    """The smallest device of the same kind that has room."""
    kin = [load_target(made.target.name, size) for size in made.target.memory_choices_gib]
    others = [load_target(name) for name in targets() if name != made.target.name]
    kin += [other for other in others if other.compatible == made.target.compatible]
    for target in sorted(kin, key=lambda one: one.memory_gib or 0):
        if (target.memory_gib or 0) <= (made.target.memory_gib or 0):
            continue
        other = _planned(source, target, options, made.plan.parallel).plan
        if other.fits and other.left is not None:
            name = target.name
            if name == made.target.name:
                name = f"{target.title}, --memory-gib {target.memory_gib:g},"
            return f"{name} has room: {other.left / GIB:.2f} GiB would be left"
    return None


def note_on_context(bundle: Path, target: Target, options: ExportOptions) -> str | None:
    """Say how much of a bundle's context the target has memory for, where that is known and not all of it."""
    if options.memory_gib is None and len(target.memory_choices_gib) != 1:
        return None
    try:
        plan = plan_model(str(bundle), target).plan
    except EdgekitError:
        # An artifact of another exporter's: the export itself went well.
        return None
    if plan.fits is None or plan.context == plan.most:
        return None
    return f"{target.name} has memory for {plan.context:,} of its {plan.most:,} tokens; see edgekit plan {bundle}"


def largest(target: Target) -> Target:
    """The target with the most memory it is made with."""
    sizes = target.memory_choices_gib
    return load_target(target.name, max(sizes), target.jetpack) if sizes else target


def refuse_oversize(model: str, target: Target, options: ExportOptions, report: Report) -> None:
    """Refuse an export that the target cannot run, before weights are downloaded or quantized.

    A context that was asked for must fit; where none was, a short one must. Where the memory is not known (`cpu`, or a
    target made in several sizes, unless the user says which) the most that there is counts.

    Raises:
        ExportError: `does_not_fit`.
    """
    judged = target if options.memory_gib is not None else largest(target)
    try:
        made = plan_model(model, judged, options, report=report)
    except ExportError:
        # What is wrong with a checkpoint is said when it is opened.
        return
    plan = made.plan
    if plan.fits is not False or plan.room is None:
        return
    raise ExportError(
        f"{made.name} does not fit {judged.title}: it needs {plan.needed / GIB:.2f} GiB with a context of "
        f"{plan.context} tokens, and {plan.room / GIB:.2f} GiB of {judged.memory_gib:g} are there for it",
        hint="; ".join((*made.advice, "--allow-oversize exports it all the same")),
        code="does_not_fit",
    )
