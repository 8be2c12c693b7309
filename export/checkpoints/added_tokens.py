"""Puts the added tokens that stand beside a `tokenizer.json` into it.

`tokenizer.json` has everything that edgekit and a device read. Fine-tuning tools may leave a new token only in
`tokenizer_config.json` (`added_tokens_decoder`) or `added_tokens.json`, or name a special token that is an ordinary
piece of the vocabulary. transformers adds those when it loads the tokenizer; without them such a token is split into
several. Where `added_tokens_decoder` says otherwise what kind of token it is, such as a special one, that counts for
transformers too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from edgekit.errors import ExportError
from edgekit.export.checkpoints.end_tokens import AddedToken

__all__ = ["added_tokens", "complete_tokenizer"]

_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_SETTINGS, _MAP = "tokenizer_config.json", "added_tokens.json"


def added_tokens(tokenizer: Mapping[str, Any]) -> dict[str, AddedToken]:
    """Return the added tokens of a parsed `tokenizer.json`, by text."""
    entries = tokenizer.get("added_tokens")
    found = {}
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict) and isinstance(entry.get("content"), str) and type(entry.get("id")) is int:
            found[entry["content"]] = AddedToken(entry["id"], special=entry.get("special") is True)
    return found


def complete_tokenizer(
    contents: bytes,
    tokenizer: Mapping[str, Any],
    *,
    settings: Mapping[str, Any],
    added: Mapping[str, Any],
    special: Iterable[str],
) -> tuple[bytes, dict[str, Any]]:
    """Return a `tokenizer.json` that has the tokens of the files beside it: its contents, and parsed.

    Args:
        contents: The contents of `tokenizer.json`; returned unchanged if nothing is missing.
        tokenizer: The same, parsed.
        settings: `tokenizer_config.json`.
        added: `added_tokens.json`: id by text.
        special: Texts of `bos_token` and of all other special tokens.

    Raises:
        ExportError: Two files give a token different ids or an id two tokens, or a token cannot have its id.
    """
    known = added_tokens(tokenizer)
    vocabulary = _vocabulary(tokenizer)
    by_id = {number: text for text, number in vocabulary.items()} | {one.id: text for text, one in known.items()}
    wanted: dict[str, dict[str, Any]] = {}
    for file, entry in [*_decoder(settings), *_map(added)]:
        text, number = entry["content"], entry["id"]
        present = known[text].id if text in known else vocabulary.get(text)
        earlier = wanted.get(text, {}).get("id", present)
        if earlier not in (None, number):
            raise _disagree(file, f"gives `{text}` the id {number}, but it has {earlier}")
        if by_id.setdefault(number, text) != text:
            raise _disagree(file, f"names token {number} `{text}`, but it is `{by_id[number]}`")
        if text not in known:
            wanted.setdefault(text, entry)
        elif file == _SETTINGS and (changed := _with_flags(tokenizer, text, settings)) is not None:
            wanted.setdefault(text, changed)
    for text in special:
        if text not in known and text not in wanted and text in vocabulary:
            wanted[text] = _entry(vocabulary[text], text, {"special": True})
    if not wanted:
        return contents, dict(tokenizer)
    entries = tokenizer.get("added_tokens") or []
    if not isinstance(entries, list) or not all(map(_numbered, entries)):
        raise _malformed("`added_tokens` of tokenizer.json")
    entries = [*(entry for entry in entries if entry.get("content") not in wanted), *wanted.values()]
    completed = {**tokenizer, "added_tokens": sorted(entries, key=lambda entry: int(entry["id"]))}
    text = json.dumps(completed, ensure_ascii=False).encode()
    _check_ids(text, wanted)
    return text, completed


def _with_flags(tokenizer: Mapping[str, Any], text: str, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """A token of `tokenizer.json` with the flags that `added_tokens_decoder` states; None if it has them already."""
    token = next(one for one in tokenizer["added_tokens"] if isinstance(one, dict) and one.get("content") == text)
    stated = settings["added_tokens_decoder"][str(token["id"])]
    flags = {flag: stated[flag] for flag in _FLAGS if isinstance(stated.get(flag), bool)}
    return None if flags.items() <= token.items() else {**token, **flags}


def _numbered(entry: object) -> bool:
    return isinstance(entry, dict) and type(entry.get("id")) is int


def _check_ids(contents: bytes, wanted: Mapping[str, Mapping[str, Any]]) -> None:
    """The library numbers new tokens itself, from the end of the vocabulary on."""
    from edgekit.export.checkpoints.tokenizer_files import read_tokenizer

    backend = read_tokenizer(contents)
    for text, entry in wanted.items():
        if backend.token_to_id(text) != entry["id"]:
            raise ExportError(
                f"the added token `{text}` has the id {entry['id']}, which tokenizer.json cannot give it: its tokens "
                f"end at {backend.get_vocab_size() - len(wanted)}",
                hint="load the tokenizer with transformers' AutoTokenizer and save_pretrained() it again",
            )


def _decoder(settings: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    decoder = settings.get("added_tokens_decoder")
    found = []
    for key, entry in decoder.items() if isinstance(decoder, dict) else []:
        text = entry.get("content") if isinstance(entry, dict) else None
        if not isinstance(text, str) or not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise _malformed(f"`added_tokens_decoder` of {_SETTINGS}", key)
        found.append((_SETTINGS, _entry(int(key), text, entry)))
    return found


def _map(added: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for text, number in added.items():
        if type(number) is not int or number < 0:
            raise _malformed(_MAP, text)
        found.append((_MAP, _entry(number, text, {})))
    return found


def _entry(number: int, text: str, flags: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": number, "content": text, **{flag: flags.get(flag) is True for flag in _FLAGS}}


def _vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        return {text: number for text, number in vocabulary.items() if type(number) is int}
    # Unigram's is a list of pairs: text, score.
    pairs = vocabulary if isinstance(vocabulary, list) else []
    return {pair[0]: number for number, pair in enumerate(pairs) if isinstance(pair, list) and isinstance(pair[0], str)}


def _disagree(file: str, how: str) -> ExportError:
    return ExportError(
        f"{file} and the files beside it disagree: {file} {how}",
        hint="take the tokenizer's files from one place, or save_pretrained() it again with transformers",
    )


def _malformed(where: str, key: str = "") -> ExportError:
    entry = f"entry `{key[:60]}`" if key else "entry"
    return ExportError(f"{where} has a malformed {entry}", hint="save_pretrained() the tokenizer again")
