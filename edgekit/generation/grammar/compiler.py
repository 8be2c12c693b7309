"""Compiles what an answer must look like, before its first token, or refuses it.

It runs on the caller's thread and may be used by several at once. What is compiled is kept and used again: a matcher of
a grammar that is known costs a copy. The tokenizer's part is built once, ahead or on first use, and takes a second or
two. llguidance goes down by recursion: within the limits here, 2 MiB of stack are enough.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

from llguidance import LLMatcher, LLParserLimits

from edgekit.errors import EdgekitError, RequestError
from edgekit.generation.grammar.errors import one_line
from edgekit.generation.grammar.lark import prepare_lark, to_lark
from edgekit.generation.grammar.matcher import Matcher, MatcherFactory
from edgekit.generation.grammar.rule import format_rule
from edgekit.generation.grammar.schema import LoweredSchema, lower_schema
from edgekit.generation.grammar.vocabulary import Vocabulary
from edgekit.generation.request import ResponseFormat
from edgekit.generation.tokenizer import Tokenizer

__all__ = ["Grammar", "GrammarCompiler"]

MAX_CACHED = 64
MAX_PROBES = 64

# Wherever JSON takes whitespace: one blank, or one line break and the indentation after it. Models write what they were
# taught (`{"a": 1}`, or indented), and none can go on with blanks and empty lines for ever. Escapes by number are left
# out: with them a name has more than one spelling, and one that is taken could be written again.
JSON_OPTIONS = {"whitespace_pattern": r"[\x20\t]|\r?\n(\x20{0,48}|\t{0,16})", "json_allowed_escapes": 'nrbtf\\"'}


class Grammar:
    """A compiled grammar."""

    def __init__(self, factory: MatcherFactory, prototype: LLMatcher) -> None:
        self._factory = factory
        self._prototype = prototype
        self._lock = threading.Lock()

    def matcher(self) -> Matcher:
        """Return a matcher at the start of an answer."""
        with self._lock:
            return Matcher(self._factory, self._prototype.deep_copy())


class GrammarCompiler:
    """Compiles for one model.

    Args:
        tokenizer: The bundle's.
        vocab_size: Width of the model's logits; it may be wider than the tokenizer's.
        eos_token_ids: What ends an answer.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = frozenset(eos_token_ids)
        self._lock = threading.Lock()
        self._building = threading.Lock()
        self._built: tuple[Vocabulary, MatcherFactory] | EdgekitError | None = None
        self._cache: OrderedDict[tuple[str, str], Grammar] = OrderedDict()

    @property
    def prepared(self) -> bool:
        """Whether the tokenizer's part has been built, or cannot be."""
        return self._built is not None

    def prepare(self) -> None:
        """Build the tokenizer's part if nobody has; who needs it meanwhile waits for it, and it is never built twice.

        Raises:
            EdgekitError: `grammar_unavailable`, as `compile` will then.
        """
        self._prepared()

    def compile(self, response_format: ResponseFormat) -> Grammar:
        """Return the grammar of a response format.

        Raises:
            RequestError: `unsupported_schema`, `schema_too_complex` or `invalid_request`, with the path of the part.
            EdgekitError: `grammar_unavailable`: this model's answers cannot be constrained.
        """
        kind, value = response_format.kind, response_format.value
        param = "response_format"
        if kind == "json_object":
            return self._compile_schema({"type": "object"}, param)
        if kind == "json_schema":
            return self._compile_schema(value, param)
        if kind == "grammar":
            if not isinstance(value, str) or not value:
                raise RequestError("`grammar` is a text that is not empty", param=param)
            return self.compile_lark(to_lark(value, param=param), param=param)
        source = f"start: {format_rule(response_format)}\n"
        return self._cached("lark", source, lambda: self._build(LLMatcher.grammar_from_lark(source), param))

    def compile_lark(self, text: str, *, param: str) -> Grammar:
        """Return a grammar that is written in Lark's syntax as llguidance reads it.

        `%json` schemas are held to as by `compile`. `<name>` stands for a token: a special one for itself, another
        added one for its text; `<[name]>` is for those with brackets in their name. End tokens are not named.

        Args:
            text: The grammar.
            param: The field of the request, for errors.

        Raises:
            RequestError: As `compile`.
            EdgekitError: As `compile`.
        """

        def build() -> Grammar:
            vocabulary, _ = self._prepared()
            special = {name: number for name, number in vocabulary.added.items() if number in vocabulary.special}
            source = prepare_lark(
                text,
                param=param,
                special=special,
                plain=vocabulary.added.keys() - special.keys(),
                ends=vocabulary.eos_token_ids,
                options=JSON_OPTIONS,
            )
            return self._build(LLMatcher.grammar_from_lark(source), param)

        return self._cached("lark", text, build)

    def _compile_schema(self, schema: object, param: str) -> Grammar:
        lowered = lower_schema(schema, param=param)

        def build() -> Grammar:
            try:
                return self._build(_json(lowered, lowered.root), param)
            except RequestError as error:
                raise RequestError(
                    f"{self._culprit(lowered)}: {error.message}", hint=error.hint, code=error.code, param=param
                ) from None

        return self._cached("json", lowered.document(lowered.root, {}), build)

    def _cached(self, kind: str, source: str, build: Callable[[], Grammar]) -> Grammar:
        with self._lock:
            grammar = self._cache.get((kind, source))
            if grammar is not None:
                self._cache.move_to_end((kind, source))
                return grammar
        grammar = build()
        with self._lock:
            self._cache[kind, source] = grammar
            while len(self._cache) > MAX_CACHED:
                self._cache.popitem(last=False)
        return grammar

    def _prepared(self) -> tuple[Vocabulary, MatcherFactory]:
        with self._building:
            if self._built is None:
                self._built = self._build_vocabulary()
        if isinstance(self._built, EdgekitError):
            # One of its own for each caller: raising notes where.
            raise EdgekitError(self._built.message, hint=self._built.hint, code=self._built.code)
        return self._built

    def _build_vocabulary(self) -> tuple[Vocabulary, MatcherFactory] | EdgekitError:
        try:
            vocabulary = Vocabulary(self._tokenizer, vocab_size=self._vocab_size, eos_token_ids=self._eos_token_ids)
        except EdgekitError as error:
            return error
        return vocabulary, MatcherFactory(vocabulary, self._vocab_size)

    def _build(self, source: str, param: str) -> Grammar:
        vocabulary, factory = self._prepared()
        prototype = LLMatcher(vocabulary.trie, source, log_level=0, limits=_limits())
        if not prototype.is_error():
            # The first step shows what the construction does not: a start from which nothing leads on.
            prototype.compute_bitmask()
        if prototype.is_error():
            raise _refused(prototype.get_error(), param)
        return Grammar(factory, prototype)

    def _culprit(self, lowered: LoweredSchema) -> str:
        """The path of the smallest part of a schema that cannot be compiled on its own."""
        part, path = lowered.root, lowered.place(lowered.root, "#")
        seen = {id(part)}
        for _ in range(MAX_PROBES):
            for inside in lowered.parts(part):
                if id(inside) not in seen and self._fails(lowered, inside):
                    seen.add(id(inside))
                    part, path = inside, lowered.place(inside, path)
                    break
            else:
                return path
        return path

    def _fails(self, lowered: LoweredSchema, part: Any) -> bool:
        return part is False or bool(LLMatcher.validate_grammar(_json(lowered, part), limits=_limits()))


def _json(lowered: LoweredSchema, part: Any) -> str:
    return LLMatcher.grammar_from_json_schema(lowered.document(part, JSON_OPTIONS))


def _limits() -> LLParserLimits:
    return LLParserLimits(
        initial_lexer_fuel=1_000_000,
        step_lexer_fuel=200_000,
        step_max_items=50_000,
        max_items_in_row=2000,
        max_lexer_states=30_000,
        max_grammar_size=200_000,
        verbose_errors=False,
    )


_TOO_MUCH = (
    "fuel",
    "limit",
    "too large",
    "too big",
    "too many",
    "too complex",
    "too deeply",
    "exceeded",
    "Unable to determine",
)


def _refused(message: str, param: str) -> RequestError:
    line = one_line(message)
    if any(word in line for word in _TOO_MUCH):
        return RequestError(f"it is too complex to be enforced: {line}", code="schema_too_complex", param=param)
    return RequestError(f"it cannot be enforced: {line}", code="unsupported_schema", param=param)
