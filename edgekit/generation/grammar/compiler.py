"""Compiles response formats to grammars before the first token, or rejects them.

Compilation runs on the caller's thread; a compiler is thread-safe. Compiled grammars are cached: a matcher for a cached
grammar costs one copy. Their automata grow with every answer, so that only a few of the cache may become large. The
vocabulary is built once, in advance or on first use, and takes one or two seconds.
llguidance is recursive: it compiles on a thread with a stack that is large enough for the limits set here.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

from llguidance import LLMatcher, LLParserLimits

from edgekit.errors import EdgekitError, RequestError
from edgekit.generation.chat.tokenizer import Tokenizer
from edgekit.generation.grammar.errors import one_line
from edgekit.generation.grammar.lark import prepare_lark, to_lark
from edgekit.generation.grammar.matcher import Automaton, Matcher, MatcherFactory
from edgekit.generation.grammar.rule import format_rule
from edgekit.generation.grammar.schema import LoweredSchema, lower_schema
from edgekit.generation.grammar.trial import try_out
from edgekit.generation.grammar.vocabulary import Vocabulary
from edgekit.generation.types import ResponseFormat

__all__ = ["Grammar", "GrammarCompiler"]

MAX_CACHED = 64
# Characters of all sources in the cache; a compiled grammar takes up to some 700 bytes for each.
MAX_CACHED_CHARS = 500_000
MAX_PROBES = 64

# States of an automaton, of up to 2 KiB each.
MAX_STATES = 30_000
# Those of one that stays in the cache; answers under most schemas need no more.
SMALL_STATES = 2_000
# Automata with up to MAX_STATES that stay all the same: those used last.
MAX_LARGE = 2
# Work on regular expressions, as llguidance measures it, to compile a grammar.
INITIAL_FUEL = 1_000_000
# To compile it again and advance through an output, each of whose masks had 200,000.
REPLAY_FUEL = 1_000_000_000

STACK_BYTES = 64 << 20
_STACK_SIZE = threading.Lock()

# Whitespace between JSON tokens: one blank, or one line break with indentation. This allows the layouts that models
# were trained on (`{"a": 1}`, or indented) but no endless blanks and empty lines.
JSON_OPTIONS = {"whitespace_pattern": r"[\x20\t]|\r?\n(\x20{0,48}|\t{0,16})"}


class Grammar:
    """A compiled grammar; thread-safe.

    Args:
        factory: State shared by all matchers.
        prototype: llguidance's matcher at the start of the grammar.
        build: Compiles it anew; takes the fuel and the number of states for it.
        large: The prototype's automaton has room for `MAX_STATES`, not `SMALL_STATES`.
        on_large: Called when an automaton of that size is used.
    """

    def __init__(
        self,
        factory: MatcherFactory,
        prototype: LLMatcher,
        build: Callable[[int, int], LLMatcher],
        *,
        large: bool,
        on_large: Callable[[Grammar], None],
    ) -> None:
        self._factory = factory
        self._prototype: LLMatcher | None = prototype
        self._build = build
        self._large = large
        self._on_large = on_large
        self._lock = threading.Lock()

    def matcher(self) -> Matcher:
        """Return a new matcher, at the start of the output."""
        return Matcher(self._factory, self._shared())

    def release(self) -> None:
        """Give up the automaton; another one is compiled for the next matcher."""
        with self._lock:
            self._prototype = None

    def _shared(self) -> Automaton:
        with self._lock:
            if self._prototype is None:
                self._prototype = self._build(
                    REPLAY_FUEL if self._large else INITIAL_FUEL, MAX_STATES if self._large else SMALL_STATES
                )
            prototype, large = self._prototype, self._large
            inner = prototype.deep_copy()
        if large:
            self._on_large(self)
            return Automaton(inner, shared=True, next=lambda: self._own(prototype))
        return Automaton(inner, shared=True, next=self._enlarged)

    def _enlarged(self) -> Automaton:
        """The shared automaton, with more room from now on."""
        with self._lock:
            if not self._large:
                self._large, self._prototype = True, None
        return self._shared()

    def _own(self, failed: LLMatcher | None) -> Automaton:
        """An automaton of one matcher's own; the one that it shared with copies of `failed` is given up."""
        with self._lock:
            if failed is not None and self._prototype is failed:
                self._prototype = None
        return Automaton(self._build(REPLAY_FUEL, MAX_STATES), shared=False, next=lambda: self._own(None))


