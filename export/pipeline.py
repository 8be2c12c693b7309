"""From a checkpoint to a bundle: checkpoint -> an exporter's artifact -> bundle.

The bundle is written beside its place and renamed into it, so that a failure or Ctrl-C leaves nothing behind. It
prints nothing, and knows the exporters only as what makes an artifact: `own_artifact` and `optimum/artifact`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from edgekit import __version__
from edgekit.bundle import manifest as schema
from edgekit.bundle.bundle import Bundle, hash_folder, open_bundle
from edgekit.errors import ConfigError, ExportError
from edgekit.export.checkpoints import open_checkpoint
from edgekit.export.checkpoints.base import Checkpoint, SourceFile
from edgekit.export.evaluate import EvaluationOptions, evaluate
from edgekit.export.made import Make
from edgekit.export.options import ExportOptions
from edgekit.export.own_artifact import by_edgekit
from edgekit.export.progress import Report
from edgekit.export.recipe import CALIBRATED, Recipe, recipe_for
from edgekit.export.text import check_text, write_text_files
from edgekit.export.windows import read_text
from edgekit.target import Target

__all__ = ["ExportOptions", "export_bundle"]


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
        check_text(tokenizer)
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
    return by_edgekit(checkpoint, target, recipe, options)


def _entry(file: SourceFile) -> dict[str, object]:
    return {"name": file.name, "size": file.size, "sha256": file.sha256}


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
