"""Opens a draft model: a bundle with the main model's tokenizer, loaded with as many sequence slots."""

from __future__ import annotations

import logging
from pathlib import Path

from edgekit.bundle.bundle import Bundle
from edgekit.errors import BundleError, ConfigError
from edgekit.generation.chat.tokenizer import Tokenizer
from edgekit.generation.model import TextModel, warm_up
from edgekit.runners import open_runner
from edgekit.runners.base import KvShare, Runner

__all__ = ["open_draft"]

logger = logging.getLogger(__name__)

_TOKENIZER = "tokenizer.json"
_SAME_FAMILY = "a draft model is a smaller model of the same family, with the same tokenizer"


def open_draft(
    draft: Bundle, model: TextModel, folder: Path, *, threads: int | None = None, kv_share: KvShare | None = None
) -> Runner:
    """Load a draft model.

    Args:
        draft: Its bundle.
        model: The main model.
        folder: The main model's bundle folder.
        threads: As for `open_runner`.
        kv_share: As for `open_runner`.

    Raises:
        BundleError: The bundle is damaged.
        ConfigError: It has a different tokenizer or a smaller vocabulary.
        RunnerError: The artifact could not be loaded, or produces NaN or infinity.
    """
    _check_tokenizer(draft, model, folder)
    limits, artifact, name = model.runner.limits, draft.manifest.artifact, draft.manifest.name
    context = min(limits.context_length, draft.manifest.context_length)
    if context < limits.context_length:
        logger.info("the draft model %s has a context length of %d and drafts no tokens beyond it", name, context)
    runner = open_runner(
        draft.path,
        artifact.kind,
        artifact.dialect,
        context_length=context,
        threads=threads,
        sequence_slots=limits.sequence_slots,
        shares_cores=True,
        kv_share=kv_share,
    )
    available, needed = runner.limits.vocab_size, model.tokenizer.vocab_size
    try:
        if available >= needed:
            warm_up(runner, min(draft.manifest.eos_token_ids, default=0))
            logger.info("speculative decoding with the draft model %s", name)
            return runner
    except BaseException:
        runner.close()
        raise
    runner.close()
    raise ConfigError(
        f"the draft model {name} has a vocabulary of {available} tokens; the tokenizer has {needed}", hint=_SAME_FAMILY
    )


def _check_tokenizer(draft: Bundle, model: TextModel, folder: Path) -> None:
    """Reject a draft model whose token ids mean other tokens."""
    path = draft.path / _TOKENIZER
    try:
        if path.read_bytes() == (folder / _TOKENIZER).read_bytes():
            # Comparing parsed tokenizers takes a hundred megabytes.
            return
    except OSError as error:
        raise BundleError(f"cannot read {path}: {error.strerror}", hint="export it again") from error
    difference = model.tokenizer.difference(Tokenizer.load(path))
    if difference is not None:
        raise ConfigError(
            f"the draft model {draft.manifest.name} has another tokenizer than {model.info.name}: {difference}",
            hint=_SAME_FAMILY,
        )
