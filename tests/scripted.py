"""A scripted runner behind the real engine: it stands in for the model alone, where a small one would call no tool.

Prompt, tokens, grammar, parser and queue are real; what the model "writes" is what the script returns for a prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from edgekit.config import HttpConfig
from edgekit.daemon.access.access import Access
from edgekit.daemon.http.server import HttpServer
from edgekit.daemon.metrics import Metrics
from edgekit.generation.chat.template import ChatTemplate
from edgekit.generation.chat.tokenizer import Tokenizer
from edgekit.generation.engine.worker import EngineWorker
from edgekit.generation.model import TextModel
from edgekit.generation.tools import find_format, find_reasoning
from edgekit.runners.base import Chunk
from tests.generation.tiny import EchoRunner, echo_model
from tests.models import SPECIAL

__all__ = ["TEMPLATE", "Script", "scripted_model", "serving", "tool_call"]

Script = Callable[[str], str]
"""Returns the model's output for a prompt, which ends with the start of the assistant's turn."""

TEMPLATE = (
    "{% if enable_thinking is defined %}<|im_start|>system\nenable_thinking={{ enable_thinking }}<|im_end|>\n"
    "{% endif %}"
    "{% if reasoning_effort %}<|im_start|>system\nreasoning_effort={{ reasoning_effort }}<|im_end|>\n{% endif %}"
    "{% if tools %}<|im_start|>system\nTools, called as <tool_call>\n"
    '{"name": NAME, "arguments": {…}}\n</tool_call>:{% for tool in tools %}\n{{ tool.function | tojson }}{% endfor %}'
    "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.reasoning_content %}<think>\n{{ message.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ message.content }}"
    "{% for call in message.tool_calls or [] %}\n<tool_call>\n{{ call.function | tojson }}\n</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A template in the manner of Qwen3's: ChatML with tools and reasoning; the prompt shows the variables of reasoning."""


def tool_call(name: str, arguments: str) -> str:
    """Return a call as the model writes it."""
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


class ScriptedRunner(EchoRunner):
    """An `EchoRunner` whose answer depends on the prompt before it."""

    def __init__(self, tokenizer: Tokenizer, script: Script, **options: Any) -> None:
        super().__init__(tokenizer, "", **options)
        self._script = script
        self._tokenizer = tokenizer
        self._end = tokenizer.encode(SPECIAL[2])
        self._specials = frozenset(tokenizer.special_ids)
        self._answers: dict[tuple[int, ...], list[int]] = {}

    def _run(self, chunk: Chunk) -> npt.NDArray[np.float32]:
        tokens = self.slots[chunk.slot]
        before = len(tokens)
        tokens += chunk.tokens
        self.tokens += len(chunk.tokens)
        first = {"none": len(tokens), "last": len(tokens) - 1, "all": before}[chunk.logits]
        rows = [self._logits(tokens[: end + 1]) for end in range(first, len(tokens))]
        return np.array(rows, np.float32).reshape(-1, self.limits.vocab_size)

    def _logits(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        logits = np.full(self.limits.vocab_size, -30.0, np.float32)
        answered = self._answered(tokens)
        if answered is not None:
            answer = self._answer_to(tuple(tokens[: len(tokens) - len(answered)]))
            # Where a grammar or a rejected draft token left the script, the answer ends.
            follows = answered == answer[: len(answered)] and len(answered) < len(answer)
            logits[answer[len(answered)] if follows else answer[-1]] = 30.0
        return logits

    def _answer_to(self, prompt: tuple[int, ...]) -> list[int]:
        if prompt not in self._answers:
            text = self._script(self._tokenizer.decode(prompt, visible=self._specials))
            self._answers[prompt] = [*self._tokenizer.encode(text, obey_special=False), *self._end]
        return self._answers[prompt]


def scripted_model(
    script: Script | str,
    *,
    context_length: int = 16_384,
    sequence_slots: int = 2,
    template: str = TEMPLATE,
    before_step: Callable[[int], object] | None = None,
) -> TextModel:
    """Return a text model that writes what the script says; a string answers every prompt.

    Args:
        script: The script.
        context_length: In tokens, which are bytes here.
        sequence_slots: Number of sequence slots.
        template: The chat template; tool calls and reasoning are found if it mentions them.
        before_step: As for `EchoRunner`.
    """
    model = echo_model(context_length=context_length)
    runner = ScriptedRunner(
        model.tokenizer,
        script if callable(script) else lambda _: script,
        context_length=context_length,
        max_chunk=512,
        sequence_slots=sequence_slots,
        before_step=before_step,
    )
    tool_format, reasoning = find_format(template, {}), find_reasoning(template, {})
    capabilities = ("completion", *(["tools"] if tool_format else []), *(["thinking"] if reasoning else []))
    return replace(
        model,
        info=replace(model.info, name="scripted", capabilities=capabilities),
        runner=runner,
        template=ChatTemplate(template),
        tool_format=tool_format,
        reasoning=reasoning,
    )


@contextmanager
def serving(
    model: TextModel,
    config: HttpConfig | None = None,
    *,
    metrics: Metrics | None = None,
    access: Access | None = None,
) -> Iterator[HttpServer]:
    """Serve a model over HTTP, on a free port; the model is closed at the end."""
    worker = EngineWorker(model)
    server = HttpServer(config or HttpConfig(port=0), worker, model.info, metrics or Metrics(), access=access)
    server.start()
    try:
        yield server
    finally:
        worker.stop()
        server.stop()
