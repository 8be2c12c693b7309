"""Plans a model's memory on a target: what it needs, whether it fits, the speed limit, and advice if it does not fit.

Combines the facts about the model (`model_facts.py`), the size of its artifact (`writers/sizes.py`), and the
arithmetic (`edgekit.memory`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.bundle.manifest import MANIFEST_NAME
from edgekit.config import MAX_PARALLEL
from edgekit.errors import ConfigError, EdgekitError, ExportError, IncompatibleBundleError, option
from edgekit.export.architectures import describe
from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.checkpoints.files import read_json
from edgekit.export.checks import check_export
from edgekit.export.options import ExportOptions
from edgekit.export.planning.memory_plan import Artifact, memory_plan, notes_on_batch
from edgekit.export.planning.model_facts import ModelFacts, model_facts
from edgekit.export.progress import Report, silent
from edgekit.export.quantization.grid import GroupedTensor
from edgekit.export.recipes.recipe import METHODS, recipe_for
from edgekit.export.writers.limits import check_support
from edgekit.export.writers.sizes import Rows, Sizes, predicted_sizes, runner_for, sizes_of_files
from edgekit.machine import user_path
from edgekit.memory import GIB, RUNTIMES, Plan, tokens_per_s
from edgekit.profile import ENGINES, FALLBACK
from edgekit.target import Target, load_target, load_targets

__all__ = ["ModelPlan", "check_plan", "note_on_context", "plan_model", "with_max_memory"]

_GROUP_SIZES = (64, 128)
_REORDERED = (
    "the checkpoint's GPTQ codes cannot be kept, because desc_act reordered the inputs of its groups: its matrices "
    "get 8 bits"
)


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """A model on a target.

    Attributes:
        name: The model.
        basis: Where the sizes of the weights come from.
        target: The device.
        runner: The runner on the device.
        recipe: The artifact's recipe.
        sizes: The artifact's sizes.
        plan: The memory needed and available.
        batch: Sequences that an engine decodes in one execution; with more than one it holds the weights twice.
        advice: Changes that would make it fit; the effect of each was computed. `spell_options` spells the options
            that it mentions.
        notes: What the export will do that the user may not expect.
        engine_notes: What the device will do when it builds an engine; options as in `advice`.
    """

    name: str
    basis: str
    target: Target
    runner: str
    recipe: str
    sizes: Sizes
    plan: Plan
    batch: int = 1
    advice: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    engine_notes: tuple[str, ...] = ()

    @property
    def needs_engine(self) -> bool:
        """Whether the runner runs an engine, whose figures are estimated until one is built and loaded."""
        return self.runner in ENGINES

    def bytes_per_token(self, context: int) -> int:
        """Bytes read to decode one token after `context` tokens."""
        return self.sizes.read_per_token + self.plan.footprint.kv_cache(context)

    def ceiling(self, context: int) -> float | None:
        """Maximum tokens per second at the target's memory bandwidth; None if that is unknown."""
        bandwidth = self.target.bandwidth_gb_s
        return None if bandwidth is None else tokens_per_s(bandwidth, self.bytes_per_token(context))

    def to_json(self) -> dict[str, Any]:
        """Return the plan as JSON data, in bytes, tokens, and tokens per second."""
        plan, footprint = self.plan, self.plan.footprint
        return {
            "model": self.name,
            "basis": self.basis,
            "target": self.target.name,
            "runner": self.runner,
            "estimated": self.needs_engine,
            "recipe": self.recipe,
            "context": plan.context,
            "parallel": plan.parallel,
            "batch": self.batch,
            "model_context": plan.max_context,
            "fits": plan.fits,
            "bytes": {
                "weights": footprint.weights,
                "kv_cache": plan.parallel * footprint.kv_allocated(plan.context),
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
            "notes": [*self.notes, *self.engine_notes],
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
        model: Any model that `edgekit export` takes, a `config.json`, or a bundle.
        target: The device.
        options: The export options. Without a context length, plans for the model's own, or the longest that fits.
        parallel: Number of sequence slots.
        runner: One of the target's runners; None takes the first that can run the artifact.
        report: Receives progress.

    Raises:
        ExportError: The model cannot be found, or an export would refuse it.
        ConfigError: The options contradict each other.
        BundleError: The bundle is damaged, or not for this target.
    """
    options = options or ExportOptions()
    if not 1 <= parallel <= MAX_PARALLEL:
        raise ConfigError(f"{option('parallel')} must be between 1 and {MAX_PARALLEL}, not {parallel}")
    folder = user_path(model)
    if (folder / MANIFEST_NAME).is_file():
        planned = _plan_bundle(open_bundle(folder), target, options, parallel, runner)
        return replace(planned, advice=tuple(_context_advice(planned))) if planned.plan.fits is False else planned
    with model_facts(model, revision=options.revision, report=report) as facts:
        if facts.checkpoint is not None:
            check_export(facts.checkpoint, target, recipe_for(target, options.recipe, options.group_size), options)
        planned = _plan_checkpoint(facts, target, options, parallel, runner)
        advice = tuple(_advice(planned, facts, options)) if planned.plan.fits is False else ()
        return replace(planned, advice=advice)


def _plan_checkpoint(
    facts: ModelFacts, target: Target, options: ExportOptions, parallel: int, runner: str | None = None
) -> ModelPlan:
    decoder = options.describe(facts.config)
    check_support(decoder, target)
    longest = replace(options, context_length=None).describe(facts.config).max_position
    recipe = recipe_for(target, options.recipe, options.group_size)
    recipe = recipe.with_bits(decoder, head=options.head_bits, embedding=options.embedding_bits)
    if options.fit_bytes is not None:
        recipe.check_fit()
    samples: dict[tuple[object, ...], Rows] = {}
    notes = _notes_on_context(decoder, options)

    def sample(linear: Linear) -> Rows:
        encoding = facts.encoding(linear)
        bits = recipe.chosen_bits.get(linear.stored.name)
        key = (encoding, linear.in_features, linear.name.startswith("model.layers."), bits)
        if key not in samples:
            rows = facts.rows(linear)
            if encoding == "GPTQ" and not isinstance(rows, GroupedTensor) and recipe.keeps_codes(linear):
                notes.setdefault("reordered", _REORDERED)
            samples[key] = recipe.apply(linear, rows, encoding)[0]
        return samples[key]

    sizes = predicted_sizes(decoder, target.dialect or target.artifact, sample)
    if options.fit_bytes is not None:
        sizes = sizes.with_8_bits(options.fit_bytes)
    runner = runner_for(target, target.dialect, sizes, runner)
    artifact = Artifact(decoder, sizes, sizes.resident(runner), runner, RUNTIMES[runner].kv_element)
    plan, batch = memory_plan(artifact, target, options.context_length, longest, parallel)
    named = (facts.name, facts.basis, target, runner, options.recipe, sizes)
    on_batch = notes_on_batch(artifact, plan, batch, options.context_length or longest)
    return ModelPlan(*named, plan, batch, notes=tuple(notes.values()), engine_notes=on_batch)


def _notes_on_context(decoder: Decoder, options: ExportOptions) -> dict[str, str]:
    """Tell which factors LongRoPE gets if the user did not choose by the context."""
    trained = decoder.rope.original_max_position
    if decoder.rope.kind != "longrope" or options.context_length is not None or trained is None:
        return {}
    if decoder.max_position <= trained:
        return {}
    note = (
        f"LongRoPE's factors for long sequences are taken, for a context of {decoder.max_position:,} tokens, and apply "
        f"to short chats too; a context of at most {trained:,} takes those that the model was trained with"
    )
    return {"longrope": note}


def _plan_bundle(
    bundle: Bundle, target: Target, options: ExportOptions, parallel: int, runner: str | None
) -> ModelPlan:
    """Plan for an existing bundle, from the sizes of its files."""
    manifest, artifact = bundle.manifest, bundle.manifest.artifact
    if not set(manifest.compatible) & set(target.accepts):
        raise IncompatibleBundleError(
            f"{bundle.path} was made for {', '.join(manifest.compatible)}, not for `{target.name}`",
            hint="plan for the checkpoint, or for a target that the bundle was made for",
        )
    longest, context = manifest.context_length, options.context_length
    if context is not None and not 0 < context <= longest:
        raise ConfigError(
            f"the bundle's context is {longest} tokens, not {context}", hint="export again for a longer context"
        )
    decoder = describe(read_json(bundle.path / "config.json"))
    sizes = sizes_of_files(bundle.path, artifact.kind, decoder)
    # A bundle made for any CPU runs on the fallback target's runners.
    runner_target = load_target(FALLBACK) if FALLBACK in manifest.compatible else target
    runner = runner_for(runner_target, artifact.dialect, sizes, runner)
    element = RUNTIMES[runner].kv_element
    if artifact.dialect == "optimum":
        element = max(1, manifest.memory.kv_cache_per_token // max(1, decoder.kv_bytes_per_token(1)))
    # For an engine, the figure that the device reckons with when it builds.
    weights = manifest.memory.weights if runner in ENGINES else sizes.resident(runner)
    bundled = Artifact(decoder, sizes, weights, runner, element)
    plan, batch = memory_plan(bundled, target, context, longest, parallel)
    recipe = str(manifest.recipe.get("method", "unknown"))
    named = (manifest.name, "the bundle's files", target, runner, recipe, sizes)
    return ModelPlan(*named, plan, batch, engine_notes=notes_on_batch(bundled, plan, batch, context or longest))


def _context_advice(planned: ModelPlan) -> Iterator[str]:
    plan = planned.plan
    longest = plan.longest_context(plan.parallel)
    if longest:
        shared = f" with {option('parallel', plan.parallel)}" if plan.parallel > 1 else ""
        yield f"{option('context_length', longest)} fits{shared}"
    fewer = range(plan.parallel - 1, 0, -1)
    fitting = next((count for count in fewer if (plan.longest_context(count) or 0) >= plan.context), None)
    if fitting:
        yield f"{option('parallel', fitting)} fits with {option('context_length', plan.context)}"


def _advice(planned: ModelPlan, facts: ModelFacts, options: ExportOptions) -> Iterator[str]:
    """Yield what would make the model fit: a shorter context, a smaller recipe, a larger device."""
    plan = planned.plan
    yield from _context_advice(planned)
    changes = [replace(options, recipe=method) for method in METHODS if method != options.recipe]
    changes += [replace(options, group_size=size) for size in _GROUP_SIZES if size != options.group_size]
    smaller: dict[int, tuple[ExportOptions, ModelPlan]] = {}
    for changed in changes:
        try:
            other = _plan_checkpoint(
                facts, planned.target, replace(changed, context_length=plan.context), plan.parallel
            )
        except (ConfigError, ExportError):
            continue
        # Savings below 1 % are not worth mentioning.
        if other.plan.needed < 0.99 * plan.needed:
            smaller.setdefault(other.plan.needed, (changed, other))
    for needed in sorted(smaller)[:2]:
        changed, other = smaller[needed]
        if changed.recipe != options.recipe:
            change = option("recipe", changed.recipe)
        else:
            change = option("group_size", changed.group_size)
        yield f"{change} saves {(plan.needed - needed) / GIB:.2f} GiB" + (" and fits" if other.plan.fits else "")
    larger = _larger_device(planned, facts, replace(options, context_length=plan.context))
    if larger is not None:
        yield larger


def _larger_device(planned: ModelPlan, facts: ModelFacts, options: ExportOptions) -> str | None:
    """Return advice naming the smallest device of the same kind that the model fits."""
    candidates = [load_target(planned.target.name, size) for size in planned.target.memory_choices_gib]
    others = (other for other in load_targets() if other.name != planned.target.name)
    candidates += [other for other in others if other.compatible == planned.target.compatible]
    for target in sorted(candidates, key=lambda candidate: candidate.memory_gib or 0):
        if (target.memory_gib or 0) <= (planned.target.memory_gib or 0):
            continue
        other = _plan_checkpoint(facts, target, options, planned.plan.parallel).plan
        if other.fits and other.left is not None:
            name = target.name
            if name == planned.target.name:
                name = f"{target.title} ({option('memory_gib', target.memory_gib)})"
            return f"fits {name} with {other.left / GIB:.2f} GiB left"
    return None


def note_on_context(bundle: Path, target: Target, options: ExportOptions) -> str | None:
    """Return a note if the target is known to have memory for only part of a bundle's context, else None."""
    if options.memory_gib is None and len(target.memory_choices_gib) != 1:
        return None
    try:
        plan = plan_model(str(bundle), target).plan
    except EdgekitError:
        # The artifact of another exporter cannot be planned for; the export itself succeeded.
        return None
    if plan.fits is None or plan.context == plan.max_context:
        return None
    tokens = f"{plan.context:,} of its {plan.max_context:,} tokens"
    return f"{target.name} has memory for {tokens}; see edgekit plan {bundle}"


def with_max_memory(target: Target) -> Target:
    """Return the target with the largest memory it is sold with."""
    sizes = target.memory_choices_gib
    return load_target(target.name, max(sizes), target.jetpack) if sizes else target


def check_plan(model: str, target: Target, options: ExportOptions, report: Report) -> tuple[str, ...]:
    """Refuse an export that cannot succeed or that the target cannot run, before weights are downloaded or quantized.

    A requested context must fit; without one, a short context must. If the memory is unknown (a target sold in several
    sizes, unless the user states one) the largest size counts; `cpu` without a stated size is never refused.

    Returns:
        Notes for the user; see `ModelPlan`.

    Raises:
        ExportError: As for `plan_model`; or `does_not_fit`, unless the options allow that.
    """
    device = target if options.memory_gib is not None else with_max_memory(target)
    planned = plan_model(model, device, options, report=report)
    plan = planned.plan
    if plan.fits is not False or plan.available is None or options.allow_oversize:
        return planned.notes
    raise ExportError(
        f"{planned.name} does not fit {device.title}: it needs {plan.needed / GIB:.2f} GiB with a context of "
        f"{plan.context} tokens, and {plan.available / GIB:.2f} of {device.memory_gib:g} GiB are available",
        hint="; ".join((*planned.advice, f"{option('allow_oversize', value=True)} exports it anyway")),
        code="does_not_fit",
    )
