"""llama.cpp behind the benchmark's pipe, through its C functions, as its own server uses them.

The high-level `Llama` answers one request at a time and samples in Python; this takes all sequences in one batch,
checks a grammar against the chosen token before it is asked about all of them, and needs logits of no token but those
it looks at. So each part is what llama.cpp can do, not what the binding makes of it.
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
from speed.engine import Answer, Ask, Options

__all__ = ["open_engine"]

_BATCH = 2048
_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

_silent = c.llama_log_callback(lambda *_: None)

Item = tuple[int, int, int, bool]
"""Token, position, sequence, whether its logits are wanted."""


def open_engine(model: Path, options: Options) -> LlamaEngine:
    """Load the GGUF."""
    return LlamaEngine(model, options)


class LlamaEngine:
    """One context with as many sequences as there are streams."""

    def __init__(self, model: Path, options: Options) -> None:
        self.version = c.__version__
        self._options = options
        c.llama_log_set(_silent, None)
        c.llama_backend_init()
        self._model = c.llama_model_load_from_file(str(model).encode(), c.llama_model_default_params())
        parameters = c.llama_context_default_params()
        # Of the sizes of the KV cache, each sequence has its own share.
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

    def render(self, ask: Ask) -> list[int]:
        """Every engine gets the same tokens, edgekit's."""
        raise NotImplementedError

    def run(self, asks: Sequence[Ask]) -> list[Answer]:
        """All in one batch; one alone may use a kept prefix or prompt lookup."""
        c.llama_memory_clear(self._memory, True)  # noqa: FBT003
        start = time.perf_counter()
        pickers = [_Picker(self, ask) for ask in asks]
        ids: list[list[int]] = [[] for _ in asks]
        firsts = [0.0 for _ in asks]
        totals = [0.0 for _ in asks]
        held = [self._restore(asks[0]) if self._file and asks[0].keep else 0, *(0 for _ in asks[1:])]
        cached = list(held)
        guessed = [0 for _ in asks]
        pending: list[Sequence[int]] = [list(ask.tokens[have:]) for ask, have in zip(asks, held, strict=True)]
        running = list(range(len(asks)))
        while running:
            # Prompts want the logits of their last token, guesses those of every token.
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
                    (token, held[number] + place, number, len(items) + place in wanted)
                    for place, token in enumerate(tokens)
                ]
            self._decode(items)
            for number, wanted in zip(list(running), rows, strict=True):
                tokens = pending[number]
                chosen = self._choose(pickers[number], tokens, wanted)
                kept = len(tokens) - len(wanted) + len(chosen)
                if kept < len(tokens):
                    c.llama_memory_seq_rm(self._memory, number, held[number] + kept, -1)
                held[number] += kept
                guessed[number] += len(chosen) - 1
                now = time.perf_counter() - start
                firsts[number] = firsts[number] or now
                for token in chosen:
                    ids[number].append(token)
                    if self._over(ids[number], asks[number]):
                        totals[number] = now
                        running.remove(number)
                        break
                else:
                    pending[number] = self._next(asks[number], ids[number])
        return [
            Answer(
                prompt=len(ask.tokens),
                tokens=len(ids[number]),
                first_s=firsts[number],
                total_s=totals[number],
                text=self._text(ids[number]),
                cached=cached[number],
                guessed=guessed[number],
                ended=self._ends(ids[number][-1]),
                ids=ids[number],
            )
            for number, ask in enumerate(asks)
        ]

    def keep(self, ask: Ask, shared: int) -> None:
        """Compute the shared tokens and write their state to a file, for `llama_state_seq_load_file`."""
        assert self._file
        c.llama_memory_clear(self._memory, True)  # noqa: FBT003
        tokens = list(ask.tokens[:shared])
        self._decode([(token, place, 0, place == shared - 1) for place, token in enumerate(tokens)])
        array = (c.llama_token * shared)(*tokens)
        assert c.llama_state_seq_save_file(self._ctx, str(self._file).encode(), 0, array, shared)

    def close(self) -> None:
        """Release the model."""
        c.llama_batch_free(self._batch)
        c.llama_free(self._ctx)
        c.llama_model_free(self._model)

    def _restore(self, ask: Ask) -> int:
        """Load what the file holds into sequence 0; returns how many tokens of the prompt that makes."""
        most = self._options.context
        array = (c.llama_token * most)()
        count = ctypes.c_size_t()
        size = c.llama_state_seq_load_file(self._ctx, str(self._file).encode(), 0, array, most, ctypes.byref(count))
        assert size, "llama.cpp could not read its own file"
        same = 0
        # The last token of the prompt is computed in any case: its logits are wanted.
        for kept, token in zip(array[: count.value], ask.tokens[:-1], strict=False):
            if kept != token:
                break
            same += 1
        if same < count.value:
            c.llama_memory_seq_rm(self._memory, 0, same, -1)
        return same

    def _decode(self, items: Sequence[Item]) -> None:
        # Longer prompts than a batch holds are not asked for here.
        assert len(items) <= _BATCH
        batch = self._batch
        batch.n_tokens = len(items)
        for place, (token, position, sequence, wanted) in enumerate(items):
            batch.token[place] = token
            batch.pos[place] = position
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = sequence
            batch.logits[place] = wanted
        code = c.llama_decode(self._ctx, batch)
        assert code == 0, f"llama_decode returned {code}"

    def _choose(self, picker: _Picker, tokens: Sequence[int], wanted: range) -> list[int]:
        """The next tokens: one, and one more for every guess that was right."""
        chosen = [picker.pick(wanted[0])]
        if len(wanted) > 1:
            for guess, row in zip(tokens[1:], wanted[1:], strict=True):
                if guess != chosen[-1]:
                    break
                chosen.append(picker.pick(row))
        return chosen

    def _next(self, ask: Ask, ids: list[int]) -> list[int]:
        if self._lookup is None:
            return ids[-1:]
        # What it guesses beyond the wanted end is not used.
        guesses = self._lookup(np.array([*ask.tokens, *ids], np.intc))[: max(0, ask.max_tokens - len(ids) - 1)]
        return [ids[-1], *(int(token) for token in guesses)]

    def _over(self, ids: list[int], ask: Ask) -> bool:
        return len(ids) >= ask.max_tokens or (not self._options.endless and self._ends(ids[-1]))

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
        """Logits of one token of the last batch, in llama.cpp's own memory."""
        return np.ctypeslib.as_array(c.llama_get_logits_ith(self._ctx, row), shape=(self._width,))

    def sample(self, chain: Any, row: int) -> int:
        """A token by a chain of samplers."""
        return int(c.llama_sampler_sample(chain, self._ctx, row))

    def grammar(self, schema: dict[str, Any]) -> Any:
        """A sampler that knows the schema's grammar."""
        text = json_schema_to_gbnf(json.dumps(schema))
        made = c.llama_sampler_init_grammar(self._vocab, text.encode(), b"root")
        assert made, "llama.cpp does not take its own grammar"
        return made


