"""The benchmark's adapter for llama.cpp, through its C API, as in its own server.

The high-level `Llama` class answers one request at a time and samples in Python. This batches all sequences, checks the
grammar on the chosen token before masking all tokens, and requests logits only where needed. So it measures llama.cpp
and not the Python binding.
"""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp as c
import numpy as np
from llama_cpp.llama_grammar import json_schema_to_gbnf
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from speed.engine import Answer, Options, Request

__all__ = ["open_engine"]

_BATCH = 2048
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

_silent = c.llama_log_callback(lambda *_: None)

Item = tuple[int, int, int, bool]
"""Token, position, sequence, whether logits are needed."""


def open_engine(model: Path, options: Options) -> LlamaEngine:
    """Load the GGUF."""
    return LlamaEngine(model, options)


class LlamaEngine:
    """One context with a sequence per stream."""

    def __init__(self, model: Path, options: Options) -> None:
        self.version = c.__version__
        self._options = options
        c.llama_log_set(_silent, None)
        c.llama_backend_init()
        self._model = c.llama_model_load_from_file(str(model).encode(), c.llama_model_default_params())
        parameters = c.llama_context_default_params()
        # The KV cache is divided among the sequences.
        parameters.n_ctx = options.context * options.streams
        parameters.n_seq_max = options.streams
        parameters.n_batch = _BATCH
        parameters.n_threads = parameters.n_threads_batch = options.threads
        if options.lookup:
            parameters.n_outputs_max_per_seq = options.lookup + 1
        self._ctx = c.llama_init_from_model(self._model, parameters)
        self._memory = c.llama_get_memory(self._ctx)
        self._vocab = c.llama_model_get_vocab(self._model)
        self._width = c.llama_vocab_n_tokens(self._vocab)
        self._batch = c.llama_batch_init(_BATCH, 0, 1)
        self._lookup = LlamaPromptLookupDecoding(num_pred_tokens=options.lookup) if options.lookup else None
        self._file = Path(options.folder) / "llama.state" if options.folder else None

    def render(self, request: Request) -> list[int]:
        """Not supported: all engines get edgekit's tokens."""
        raise NotImplementedError

    def run(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer all requests in one batch. A single request may use a saved prefix or prompt lookup."""
        c.llama_memory_clear(self._memory, True)  # noqa: FBT003
        start = time.perf_counter()
        samplers = [_Sampler(self, request) for request in requests]
        ids: list[list[int]] = [[] for _ in requests]
        firsts = [0.0 for _ in requests]
        totals = [0.0 for _ in requests]
        lengths = [self._restore(requests[0]) if self._file and requests[0].keep else 0, *(0 for _ in requests[1:])]
        cached = list(lengths)
        accepted = [0 for _ in requests]
        pending: list[Sequence[int]] = [
            list(request.tokens[length:]) for request, length in zip(requests, lengths, strict=True)
        ]
        running = list(range(len(requests)))
        while running:
            # Prompts need the logits of their last token, draft tokens those of every token.
            rows: list[range] = []
            items: list[Item] = []
            for number in running:
                tokens = pending[number]
                wanted = (
                    range(len(items), len(items) + len(tokens))
                    if ids[number]
                    else range(len(items) + len(tokens) - 1, len(items) + len(tokens))
                )
                rows.append(wanted)
                items += [
                    (token, lengths[number] + offset, number, len(items) + offset in wanted)
                    for offset, token in enumerate(tokens)
                ]
            self._decode(items)
            for number, wanted in zip(list(running), rows, strict=True):
                tokens = pending[number]
                chosen = self._choose(samplers[number], tokens, wanted)
                kept = len(tokens) - len(wanted) + len(chosen)
                if kept < len(tokens):
                    c.llama_memory_seq_rm(self._memory, number, lengths[number] + kept, -1)
                lengths[number] += kept
                accepted[number] += len(chosen) - 1
                now = time.perf_counter() - start
                firsts[number] = firsts[number] or now
                for token in chosen:
                    ids[number].append(token)
                    if self._over(ids[number], requests[number]):
                        totals[number] = now
                        running.remove(number)
                        break
                else:
                    pending[number] = self._next(requests[number], ids[number])
        return [
            Answer(
                prompt=len(request.tokens),
                tokens=len(ids[number]),
                first_s=firsts[number],
                total_s=totals[number],
                text=self._text(ids[number]),
                cached=cached[number],
                accepted=accepted[number],
                ended=self._ends(ids[number][-1]),
                ids=ids[number],
            )
            for number, request in enumerate(requests)
        ]

    def keep(self, request: Request, shared: int) -> None:
        """Compute the shared tokens and save their state to a file, for `llama_state_seq_load_file`."""
        assert self._file
        c.llama_memory_clear(self._memory, True)  # noqa: FBT003
        tokens = list(request.tokens[:shared])
        self._decode([(token, position, 0, position == shared - 1) for position, token in enumerate(tokens)])
        array = (c.llama_token * shared)(*tokens)
        assert c.llama_state_seq_save_file(self._ctx, str(self._file).encode(), 0, array, shared)

    def close(self) -> None:
        """Release the model."""
        c.llama_batch_free(self._batch)
        c.llama_free(self._ctx)
        c.llama_model_free(self._model)

    def _restore(self, request: Request) -> int:
        """Load the saved state into sequence 0; return how many tokens of the prompt it covers."""
        capacity = self._options.context
        array = (c.llama_token * capacity)()
        count = ctypes.c_size_t()
        size = c.llama_state_seq_load_file(self._ctx, str(self._file).encode(), 0, array, capacity, ctypes.byref(count))
        assert size, "llama.cpp could not read its own file"
        same = 0
        # The last token of the prompt is always computed, for its logits.
        for saved, token in zip(array[: count.value], request.tokens[:-1], strict=False):
            if saved != token:
                break
            same += 1
        if same < count.value:
            c.llama_memory_seq_rm(self._memory, 0, same, -1)
        return same

    def _decode(self, items: Sequence[Item]) -> None:
        # No prompt here is longer than a batch.
        assert len(items) <= _BATCH
        batch = self._batch
        batch.n_tokens = len(items)
        for row, (token, position, sequence, wanted) in enumerate(items):
            batch.token[row] = token
            batch.pos[row] = position
            batch.n_seq_id[row] = 1
            batch.seq_id[row][0] = sequence
            batch.logits[row] = wanted
        code = c.llama_decode(self._ctx, batch)
        assert code == 0, f"llama_decode returned {code}"

    def _choose(self, sampler: _Sampler, tokens: Sequence[int], wanted: range) -> list[int]:
        """Return the next tokens: one, and one more for every accepted draft token."""
        chosen = [sampler.sample(wanted[0])]
        if len(wanted) > 1:
            for draft, row in zip(tokens[1:], wanted[1:], strict=True):
                if draft != chosen[-1]:
                    break
                chosen.append(sampler.sample(row))
        return chosen

    def _next(self, request: Request, ids: list[int]) -> list[int]:
        if self._lookup is None:
            return ids[-1:]
        # Draft tokens beyond `max_tokens` are dropped.
        drafts = self._lookup(np.array([*request.tokens, *ids], np.intc))[: max(0, request.max_tokens - len(ids) - 1)]
        return [ids[-1], *(int(token) for token in drafts)]

    def _over(self, ids: list[int], request: Request) -> bool:
        return len(ids) >= request.max_tokens or (not self._options.endless and self._ends(ids[-1]))

    def _ends(self, token: int) -> bool:
        return bool(c.llama_vocab_is_eog(self._vocab, token))

    def _text(self, ids: Sequence[int]) -> str:
        data = b""
        buffer = ctypes.create_string_buffer(256)
        for token in ids:
            if not self._ends(token):
                size = c.llama_token_to_piece(self._vocab, token, buffer, len(buffer), 0, False)  # noqa: FBT003
                data += buffer.raw[:size]
        return data.decode(errors="replace")

    def logits(self, row: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the logits of one token of the last batch, a view of llama.cpp's memory."""
        return np.ctypeslib.as_array(c.llama_get_logits_ith(self._ctx, row), shape=(self._width,))

    def sample(self, chain: Any, row: int) -> int:
        """Sample a token with a chain of samplers."""
        return int(c.llama_sampler_sample(chain, self._ctx, row))

    def grammar(self, schema: dict[str, Any]) -> Any:
        """Create a sampler for the schema's grammar."""
        text = json_schema_to_gbnf(json.dumps(schema))
        grammar = c.llama_sampler_init_grammar(self._vocab, text.encode(), b"root")
        assert grammar, "llama.cpp rejects its own grammar"
        return grammar


class _Sampler:
    """Samples the tokens of one answer, and owns its llama.cpp samplers.

    Greedy sampling is numpy's argmax over llama.cpp's buffer, faster than its greedy sampler. Otherwise the chain is
    the server's default, whose `top_k` of 40 is faster than sampling from all tokens.
    """

    def __init__(self, engine: LlamaEngine, request: Request) -> None:
        self._engine = engine
        self._grammar = None if request.schema is None else engine.grammar(request.schema)
        self._chain = None
        if request.temperature:
            assert request.schema is None, "requests with a schema are greedy"
            self._chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
            for sampler in (
                c.llama_sampler_init_top_k(40),
                c.llama_sampler_init_top_p(0.95, 1),
                c.llama_sampler_init_min_p(0.05, 1),
                c.llama_sampler_init_temp(request.temperature),
                c.llama_sampler_init_dist(c.LLAMA_DEFAULT_SEED),
            ):
                c.llama_sampler_chain_add(self._chain, sampler)

    def sample(self, row: int) -> int:
        if self._chain is not None:
            return self._engine.sample(self._chain, row)
        logits = self._engine.logits(row)
        token = int(logits.argmax())
        if self._grammar is not None:
            if not self._allowed(token, logits):
                token = self._best_allowed(logits)
            c.llama_sampler_accept(self._grammar, token)
        return token

    def _allowed(self, token: int, logits: np.ndarray[Any, Any]) -> bool:
        candidate = np.array([(token, logits[token], 0.0)], _CANDIDATE)
        self._mask(candidate)
        return bool(np.isfinite(candidate["logit"][0]))

    def _best_allowed(self, logits: np.ndarray[Any, Any]) -> int:
        candidates = np.empty(logits.size, _CANDIDATE)
        candidates["id"] = np.arange(logits.size)
        candidates["logit"] = logits
        self._mask(candidates)
        return int(candidates["id"][candidates["logit"].argmax()])

    def _mask(self, candidates: np.ndarray[Any, Any]) -> None:
        """Set the logits of tokens that the grammar forbids to minus infinity."""
        data = candidates.ctypes.data_as(ctypes.POINTER(c.llama_token_data))
        array = c.llama_token_data_array(data, candidates.size, -1, False)  # noqa: FBT003
        c.llama_sampler_apply(self._grammar, ctypes.byref(array))

    def __del__(self) -> None:
        for sampler in (self._grammar, self._chain):
            if sampler is not None:
                c.llama_sampler_free(sampler)
