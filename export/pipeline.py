"""From a checkpoint to a bundle: checkpoint -> tensors -> quantized tensors -> artifact -> bundle.

Tensors stream: one is read, quantized, written and forgotten; the next is made ready meanwhile. The bundle is
written beside its place and renamed into it, so that a failure or Ctrl-C leaves nothing behind. It prints nothing.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from math import prod
from pathlib import Path
from typing import Any, Literal

from edgekit import __version__
from edgekit.bundle import manifest as schema
from edgekit.bundle.bundle import Bundle, hash_folder, open_bundle
from edgekit.errors import ConfigError, ExportError
from edgekit.export.architectures import describe
from edgekit.export.architectures.decoder import Decoder, Linear
from edgekit.export.architectures.rope import with_yarn
from edgekit.export.calibrated_weights import CalibratedWeights
from edgekit.export.calibration import (
    CALIBRATION_LENGTH,
    CALIBRATION_WINDOWS,
    Calibration,
    calibration_text,
    choose_windows,
)
from edgekit.export.checkpoints import open_checkpoint
from edgekit.export.checkpoints.base import Checkpoint, SourceFile, TokenizerFiles
from edgekit.export.evaluate import EvaluationOptions, evaluate
from edgekit.export.forward import CheckpointTensors
from edgekit.export.made import Made, Make
from edgekit.export.progress import Report
from edgekit.export.quantization.grid import as_floats
from edgekit.export.recipe import CALIBRATED, Recipe, recipe_for
from edgekit.export.source_hashes import SourceHashes
from edgekit.export.text import write_text_files
from edgekit.export.weights import CheckpointWeights
from edgekit.export.windows import read_text
from edgekit.export.writers import writer_for
from edgekit.export.writers.base import Artifact
from edgekit.target import Target

__all__ = ["ExportOptions", "export_bundle"]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What the user may choose.

    Attributes:
        recipe: A name of `edgekit.export.recipe.METHODS`.
        group_size: None takes the target's.
        name: The model's name in the manifest; None takes the checkpoint's.
        revision: Branch, tag or commit of a hub id.
        force: Replace a bundle that is already there.
        context_length: Longest sequence in tokens; None takes the longest that the model allows.
        yarn: Stretch the context by this factor, as Qwen2.5's model card describes; None leaves it.
        ignore_keys: Keys of config.json that edgekit does not know and the user declares harmless.
        calibrate_on: A text to calibrate on, where the recipe or `fit_bytes` needs one; None takes the default.
        calibration_windows: How much of it, in windows of 512 tokens; None takes the default.
        head_bits: Bits of the output head, 4, 8 or 16; None leaves it to the recipe.
        embedding_bits: Bits of the embedding.
        fit_bytes: Give 8 bits to the matrices that matter most, as far as the weights fit; None is as the recipe says.
        evaluate_on: A text to measure the bundle on, against the checkpoint; None measures nothing.
        exporter: `edgekit`, our own writers, or `optimum`, Optimum's and our INT4 pass.
        memory_gib: The device's memory as the user states it, GiB; None where they do not.
        allow_oversize: Export what does not fit the target too.
    """

    recipe: str = "auto"
    group_size: int | None = None
    name: str | None = None
    revision: str | None = None
    force: bool = False
    context_length: int | None = None
    yarn: float | None = None
    ignore_keys: tuple[str, ...] = ()
    calibrate_on: Path | None = None
    calibration_windows: int | None = None
    head_bits: int | None = None
    embedding_bits: int | None = None
    fit_bytes: int | None = None
    evaluate_on: Path | None = None
    exporter: Literal["edgekit", "optimum"] = "edgekit"
    memory_gib: float | None = None
    allow_oversize: bool = False

    def describe(self, config: Mapping[str, Any]) -> Decoder:
        """Describe the model of a configuration as these options want it.

        Raises:
            ExportError: The architecture is unknown, or its mathematics or this context are not covered.
        """
        config = config if self.yarn is None else with_yarn(config, self.yarn)
        return describe(config, context_length=self.context_length, ignore=self.ignore_keys)


