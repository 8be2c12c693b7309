"""Exports a checkpoint to a bundle: opens it, lets an exporter write the artifact, adds tokenizer and manifest.

The exporters are `builtin_exporter` and `optimum/artifact`.
"""

from __future__ import annotations

import logging
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from edgekit import __version__
from edgekit.bundle import manifest as schema
from edgekit.bundle.bundle import Bundle, hash_folder, open_bundle
from edgekit.bundle.self_test import SELF_TEST_FILE
from edgekit.errors import EdgekitError
from edgekit.export.architectures import describe
from edgekit.export.checkpoints.base import SourceFile
from edgekit.export.checkpoints.files import read_json
from edgekit.export.checkpoints.tokenizer_files import write_text_files
from edgekit.export.checks import check_export
from edgekit.export.evaluation.evaluate import EvaluationOptions, evaluate
from edgekit.export.options import ExportOptions
from edgekit.export.progress import Report
from edgekit.export.recipes.recipe import recipe_for
from edgekit.export.recipes.token_windows import read_text
from edgekit.export.sources.open import hub_model, open_checkpoint, outline_of
from edgekit.export.staging import check_output, staging_folder
from edgekit.export.writers.sizes import sizes_of_files
from edgekit.target import Target

__all__ = ["ExportOptions", "export_bundle"]

logger = logging.getLogger(__name__)


def export_bundle(model: str, target: Target, output: Path, options: ExportOptions, report: Report) -> Bundle:
    """Export a model for a target.

    Args:
        model: A catalogue name, a GGUF file, a folder with an HF checkpoint, or a model of the hub.
        target: The device profile.
        output: The bundle's folder; must not exist, or be empty, unless `options.force`.
        options: The user's choices.
        report: Receives progress.

    Raises:
        ExportError: edgekit cannot export the checkpoint, which is found before its weights are downloaded; or
            writing failed.
        ConfigError: The options contradict each other, or `output` exists.
    """
    from edgekit.export.planning.plan import check_plan

    recipe = recipe_for(target, options.recipe, options.group_size)
    check_output(output, force=options.force)
    text = read_text(options.evaluate_on) if options.evaluate_on else None
    if options.exporter == "edgekit":
        for note in check_plan(model, target, options, report):
            logger.warning("note: %s", note)
    elif hub_model(model) is not None:
        with outline_of(model, revision=options.revision, report=report) as outline:
            if outline is not None:
                check_export(outline, target, recipe, options)
    with closing(open_checkpoint(model, revision=options.revision, report=report)) as checkpoint:
        export, tokenizer = check_export(checkpoint, target, recipe, options)
        for note in tokenizer.notes:
            logger.warning("note: %s", note)
        with staging_folder(output, force=options.force) as folder:
            result = export(folder, tokenizer, report)
            artifact = result.artifact
            write_text_files(folder, artifact.config, tokenizer, result.context_length, licence=checkpoint.licence)
            if result.self_test is not None:
                (folder / SELF_TEST_FILE).write_text(result.self_test.to_json(), encoding="utf-8")
            source = result.source or checkpoint.source()
            files = hash_folder(folder, artifact.sha256)
            manifest = schema.Manifest(
                name=options.name or checkpoint.name,
                created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                edgekit=__version__,
                source={"id": checkpoint.id, "files": [_entry(file) for file in source]},
                architecture=result.architecture,
                parameters=result.parameters,
                artifact=schema.Artifact(target.artifact, result.dialect, schema.layout_of(result.dialect)),
                recipe=result.recipe,
                context_length=result.context_length,
                memory=schema.MemoryTable(
                    weights=sum(file.size for file in files if file.path in artifact.files),
                    kv_cache_per_token=result.kv_bytes_per_token,
                    read_per_token=_read_per_token(folder, target.artifact),
                ),
                eos_token_ids=tokenizer.eos_token_ids,
                sampling=tokenizer.sampling,
                licence=checkpoint.licence,
                compatible=(target.compatible,),
                files=files,
                self_test={"none": result.no_self_test} if result.self_test is None else {"file": SELF_TEST_FILE},
            )
            if text is not None:
                quality = evaluate(Bundle(folder, manifest), checkpoint, text, EvaluationOptions(), report)
                manifest = replace(manifest, quality=quality.to_dict())
            (folder / schema.MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    return open_bundle(output)


def _read_per_token(folder: Path, kind: str) -> int | None:
    """Bytes of weights read to decode one token; None for an architecture that edgekit does not describe itself."""
    try:
        return sizes_of_files(folder, kind, describe(read_json(folder / "config.json"))).read_per_token
    except EdgekitError:
        return None


def _entry(file: SourceFile) -> dict[str, object]:
    return {"name": file.name, "size": file.size, "sha256": file.sha256}
