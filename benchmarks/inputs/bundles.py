"""Bundles to measure: a real model, exported on first use, and a tiny one with random weights."""

from __future__ import annotations

import sys
from pathlib import Path

from edgekit.errors import EdgekitError
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.export.progress import silent
from edgekit.target import load_target

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.generation.bundles import tiny_bundle
from tests.models import CHATML, tiny_checkpoint

__all__ = ["CHATML", "SMALL_MODEL", "exported", "tiny_bundle", "tiny_tensorrt_bundle"]

SMALL_MODEL = "smollm2-135m-instruct"


def exported(work: Path, model: str = SMALL_MODEL, recipe: str = "auto", target: str = "cpu") -> Path:
    """Return a bundle of the model for a target, exported into `work` on first use."""
    bundle = work / f"{model}-{target}-{recipe}"
    if not bundle.exists():
        print(f"exporting {model} …", file=sys.stderr)
        try:
            export_bundle(model, load_target(target), bundle, ExportOptions(recipe=recipe), silent)
        except EdgekitError as error:
            sys.exit(f"error: {error.message}\n\nhint: {error.hint}")
    return bundle


def tiny_tensorrt_bundle(folder: Path) -> Path:
    """Return a bundle of a tiny model with random weights, exported for `rtx`."""
    bundle = folder / "bundle"
    checkpoint = tiny_checkpoint(folder / "checkpoint")
    export_bundle(str(checkpoint), load_target("rtx"), bundle, ExportOptions(), silent)
    return bundle
