"""The vocabulary is built once, whichever caller needs it first; so is the error if it cannot be built."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from edgekit.errors import EdgekitError
from edgekit.generation.chat.tokenizer import Tokenizer
from edgekit.generation.grammar import GrammarCompiler, compiler
from edgekit.generation.grammar.vocabulary import Vocabulary
from edgekit.generation.types import ResponseFormat
from tests.generation.grammar.kits import KINDS, kit

YES = ResponseFormat("choice", ("yes", "no"))


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every vocabulary whose construction began; they are real."""
    begun: list[object] = []

    class Counted(Vocabulary):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            begun.append(self)
            super().__init__(*arguments, **options)

    monkeypatch.setattr(compiler, "Vocabulary", Counted)
    return begun


def _compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, vocab_size=tokenizer.vocab_size, eos_token_ids=[tokenizer.vocab_size - 1])


def _unknown() -> Tokenizer:
    """A tokenizer whose tokens have no known bytes."""
    backend = Backend(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))  # noqa: S106
    backend.decoder = decoders.WordPiece()
    return Tokenizer(backend)


@pytest.mark.parametrize("kind", KINDS)
def test_concurrent_callers_share_one_vocabulary(kind: str, built: list[object]) -> None:
    grammars = _compiler(kit(kind).tokenizer)
    start = threading.Barrier(9)
    failed: list[BaseException] = []

    def ask(number: int) -> None:
        start.wait()
        try:
            if number % 3 == 0:
                grammars.prepare()
            else:
                grammars.compile(ResponseFormat("choice", (f"yes {number}", "no"))).matcher().mask()
        except BaseException as error:  # noqa: BLE001  it would be lost in the thread
            failed.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert built == [grammars._prepared()[0]]


def test_a_request_waits_for_a_preparation_that_is_under_way(
    built: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    grammars = _compiler(kit("byte_level").tokenizer)
    begun, go_on = threading.Event(), threading.Event()
    real = grammars._build_vocabulary

    def slowly() -> Any:
        begun.set()
        assert go_on.wait(10)
        return real()

    monkeypatch.setattr(grammars, "_build_vocabulary", slowly)
    ahead = threading.Thread(target=grammars.prepare)
    ahead.start()
    assert begun.wait(10)
    answered = threading.Event()

    def ask() -> None:
        grammars.compile(YES)
        answered.set()

    asking = threading.Thread(target=ask)
    asking.start()
    assert not answered.wait(0.2)
    go_on.set()
    asking.join(10)
    ahead.join(10)
    assert answered.is_set()
    assert len(built) == 1


def test_a_vocabulary_that_cannot_be_built_fails_every_caller_and_is_tried_once(built: list[object]) -> None:
    grammars = _compiler(_unknown())
    with pytest.raises(EdgekitError, match="WordPiece") as ahead:
        grammars.prepare()
    assert grammars.prepared
    for _ in range(3):
        with pytest.raises(EdgekitError) as caught:
            grammars.compile(YES)
        assert (caught.value.code, caught.value.message) == ("grammar_unavailable", ahead.value.message)
        assert caught.value is not ahead.value
    assert len(built) == 1


def test_a_failure_for_another_reason_is_tried_again(built: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = _compiler(kit("byte_level").tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr("edgekit.generation.grammar.vocabulary.LLTokenizer", _no_memory)
        with pytest.raises(MemoryError):
            grammars.prepare()
        assert not grammars.prepared
    assert grammars.compile(YES).matcher().mask() is not None
    assert len(built) == 2


def _no_memory(*_: object, **__: object) -> None:
    raise MemoryError