def export_bundle(model: str, target: Target, output: Path, options: ExportOptions, report: Report) -> Bundle:
    """Export a model for a target.

    Args:
        model: A catalogue name, a GGUF file, a folder with an HF checkpoint, or a hub id.
        target: The device profile.
        output: The bundle's folder; must not exist, or be empty, unless `options.force`.
        options: The user's choices.
        report: Receives progress.

    Raises:
        ExportError: The checkpoint or the architecture is not one that edgekit can export, or writing failed; or
            `does_not_fit`, before any weights are fetched.
        ConfigError: The options do not fit together, or `output` is taken.
    """
    from edgekit.export.plan import refuse_oversize

    recipe = recipe_for(target, options.recipe, options.group_size)
    _refuse_to_overwrite(output, force=options.force)
    text = read_text(options.evaluate_on) if options.evaluate_on else None
    if not options.allow_oversize and options.exporter == "edgekit":
        refuse_oversize(model, target, options, report)
    with closing(open_checkpoint(model, revision=options.revision, report=report)) as checkpoint:
        make = _exporter(checkpoint, target, recipe, options)
        tokenizer = checkpoint.tokenizer()
        with _beside(output) as folder:
            made = make(folder, tokenizer, report)
            write_text_files(folder, made.artifact.config, tokenizer, made.context_length, licence=checkpoint.licence)
            source = made.source or checkpoint.source()
            files = hash_folder(folder, made.artifact.sha256)
            manifest = schema.Manifest(
                name=options.name or checkpoint.name,
                created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                edgekit=__version__,
                source={"id": checkpoint.id, "files": [_entry(file) for file in source]},
                architecture=made.architecture,
                parameters=made.parameters,
                artifact=schema.Artifact(kind=target.artifact, dialect=made.dialect),
                recipe=made.recipe,
                context_length=made.context_length,
                memory=schema.MemoryTable(
                    weights=sum(file.size for file in files if file.path in made.artifact.files),
                    kv_cache_per_token=made.kv_bytes_per_token,
                ),
                eos_token_ids=tokenizer.eos_token_ids,
                licence=checkpoint.licence,
                compatible=(target.compatible,),
                files=files,
            )
            if text is not None:
                quality = evaluate(Bundle(folder, manifest), checkpoint, text, EvaluationOptions(), report)
                manifest = replace(manifest, quality=quality.to_dict())
            (folder / schema.MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return open_bundle(output)


def _exporter(checkpoint: Checkpoint, target: Target, recipe: Recipe, options: ExportOptions) -> Make:
    """Return what writes the artifact, once it is clear that it can."""
    if options.exporter == "optimum":
        from edgekit.export.optimum.artifact import by_optimum

        if options.yarn is not None:
            raise ConfigError("--yarn is for edgekit's own exporter", hint="write rope_scaling into config.json")
        if options.evaluate_on is not None:
            raise ConfigError("--eval is for edgekit's own exporter", hint="leave it out")
        if recipe.method in CALIBRATED or options.head_bits or options.embedding_bits or options.fit_bytes:
            raise ConfigError(
                "calibrated recipes and chosen bits are for edgekit's own exporter",
                hint="use --recipe rtn, lsq or none",
            )
        return by_optimum(checkpoint, target, recipe, options.context_length)
    decoder = options.describe(checkpoint.config)
    _check_tensors(decoder, checkpoint)
    _check_bits(recipe, options)
    plain = recipe.with_bits(decoder, head=options.head_bits, embedding=options.embedding_bits)

    def make(folder: Path, tokenizer: TokenizerFiles, report: Report) -> Made:
        calibration = _calibration(plain, tokenizer, decoder, options)
        recipe = plain
        if options.fit_bytes is not None and calibration is not None:
            from edgekit.export.mixed_bits import fit_to_size

            tensors, ids = CheckpointTensors(checkpoint), calibration.ids
            form = target.dialect or target.artifact
            recipe = fit_to_size(
                plain, decoder, tensors, ids, size=options.fit_bytes, artifact_format=form, report=report
            )
        # MLX keeps a matrix that is stored whole as it is; ONNX takes it apart.
        linears = decoder.stored_linears() if target.artifact == "mlx" else decoder.linears()
        total = len(decoder.tensor_shapes())
        done = 0

        def progress(_: str) -> None:
            nonlocal done
            done += 1
            report("quantize and write", min(done, total), total)

        with (
            _weights(checkpoint, decoder, recipe, calibration, (decoder.embedding, *linears)) as weights,
            SourceHashes(checkpoint, weights.fraction_read) as hashing,
        ):
            artifact = writer_for(target)(decoder, weights, folder, progress)
            report("quantize and write", total, total)
            source = hashing.result()
        _check_size(folder, artifact, options.fit_bytes)
        if target.dialect == "onnxruntime":
            from edgekit.export.writers.onnx.genai_config import write_genai_config

            write_genai_config(folder, decoder, tokenizer)
        return Made(
            artifact=artifact,
            dialect=target.dialect or "",
            architecture=decoder.model_type,
            parameters=_parameters(decoder),
            context_length=decoder.max_position,
            kv_bytes_per_token=decoder.kv_bytes_per_token(recipe.holds.kv_element_bytes),
            recipe=recipe.summary(weights.used, calibration.as_dict() if calibration else None),
            source=source,
        )

    return make


def _check_bits(recipe: Recipe, options: ExportOptions) -> None:
    """Refuse options about bits and texts that the recipe does not take, before any work."""
    if options.fit_bytes is not None and recipe.method in {"auto", "exact", "none"}:
        raise ConfigError(
            f"--fit chooses bits, and so does --recipe {recipe.method}",
            hint="use --fit with --recipe gptq, awq, lsq or rtn",
        )
    wants_text = recipe.method in CALIBRATED or options.fit_bytes is not None
    if not wants_text and (options.calibrate_on is not None or options.calibration_windows is not None):
        raise ConfigError(
            f"--recipe {recipe.method} needs no text", hint=f"those that do: {', '.join(CALIBRATED)}; and --fit"
        )


def _calibration(
    recipe: Recipe, tokenizer: TokenizerFiles, decoder: Decoder, options: ExportOptions
) -> Calibration | None:
    """The windows to calibrate on; None where nothing asks for them."""
    if recipe.method not in CALIBRATED and options.fit_bytes is None:
        return None
    text = calibration_text(options.calibrate_on)
    length = min(CALIBRATION_LENGTH, decoder.max_position)
    windows = options.calibration_windows or CALIBRATION_WINDOWS
    return choose_windows(tokenizer.tokenizer_json, text, length=length, windows=windows)


def _weights(
    checkpoint: Checkpoint,
    decoder: Decoder,
    recipe: Recipe,
    calibration: Calibration | None,
    order: Sequence[Linear],
) -> CheckpointWeights | CalibratedWeights:
    """Where the writer's numbers come from."""
    if recipe.method in CALIBRATED and calibration is not None:
        return CalibratedWeights(checkpoint, decoder, recipe, calibration.ids)
    return CheckpointWeights(checkpoint, recipe, order)


def _check_size(folder: Path, artifact: Artifact, limit: int | None) -> None:
    """Make sure that what was promised before writing holds after it."""
    # A graph's structure is no weight.
    size = sum((folder / name).stat().st_size for name in artifact.files if not name.endswith((".onnx", ".json")))
    if limit is not None and size > limit:
        raise ExportError(
            f"the weights take {size / 2**20:.1f} MiB, more than the {limit / 2**20:.1f} MiB of --fit",
            hint=f"ask for {(limit - 1.05 * (size - limit)) / 2**20:.1f} MiB",
        )


def _entry(file: SourceFile) -> dict[str, object]:
    return {"name": file.name, "size": file.size, "sha256": file.sha256}


def _parameters(decoder: Decoder) -> int:
    return sum(prod(shape) for shape in decoder.tensor_shapes().values())


def _check_tensors(decoder: Decoder, checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint whose tensors are not those its configuration describes, before any work is done."""
    present = checkpoint.tensors
    expected = decoder.tensor_shapes()
    for name, shape in expected.items():
        if name not in present:
            raise ExportError(f"the checkpoint has no tensor `{name}`", hint="is a shard missing?")
        if present[name].shape != shape:
            raise ExportError(f"tensor `{name}` is shaped {present[name].shape}; the configuration says {shape}")
    # A tensor that nothing reads would change the answer silently: a bias the configuration does not mention, say.
    ignorable = {decoder.head.weight} if decoder.tied else set()
    strange = sorted(
        name
        for name in present
        if name not in expected
        and name not in ignorable
        and "rotary_emb" not in name
        and not _no_bias(checkpoint, name)
    )
    if strange:
        raise ExportError(
            f"the checkpoint has tensors this architecture does not use: {', '.join(strange[:3])}"
            + (f" and {len(strange) - 3} more" if len(strange) > 3 else ""),
            hint=f"is it really a `{decoder.model_type}` model?",
        )


def _no_bias(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a tensor is a bias of zeros: AutoGPTQ stores one beside every layer, whether the model has it or not."""
    if not name.endswith(".bias") or len(checkpoint.tensors[name].shape) != 1:
        return False
    return not as_floats(checkpoint.read(name)).any()


def _refuse_to_overwrite(output: Path, *, force: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not force:
        raise ConfigError(f"{output} already exists", hint="choose another -o, or replace it with --force")
    if not (output / schema.MANIFEST_NAME).exists():
        raise ConfigError(f"{output} is not a bundle; --force replaces only a bundle")


@contextmanager
def _beside(output: Path) -> Iterator[Path]:
    """Give a folder beside `output`, renamed to it on success and removed on any failure."""
    output = output.absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".partial", dir=output.parent))
    except OSError as error:
        raise ExportError(f"cannot write to {output.parent}: {error.strerror}") from error
    try:
        yield folder
        folder.chmod(0o755)
        _move_into_place(folder, output)
    except OSError as error:
        raise ExportError(
            f"writing {output} failed: {error.strerror or error}", hint="is there room on the disk?"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_into_place(folder: Path, output: Path) -> None:
    if not output.exists():
        folder.rename(output)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".old", dir=output.parent))
    output.replace(old)
    try:
        folder.rename(output)
    except OSError:
        old.replace(output)
        raise
    shutil.rmtree(old, ignore_errors=True)