class _Picker:
    """Chooses the tokens of one answer, and frees its samplers with it.

    Greedy choices are numpy's argmax over llama.cpp's own buffer, faster than its greedy sampler. At another
    temperature the chain is the server's default one, whose `top_k` of 40 is faster than a draw from all tokens.
    """

    def __init__(self, engine: LlamaEngine, ask: Ask) -> None:
        self._engine = engine
        self._grammar = None if ask.schema is None else engine.grammar(ask.schema)
        self._chain = None
        if ask.temperature:
            assert ask.schema is None, "schemas are asked for greedily"
            self._chain = c.llama_sampler_chain_init(c.llama_sampler_chain_default_params())
            for sampler in (
                c.llama_sampler_init_top_k(40),
                c.llama_sampler_init_top_p(0.95, 1),
                c.llama_sampler_init_min_p(0.05, 1),
                c.llama_sampler_init_temp(ask.temperature),
                c.llama_sampler_init_dist(c.LLAMA_DEFAULT_SEED),
            ):
                c.llama_sampler_chain_add(self._chain, sampler)

    def pick(self, row: int) -> int:
        if self._chain is not None:
            return self._engine.sample(self._chain, row)
        logits = self._engine.logits(row)
        token = int(logits.argmax())
        if self._grammar is not None:
            if not self._fits(token, logits):
                token = self._best_that_fits(logits)
            c.llama_sampler_accept(self._grammar, token)
        return token

    def _fits(self, token: int, logits: np.ndarray[Any, Any]) -> bool:
        one = np.array([(token, logits[token], 0.0)], _CANDIDATE)
        self._mask(one)
        return bool(np.isfinite(one["logit"][0]))

    def _best_that_fits(self, logits: np.ndarray[Any, Any]) -> int:
        every = np.empty(logits.size, _CANDIDATE)
        every["id"] = np.arange(logits.size)
        every["logit"] = logits
        self._mask(every)
        return int(every["id"][every["logit"].argmax()])

    def _mask(self, candidates: np.ndarray[Any, Any]) -> None:
        """Put what the grammar forbids at minus infinity."""
        data = candidates.ctypes.data_as(ctypes.POINTER(c.llama_token_data))
        array = c.llama_token_data_array(data, candidates.size, -1, False)  # noqa: FBT003
        c.llama_sampler_apply(self._grammar, ctypes.byref(array))

    def __del__(self) -> None:
        for sampler in (self._grammar, self._chain):
            if sampler is not None:
                c.llama_sampler_free(sampler)
