"""`edgekit.export_model`: what `edgekit export` does, as a function."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from edgekit.errors import import_failure
from edgekit.target import load_target

if TYPE_CHECKING:
    from edgekit.bundle.bundle import Bundle
    from edgekit.export.progress import Report

__all__ = ["export_model"]


def export_model(
    model: str | os.PathLike[str],
    target: str,
    output: str | os.PathLike[str],
    *,
    recipe: str = "auto",
    group_size: int | None = None,
    head_bits: int | None = None,
    embedding_bits: int | None = None,
    fit_bytes: int | None = None,
    calibrate_on: str | os.PathLike[str] | None = None,
    calibration_windows: int | None = None,
    context_length: int | None = None,
    yarn: float | None = None,
    ignore_keys: Iterable[str] = (),
    memory_gib: float | None = None,
    jetpack: str | None = None,
    dialect: str | None = None,
    name: str | None = None,
    revision: str | None = None,
    force: bool = False,
    chat_template: str | os.PathLike[str] | None = None,
    evaluate_on: str | os.PathLike[str] | None = None,
    exporter: Literal["edgekit", "optimum"] = "edgekit",
    allow_oversize: bool = False,
    progress: Report | None = None,
) -> Bundle:
    """Export a model for a target device and return the bundle; needs the `export` extra.

    Args:
        model: A catalogue name (`edgekit models`), a GGUF file, a folder with a Hugging Face checkpoint, or a hub id.
        target: A device profile (`edgekit targets`): `cpu`, `m2`, `orin`, …
        output: The bundle's folder; it must not exist or be empty, unless `force`.
        recipe: `auto`, `lsq`, `rtn`, `gptq`, `awq` or `none`.
        group_size: Weights that share a scale; None takes the target's.
        head_bits: Bits of the output head: 4, 8 or 16; None leaves it to the recipe.
        embedding_bits: Bits of the embedding: 4, 8 or 16; None leaves it to the recipe.
        fit_bytes: Give 8 bits to the most sensitive matrices until the weights have this many bytes.
        calibrate_on: Text file for recipes that calibrate; None takes the built-in text.
        calibration_windows: Windows of 512 tokens to calibrate on.
        context_length: Longest sequence in tokens; None takes the model's.
        yarn: Factor by which YaRN stretches the context.
        ignore_keys: Keys of `config.json` to ignore where edgekit does not know them.
        memory_gib: The device's memory, where the target is made in several sizes.
        jetpack: The device's JetPack version, for Orin targets.
        dialect: Of the ONNX graph, for TensorRT: `portable`, or `native` where its version builds it; None is
            `portable`.
        name: The model's name in the manifest; None takes the checkpoint's.
        revision: Branch, tag or commit of a hub id.
        force: Replace an existing bundle.
        chat_template: File with a chat template (Jinja) to take instead of the checkpoint's.
        evaluate_on: Text file to measure the quantized model on, against the checkpoint.
        exporter: `edgekit`, or `optimum` for architectures that edgekit does not describe (see `edgekit optimum`).
        allow_oversize: Export even if the model does not fit the target's memory.
        progress: Called with a stage, the amount done and the total (None if unknown).

    Raises:
        ConfigError: Unknown target, options that contradict each other, or `output` is taken.
        ExportError: The checkpoint cannot be fetched, read or exported, or does not fit the target.
    """
    try:
        from edgekit.export.pipeline import ExportOptions, export_bundle
        from edgekit.export.progress import silent

        options = ExportOptions(
            recipe=recipe,
            group_size=group_size,
            head_bits=head_bits,
            embedding_bits=embedding_bits,
            fit_bytes=fit_bytes,
            calibrate_on=None if calibrate_on is None else Path(calibrate_on),
            calibration_windows=calibration_windows,
            context_length=context_length,
            yarn=yarn,
            ignore_keys=tuple(ignore_keys),
            memory_gib=memory_gib,
            name=name,
            revision=revision,
            force=force,
            chat_template=None if chat_template is None else Path(chat_template),
            evaluate_on=None if evaluate_on is None else Path(evaluate_on),
            exporter=exporter,
            allow_oversize=allow_oversize,
        )
        profile = load_target(target, memory_gib=memory_gib, jetpack=jetpack, dialect=dialect)
        return export_bundle(os.fspath(model), profile, Path(output), options, progress or silent)
    except ImportError as error:
        failure = import_failure(error, "export")
        if failure is None:
            raise
        raise failure from error
