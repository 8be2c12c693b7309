"""The benchmark's adapter for onnxruntime-genai, with the model of its own builder (genai_model.py).

Several requests run as one static batch, as its CPU models support: all start together, and the batch ends with the
longest. Its `Engine` with continuous batching does not run on the CPU. Sampling is its default, the top 50 tokens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as package
from speed.engine import Answer, Options, Request

__all__ = ["open_engine"]


def open_engine(model: Path, options: Options) -> GenaiEngine:
    """Load the built model."""
    return GenaiEngine(model, options)


class GenaiEngine:
    """A model, and a generator per run."""

    def __init__(self, model: Path, options: Options) -> None:
        self.version = package.__version__
        self._options = options
        described = json.loads((model / "genai_config.json").read_text(encoding="utf-8"))["model"]
        decoder = {"session_options": {"intra_op_num_threads": options.threads, "provider_options": []}}
        # Rows are padded with a token that no chat contains.
        changes: dict[str, Any] = {"decoder": decoder, "pad_token_id": described["vocab_size"] - 2}
        ends = described["eos_token_id"]
        self._ends = frozenset([ends] if isinstance(ends, int) else ends)
        if options.endless:
            # It has no option to ignore the end: use an end-of-sequence token that is never generated.
            changes["eos_token_id"] = described["vocab_size"] - 1
            self._ends = frozenset()
        self._pad = changes["pad_token_id"]
        config = package.Config(str(model))
        config.overlay(json.dumps({"model": changes}))
        self._model = package.Model(config)
        self._tokenizer = package.Tokenizer(self._model)

    def render(self, request: Request) -> list[int]:
        """Not supported: all engines get edgekit's tokens."""
        raise NotImplementedError

    def run(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer all requests as one batch."""
        return [self._one(requests[0])] if len(requests) == 1 else self._batch(requests)

    def _one(self, request: Request) -> Answer:
        start = time.perf_counter()
        generator = package.Generator(self._model, self._parameters(request, 1))
        generator.append_tokens(np.array(request.tokens, np.int32))
        max_count = len(request.tokens) + request.max_tokens
        generator.generate_next_token()
        first_s = time.perf_counter() - start
        # Tokens forced by a grammar, and accepted draft tokens, come several at a time.
        while not generator.is_done() and generator.token_count() < max_count:
            generator.generate_next_token()
        total_s = time.perf_counter() - start
        ids = [int(token) for token in generator.get_sequence(0)[len(request.tokens) :]][: request.max_tokens]
        accepted = generator.get_speculative_stats()["draft_tokens_accepted"] if self._options.lookup else 0
        return self._answer(request, ids, first_s, total_s, int(accepted))

    def _batch(self, requests: Sequence[Request]) -> list[Answer]:
        start = time.perf_counter()
        generator = package.Generator(self._model, self._parameters(requests[0], len(requests)))
        rows = np.full((len(requests), max(len(request.tokens) for request in requests)), self._pad, np.int32)
        for row, request in zip(rows, requests, strict=True):
            row[: len(request.tokens)] = request.tokens
        generator.append_tokens(rows)
        ids: list[list[int]] = [[] for _ in requests]
        totals = [0.0 for _ in requests]
        first_s = 0.0
        while not all(totals):
            assert not generator.is_done(), "the batch ended too early"
            generator.generate_next_token()
            now = time.perf_counter() - start
            first_s = first_s or now
            for number, token in enumerate(generator.get_next_tokens()):
                if not totals[number]:
                    ids[number].append(int(token))
                    if len(ids[number]) >= requests[number].max_tokens or int(token) in self._ends:
                        totals[number] = now
        return [
            self._answer(request, row, first_s, total, 0)
            for request, row, total in zip(requests, ids, totals, strict=True)
        ]

    def _answer(self, request: Request, ids: list[int], first_s: float, total_s: float, accepted: int) -> Answer:
        return Answer(
            prompt=len(request.tokens),
            tokens=len(ids),
            first_s=first_s,
            total_s=total_s,
            text=self._tokenizer.decode([token for token in ids if token not in self._ends]),
            accepted=accepted,
            ended=len(ids) < request.max_tokens or ids[-1] in self._ends,
            ids=ids,
        )

    def keep(self, request: Request, shared: int) -> None:
        """Do nothing: it cannot save a prefix."""

    def close(self) -> None:
        """Do nothing."""

    def _parameters(self, request: Request, count: int) -> Any:
        parameters = package.GeneratorParams(self._model)
        search = {"do_sample": request.temperature > 0, "past_present_share_buffer": True}
        if request.temperature:
            search["temperature"] = request.temperature
        parameters.set_search_options(max_length=self._options.context, batch_size=count, **search)
        if request.schema is not None:
            # Fast-forward tokens: those forced by the grammar are not computed one by one.
            parameters.set_guidance("json_schema", json.dumps(request.schema), True)  # noqa: FBT003
        if self._options.lookup:
            parameters.set_speculative_options(ngram_size=2, max_draft_tokens=self._options.lookup)
        return parameters
