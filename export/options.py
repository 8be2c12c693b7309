"""The options of an export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgekit.export.architectures import describe
from edgekit.export.architectures.decoder import Decoder
from edgekit.export.architectures.rope import with_yarn

__all__ = ["ExportOptions"]


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The user's choices for an export.

    Attributes:
        recipe: A key of `edgekit.export.recipes.recipe.METHODS`.
        group_size: None takes the target's.
        name: The model's name in the manifest; None takes the checkpoint's.
        revision: Branch, tag or commit of a hub id.
        force: Replace an existing bundle.
        context_length: Maximum sequence length in tokens; None takes the model's maximum.
        yarn: Extend the context by this factor, as Qwen2.5's model card describes; None leaves it.
        ignore_keys: Unknown keys of config.json that the user declares harmless.
        calibrate_on: Calibration text, where the recipe or `fit_bytes` needs one; None takes the default.
        calibration_windows: Number of calibration windows of 512 tokens; None takes the default.
        head_bits: Bits of the output head, 4, 8 or 16; None leaves it to the recipe.
        embedding_bits: Bits of the embedding.
        fit_bytes: Give 8 bits to the most sensitive matrices within this size; None keeps the recipe's bits.
        chat_template: File with a chat template to take instead of the checkpoint's; None keeps that.
        evaluate_on: Text for measuring the bundle against the checkpoint; None measures nothing.
        exporter: `edgekit`, our own writers, or `optimum`, Optimum's export followed by our INT4 pass.
        memory_gib: The device's memory as stated by the user, GiB; None if not stated.
        allow_oversize: Export even if the model does not fit the target.
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
    chat_template: Path | None = None
    evaluate_on: Path | None = None
    exporter: Literal["edgekit", "optimum"] = "edgekit"
    memory_gib: float | None = None
    allow_oversize: bool = False

    def describe(self, config: Mapping[str, Any]) -> Decoder:
        """Describe the model of a configuration with these options applied.

        Raises:
            ExportError: The architecture is unknown, or its configuration or this context is not supported.
        """
        config = config if self.yarn is None else with_yarn(config, self.yarn)
        return describe(config, context_length=self.context_length, ignore=self.ignore_keys)
