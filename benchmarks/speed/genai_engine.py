"""onnxruntime-genai behind the benchmark's pipe, on the model its own builder made (genai_model.py).

Several answers run as one static batch, as its CPU models can: all begin together, and the last to end ends it. Its
continuous `Engine` does not run on the CPU. Sampling is its default, the best 50 tokens.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as package
from speed.engine import Answer, Ask, Options

__all__ = ["open_engine"]


def open_engine(model: Path, options: Options) -> GenaiEngine:
    """Load the built model."""
    return GenaiEngine(model, options)


class GenaiEngine:
    """One model, and a generator for every run."""

    def __init__(self, model: Path, options: Options) -> None:
        self.version = package.__version__
        self._options = options
        described = json.loads((model / "genai_config.json").read_text(encoding="utf-8"))["model"]
        decoder = {"session_options": {"intra_op_num_threads": options.threads, "provider_options": []}}
        # Rows are filled up with a token that no chat holds.
        changes: dict[str, Any] = {"decoder": decoder, "pad_token_id": described["vocab_size"] - 2}
        ends = described["eos_token_id"]
        self._ends = frozenset([ends] if isinstance(ends, int) else ends)
        if options.endless:
            # It cannot be told to go on: the end becomes a token that never comes.
            changes["eos_token_id"] = described["vocab_size"] - 1
            self._ends = frozenset()
        self._pad = changes["pad_token_id"]
        config = package.Config(str(model))
        config.overlay(json.dumps({"model": changes}))
        self._model = package.Model(config)
        self._tokenizer = package.Tokenizer(self._model)

    def render(self, ask: Ask) -> list[int]:
        """Every engine gets the same tokens, edgekit's."""
        raise NotImplementedError

    def run(self, asks: Sequence[Ask]) -> list[Answer]:
        """Answer all as one batch."""
        return [self._one(asks[0])] if len(asks) == 1 else self._batch(asks)

    def _one(self, ask: Ask) -> Answer:
        start = time.perf_counter()
        generator = package.Generator(self._model, self._parameters(ask, 1))
        generator.append_tokens(np.array(ask.tokens, np.int32))
        most = len(ask.tokens) + ask.max_tokens
        generator.generate_next_token()
        first_s = time.perf_counter() - start
        # Tokens that a grammar forces, or that were guessed, come several at a time.
        while not generator.is_done() and generator.token_count() < most:
            generator.generate_next_token()
        total_s = time.perf_counter() - start
        ids = [int(token) for token in generator.get_sequence(0)[len(ask.tokens) :]][: ask.max_tokens]
        guessed = generator.get_speculative_stats()["draft_tokens_accepted"] if self._options.lookup else 0
        return self._answer(ask, ids, first_s, total_s, int(guessed))

    def _batch(self, asks: Sequence[Ask]) -> list[Answer]:
        start = time.perf_counter()
        generator = package.Generator(self._model, self._parameters(asks[0], len(asks)))
        rows = np.full((len(asks), max(len(ask.tokens) for ask in asks)), self._pad, np.int32)
        for row, ask in zip(rows, asks, strict=True):
            row[: len(ask.tokens)] = ask.tokens
        generator.append_tokens(rows)
        ids: list[list[int]] = [[] for _ in asks]
        totals = [0.0 for _ in asks]
        first_s = 0.0
        while not all(totals):
            assert not generator.is_done(), "it ended too early"
            generator.generate_next_token()
            now = time.perf_counter() - start
            first_s = first_s or now
            for number, token in enumerate(generator.get_next_tokens()):
                if not totals[number]:
                    ids[number].append(int(token))
                    if len(ids[number]) >= asks[number].max_tokens or int(token) in self._ends:
                        totals[number] = now
        return [self._answer(ask, mine, first_s, total, 0) for ask, mine, total in zip(asks, ids, totals, strict=True)]

    def _answer(self, ask: Ask, ids: list[int], first_s: float, total_s: float, guessed: int) -> Answer:
        return Answer(
            prompt=len(ask.tokens),
            tokens=len(ids),
            first_s=first_s,
            total_s=total_s,
            text=self._tokenizer.decode([token for token in ids if token not in self._ends]),
            guessed=guessed,
            ended=len(ids) < ask.max_tokens or ids[-1] in self._ends,
            ids=ids,
        )

    def keep(self, ask: Ask, shared: int) -> None:
        """It keeps nothing over a restart."""

    def close(self) -> None:
        """Nothing is left to do."""

    def _parameters(self, ask: Ask, count: int) -> Any:
        parameters = package.GeneratorParams(self._model)
        search = {"do_sample": ask.temperature > 0, "past_present_share_buffer": True}
        if ask.temperature:
            search["temperature"] = ask.temperature
        parameters.set_search_options(max_length=self._options.context, batch_size=count, **search)
        if ask.schema is not None:
            # Tokens that the grammar leaves no choice about are not computed one by one.
            parameters.set_guidance("json_schema", json.dumps(ask.schema), True)  # noqa: FBT003
        if self._options.lookup:
            parameters.set_speculative_options(ngram_size=2, max_draft_tokens=self._options.lookup)
        return parameters
