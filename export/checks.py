"""Decides whether a checkpoint can be exported, before any work: `edgekit plan` and `edgekit export` share the answer.

Nothing here reads a weight's values, except to tell an unused tensor of zeros from one that matters: the checkpoint may
be an outline, whose weights were not downloaded.
"""

from __future__ import annotations

from edgekit.errors import ConfigError, option
from edgekit.export.builtin_exporter import builtin_exporter
from edgekit.export.checkpoints.base import Checkpoint, TokenizerFiles
from edgekit.export.checkpoints.tokenizer_files import check_text, check_tokens, with_chat_template
from edgekit.export.exporter import Exporter
from edgekit.export.options import ExportOptions
from edgekit.export.recipes.recipe import CALIBRATED, Recipe
from edgekit.target import Target

__all__ = ["check_export"]


def check_export(
    checkpoint: Checkpoint, target: Target, recipe: Recipe, options: ExportOptions
) -> tuple[Exporter, TokenizerFiles]:
    """Check a checkpoint and the options for it.

    Args:
        checkpoint: The checkpoint, or its outline.
        target: The device profile.
        recipe: The recipe, before the bits in `options` are applied.
        options: The user's choices.

    Returns:
        What exports it, and its tokenizer and chat template.

    Raises:
        ExportError: The architecture, its configuration, a tensor, the tokenizer or the chat template is missing or
            not supported.
        ConfigError: The options contradict each other.
    """
    exporter = _choose_exporter(checkpoint, target, recipe, options)
    tokenizer = with_chat_template(checkpoint.tokenizer(), options.chat_template)
    check_text(tokenizer)
    if options.exporter == "edgekit":
        check_tokens(tokenizer, options.describe(checkpoint.config).vocab_size)
    return exporter, tokenizer


def _choose_exporter(checkpoint: Checkpoint, target: Target, recipe: Recipe, options: ExportOptions) -> Exporter:
    """Check the options and return the exporter for them."""
    if options.exporter == "optimum":
        from edgekit.export.optimum.artifact import by_optimum

        if options.yarn is not None:
            raise ConfigError(
                f"{option('yarn')} is for edgekit's own exporter", hint="write rope_scaling into config.json"
            )
        if options.evaluate_on is not None:
            raise ConfigError(f"{option('evaluate_on')} is for edgekit's own exporter", hint="leave it out")
        if recipe.method in CALIBRATED or options.head_bits or options.embedding_bits or options.fit_bytes:
            raise ConfigError(
                "calibrated recipes and chosen bits are for edgekit's own exporter",
                hint=f"use {option('recipe', 'rtn')}, lsq or none",
            )
        return by_optimum(checkpoint, target, recipe, options)
    return builtin_exporter(checkpoint, target, recipe, options)
