"""What a user may choose of an export."""

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
