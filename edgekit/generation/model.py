"""A model ready to chat: runner, tokenizer and template of one bundle, side by side.

It knows where a bundle keeps its text side, and nothing of how the artifact is run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bundle.bundle import Bundle, open_bundle
from edgekit.errors import BundleError, ConfigError, RequestError, RunnerError
from edgekit.generation.prompt import encode_chat
from edgekit.generation.request import ChatRequest
from edgekit.generation.template import ChatTemplate
from edgekit.generation.tokenizer import Tokenizer
from edgekit.runners import open_runner
from edgekit.runners.base import Chunk, Runner

__all__ = ["ModelInfo", "TextModel", "load_model"]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What doors tell callers about the model.

    Attributes:
        created: Seconds since the epoch.
        context_length: Tokens a prompt and its answer may have together.
        architecture: Hugging Face's `model_type`; empty if unknown.
        parameters: How many weights; 0 if unknown.
        format: Kind of the artifact: `onnx`, `mlx`.
        size_bytes: Of the bundle's files.
        capabilities: What it can do, in Ollama's words: `completion`, `tools`.
    """

    name: str
    created: int
    context_length: int
    architecture: str = ""
    parameters: int = 0
    format: str = ""
    size_bytes: int = 0
    capabilities: tuple[str, ...] = ("completion",)


@dataclass(frozen=True, slots=True)
class TextModel:
    """A runner with everything that turns chats into its tokens and back.

    Attributes:
        eos_token_ids: Tokens that end an answer.
    """

    info: ModelInfo
    runner: Runner
    tokenizer: Tokenizer
    template: ChatTemplate
    eos_token_ids: frozenset[int]

    def prompt(self, request: ChatRequest) -> list[int]:
        """Return the prompt's tokens.

        Raises:
            RequestError: `context_length_exceeded`, or the template refuses the messages.
            BundleError: The template failed.
        """
        tokens = encode_chat(self.tokenizer, self.template, request.messages)
        # At least one token of the answer must fit too.
        if len(tokens) >= self.info.context_length:
            raise RequestError(
                f"the prompt has {len(tokens)} tokens; the context holds {self.info.context_length}, answer included",
                hint="shorten the messages or leave out old ones",
                code="context_length_exceeded",
                param="messages",
            )
        if not tokens:
            raise RequestError("the chat template makes an empty prompt of these messages", param="messages")
        return tokens

    def close(self) -> None:
        """Release the runner."""
        self.runner.close()


def load_model(bundle: Path | Bundle, *, context_length: int | None = None, threads: int | None = None) -> TextModel:
    """Load a bundle.

    Args:
        bundle: The bundle, or its folder.
        context_length: Tokens a sequence may hold; None takes the bundle's own.
        threads: Threads of a runner on the CPU; None takes one per physical core.

    Raises:
        BundleError: The bundle is damaged.
        ConfigError: It does not hold so long a context.
        RunnerError: The artifact could not be loaded, or does not compute numbers.
    """
    if isinstance(bundle, Path):
        bundle = open_bundle(bundle)
    manifest = bundle.manifest
    length = manifest.context_length if context_length is None else context_length
    if not 2 <= length <= manifest.context_length:
        raise ConfigError(
            f"the context length must be between 2 and {manifest.context_length}, not {length}",
            hint=f"{manifest.name} was made for {manifest.context_length} tokens",
        )
    # The text side first: it loads in no time, and a fault in it should not wait for the weights.
    tokenizer = Tokenizer.load(bundle.path / "tokenizer.json")
    settings = _read_json(bundle.path / "tokenizer_config.json")
    template = ChatTemplate(_template_source(bundle.path, settings), _special_texts(settings))
    artifact = manifest.artifact
    runner = open_runner(bundle.path, artifact.kind, artifact.dialect, context_length=length, threads=threads)
    try:
        _warm_up(runner, min(manifest.eos_token_ids, default=0))
    except BaseException:
        runner.close()
        raise
    return TextModel(
        info=ModelInfo(
            name=manifest.name,
            created=_epoch(manifest.created),
            context_length=min(length, runner.limits.context_length),
            architecture=manifest.architecture,
            parameters=manifest.parameters,
            format=artifact.kind,
            size_bytes=sum(file.size for file in manifest.files),
        ),
        runner=runner,
        tokenizer=tokenizer,
        template=template,
        eos_token_ids=frozenset(manifest.eos_token_ids),
    )


def _warm_up(runner: Runner, token: int) -> None:
    """Take one step, which brings weights into memory and shows a broken artifact before anybody asks."""
    limits = runner.limits
    logits = runner.run([Chunk(0, [token] * min(32, limits.max_chunk, limits.context_length))])[0]
    if not np.isfinite(logits).all():
        raise RunnerError("the model computes logits that are not numbers", hint="check it: edgekit verify DIR")
    runner.truncate(0, 0)


def _template_source(folder: Path, settings: dict[str, Any]) -> str:
    path = folder / "chat_template.jinja"
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"cannot read {path.name}: {error}") from error
    source = settings.get("chat_template")
    if not isinstance(source, str):
        raise BundleError("the bundle has no chat template", hint="export the -Instruct variant of the model")
    return source


def _special_texts(settings: dict[str, Any]) -> dict[str, str]:
    texts = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        value = settings.get(name)
        # Written as a string or, by older libraries, as a token's whole description.
        if isinstance(value, dict):
            value = value.get("content")
        if isinstance(value, str):
            texts[name] = value
    return texts


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise BundleError(f"{path.name} is not a JSON object")
    return data


def _epoch(created: str) -> int:
    try:
        # Python 3.10 does not read the Z.
        return int(datetime.fromisoformat(created.replace("Z", "+00:00")).timestamp())
    except ValueError:
        return 0