class GrammarCompiler:
    """Compiles grammars for one model.

    Args:
        tokenizer: The bundle's tokenizer.
        vocab_size: Width of the model's logits; may exceed the tokenizer's vocabulary.
        eos_token_ids: Tokens that end the output.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos_token_ids: Collection[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = frozenset(eos_token_ids)
        self._lock = threading.Lock()
        self._building = threading.Lock()
        self._built: tuple[Vocabulary, MatcherFactory] | EdgekitError | None = None
        self._cache: OrderedDict[tuple[str, str], Grammar] = OrderedDict()
        self._large: OrderedDict[Grammar, None] = OrderedDict()

    @property
    def prepared(self) -> bool:
        """Whether the vocabulary has been built, or cannot be built."""
        return self._built is not None

    def prepare(self) -> None:
        """Build the vocabulary unless it is there; concurrent callers wait, and it is built only once.

        Raises:
            EdgekitError: `grammar_unavailable`, which `compile` will then raise too.
        """
        self._prepared()

    def compile(self, response_format: ResponseFormat) -> Grammar:
        """Return the grammar of a response format.

        Raises:
            RequestError: `unsupported_schema`, `schema_too_complex` or `invalid_request`, with the path of the part.
            EdgekitError: `grammar_unavailable`: this model's output cannot be constrained.
        """
        kind, value = response_format.kind, response_format.value
        param = response_format.param
        if kind == "json_object":
            return self._compile_schema({"type": "object"}, param)
        if kind == "json_schema":
            return self._compile_schema(value, param)
        if kind == "grammar":
            if not isinstance(value, str) or not value:
                raise RequestError("`grammar` must be a non-empty string", param=param)
            return self.compile_lark(to_lark(value, param=param), param=param)
        source = f"start: {format_rule(response_format)}\n"
        return self._cached("lark", source, lambda: self._build(LLMatcher.grammar_from_lark(source), param))

    def compile_lark(self, text: str, *, param: str) -> Grammar:
        """Return the grammar of a source in llguidance's Lark syntax.

        `%json` schemas are enforced as by `compile`. `<name>` is a token: a special token matches itself, another added
        token its text; `<[name]>` is for names that contain brackets. End-of-sequence tokens must not be named.

        Args:
            text: The source.
            param: The field of the request, for errors.

        Raises:
            RequestError: As `compile`.
            EdgekitError: As `compile`.
        """

        def build() -> Grammar:
            vocabulary, _ = self._prepared()
            special = {name: token for name, token in vocabulary.added.items() if token in vocabulary.special}
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
                path = self._failing_path(lowered)
                message = f"`{path}`: {error.message}" if path else error.message
                raise RequestError(message, hint=error.hint, code=error.code, param=param) from None

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
            # The newest stays, whatever its size.
            while len(self._cache) > 1 and (
                len(self._cache) > MAX_CACHED or sum(len(text) for _, text in self._cache) > MAX_CACHED_CHARS
            ):
                self._cache.popitem(last=False)
        return grammar

    def _prepared(self) -> tuple[Vocabulary, MatcherFactory]:
        with self._building:
            if self._built is None:
                self._built = self._build_vocabulary()
        if isinstance(self._built, EdgekitError):
            # A new instance per caller, since raising adds a traceback.
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

        def build(fuel: int, states: int) -> LLMatcher:
            return _with_stack(lambda: LLMatcher(vocabulary.trie, source, log_level=0, limits=_limits(fuel, states)))

        for states in sorted({min(SMALL_STATES, MAX_STATES), MAX_STATES}):
            prototype = build(INITIAL_FUEL, states)
            error = _first_step(prototype)
            failure = error or try_out(prototype, factory.allowed, factory.closing)
            if "states" not in failure:
                break
        if error or (failure and _is_limit(failure)):
            raise _refusal(failure, param)
        # Of a trial that failed nothing is kept: its automaton may be full.
        kept = build(INITIAL_FUEL, states) if failure else prototype
        return Grammar(factory, kept, build, large=states == MAX_STATES, on_large=self._keep_large)

    def _keep_large(self, grammar: Grammar) -> None:
        """Keep the automaton of a grammar that is used, and give up that of another if there are too many."""
        with self._lock:
            self._large[grammar] = None
            self._large.move_to_end(grammar)
            oldest = self._large.popitem(last=False)[0] if len(self._large) > MAX_LARGE else None
        if oldest is not None:
            oldest.release()

    def _failing_path(self, lowered: LoweredSchema) -> str:
        """Path of the innermost part of a schema that does not compile on its own; "" if that is all of it."""
        part, path = lowered.root, lowered.path_of(lowered.root, "")
        seen = {id(part)}
        inside = iter(lowered.parts(part))
        for _ in range(MAX_PROBES):
            probe = next((other for other in inside if id(other) not in seen), None)
            if probe is None:
                break
            seen.add(id(probe))
            if self._fails(lowered, probe):
                part, path = probe, lowered.path_of(probe, path)
                inside = iter(lowered.parts(part))
        return path

    def _fails(self, lowered: LoweredSchema, part: Any) -> bool:
        if part is False:
            return True
        try:
            self._build(_json(lowered, part), "")
        except RequestError:
            return True
        return False


def _first_step(prototype: LLMatcher) -> str:
    """Return the error of a matcher, some of which appear only in the first step; empty if there is none."""
    if not prototype.is_error():
        # Such as a start without any continuation.
        prototype.compute_bitmask()
    return str(prototype.get_error()) if prototype.is_error() else ""


def _with_stack(build: Callable[[], LLMatcher]) -> LLMatcher:
    """Compile on a thread with a large stack; only what is used of it takes memory."""
    built: list[LLMatcher] = []
    thread = threading.Thread(target=lambda: built.append(build()), name="grammar")
    with _STACK_SIZE:
        usual = threading.stack_size(STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(usual)
    thread.join()
    return built[0]


def _json(lowered: LoweredSchema, part: Any) -> str:
    return LLMatcher.grammar_from_json_schema(lowered.document(part, JSON_OPTIONS))


def _limits(fuel: int, states: int) -> LLParserLimits:
    return LLParserLimits(
        initial_lexer_fuel=fuel,
        step_lexer_fuel=200_000,
        step_max_items=500_000,
        max_items_in_row=10_000,
        max_lexer_states=states,
        max_grammar_size=500_000,
        verbose_errors=False,
    )


_LIMIT_WORDS = (
    "fuel",
    "limit",
    "too large",
    "too big",
    "too many",
    "too complex",
    "too deeply",
    "exceeded",
    "max is",
    "exhausted",
    "Unable to determine",
)


def _is_limit(message: str) -> bool:
    return any(word in message for word in _LIMIT_WORDS)


def _refusal(message: str, param: str) -> RequestError:
    line = one_line(message)
    if _is_limit(line):
        return RequestError(f"the grammar is too complex: {line}", code="schema_too_complex", param=param)
    return RequestError(f"the grammar cannot be enforced: {line}", code="unsupported_schema", param=param)
