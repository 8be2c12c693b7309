"""Every error edgekit raises on purpose.

The tree, with the stable `code` that HTTP and MQTT replies carry::

    EdgekitError                    internal_error
    ├── ExportError                 export_failed
    ├── BundleError                 bundle_invalid
    │   ├── SignatureError          signature_invalid
    │   └── IncompatibleBundleError bundle_incompatible
    ├── UpdateError                 update_failed
    ├── RunnerError                 runner_failed
    ├── RequestError                invalid_request
    ├── UnavailableError            overloaded, not_ready, shutting_down
    └── ConfigError                 config_invalid

A message is one line that says what is wrong; a hint says what to do about it. Where they mention an option, they do it
by `option`, so that Python reads of an argument and the command line of a flag. Exceptions of other libraries are
wrapped (`raise … from`) at the edge of each layer, so that the layers above need not know them.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from traceback import walk_tb
from typing import Any

__all__ = [
    "BundleError",
    "ConfigError",
    "EdgekitError",
    "ExportError",
    "IncompatibleBundleError",
    "RequestError",
    "RunnerError",
    "SignatureError",
    "Spelling",
    "UnavailableError",
    "UpdateError",
    "as_argument",
    "broken_library",
    "escape_controls",
    "field_path",
    "first_line",
    "import_failure",
    "internal_error",
    "missing_extra",
    "nearest",
    "option",
    "spell_options",
    "spelled",
]

Spelling = Callable[[str, Any], str]
"""Takes the name of an option and a value (None if only the option is meant), and returns how a user writes it."""

# The mark of a mention is random, so that a name in an untrusted file cannot pass for one.
_MARK = f"\x02{os.urandom(8).hex()}:"
_MENTION = re.compile(_MARK + "([a-z_]+)=([^\x03]*)\x03")

_NAME = re.compile(r"[\w$-]+…?")


def option(name: str, value: object = None) -> str:
    """Return a mention of an option, for a message or a hint; it is spelled when that is shown.

    Args:
        name: An argument of `edgekit.export_model`, of `edgekit.load`, or of a command.
        value: A value to recommend: a number, a string, True, or a list with one entry; None for the option alone.
    """
    return f"{_MARK}{name}={json.dumps(value)}\x03"


def as_argument(name: str, value: Any) -> str:
    """Spell an option as a Python argument: `fit_bytes`, `recipe='none'`."""
    return f"`{name}`" if value is None else f"`{name}={value!r}`"


def spell_options(text: str, spelling: Spelling) -> str:
    """Return a text with its mentions of options spelled out."""
    return _MENTION.sub(lambda match: spelling(match[1], json.loads(match[2])), text)


class EdgekitError(Exception):
    """The root of the tree.

    Args:
        message: One line that says what is wrong.
        hint: What the user can do about it; None if unknown.
        code: Stable machine-readable code; the class's own `code` unless given.

    Attributes:
        message, hint: As given, with options spelled as Python arguments.
    """

    code = "internal_error"
    exit_status = 1

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        self._raw = (message, hint)
        self.message, self.hint = self.spelled(as_argument)
        super().__init__(self.message)
        if code is not None:
            self.code = code
        if self.hint and sys.version_info >= (3, 11):
            self.add_note(f"hint: {self.hint}")  # shown below the message in a traceback

    def spelled(self, spelling: Spelling) -> tuple[str, str | None]:
        """Return message and hint with their mentions of options spelled."""
        message, hint = self._raw
        return escape_controls(spell_options(message, spelling)), hint and escape_controls(
            spell_options(hint, spelling)
        )

    def renamed(self, old: str, new: str) -> EdgekitError:
        """Return the same error with a name replaced in its texts, as of a temporary folder by what it stands for."""
        message, hint = (text and text.replace(old, new) for text in self._raw)
        return type(self)(message or "", hint=hint, code=self.code)


class ExportError(EdgekitError):
    """A checkpoint cannot be read, or an artifact cannot be written."""

    code = "export_failed"


class BundleError(EdgekitError):
    """A bundle is damaged, incomplete or not a bundle."""

    code = "bundle_invalid"


class SignatureError(BundleError):
    """A bundle's signature is missing or wrong."""

    code = "signature_invalid"


class IncompatibleBundleError(BundleError):
    """A valid bundle that this device or runner cannot use."""

    code = "bundle_incompatible"


class UpdateError(EdgekitError):
    """An update could not be installed, activated or rolled back."""

    code = "update_failed"


class RunnerError(EdgekitError):
    """A runner cannot load or run an artifact."""

    code = "runner_failed"


class RequestError(EdgekitError):
    """A request is malformed, too large, or asks for something unsupported.

    Attributes:
        param: The offending field of the request; None if no single field is at fault.
    """

    code = "invalid_request"

    def __init__(
        self, message: str, *, hint: str | None = None, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.param = param


class UnavailableError(EdgekitError):
    """The daemon cannot serve a request now; the request itself may be fine.

    Args:
        code: `overloaded`, `not_ready` or `shutting_down`.

    Attributes:
        retry_after_s: Seconds after which to retry.
    """

    def __init__(self, message: str, *, code: str, retry_after_s: float, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, code=code)
        self.retry_after_s = retry_after_s


class ConfigError(EdgekitError):
    """The user's configuration or command line is wrong."""

    code = "config_invalid"
    exit_status = 2


def escape_controls(text: str) -> str:
    """Escape line breaks and terminal control characters: messages quote names from untrusted files."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nearest(word: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the member of `known` closest to a misspelt `word`; None if none is closer than `cutoff`, up to 1."""
    matches = get_close_matches(word, sorted(known), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def field_path(steps: Iterable[str | int], base: str = "") -> str:
    """Return the path of a field as messages and `param` have it: `messages[0].content`, `properties["a b"].type`.

    Args:
        steps: Names and indices, from the outside in.
        base: The path that they continue.
    """
    path = base
    for step in steps:
        if isinstance(step, int):
            path += f"[{step}]"
        elif not path:
            path = step[:100]
        else:
            name = step[:40] + "…" * (len(step) > 40)
            path += f".{name}" if _NAME.fullmatch(name) else f"[{json.dumps(name, ensure_ascii=False)}]"
    return escape_controls(path)


def spelled(number: float) -> str:
    """Return a number as a person would type it: every digit that counts, and an exponent only far from one.

    `:g` rounds to six digits: a bound of 1,000,000 becomes 1e+06, and 2.0000001 is refused as "at most 2, not 2".
    """
    # Infinity and NaN are equal to no integer.
    text = str(int(number) if abs(number) < 1e15 and number == int(number) else number)
    return text if len(text) <= 40 else f"{text[:40]}…"


def internal_error(error: BaseException) -> EdgekitError:
    """Return the error reported to a caller for an unexpected exception; the log has the details."""
    detail = " ".join(str(error).split())[:200]
    return EdgekitError(
        f"internal error: {type(error).__name__}{': ' if detail else ''}{detail}",
        hint="this is a bug in edgekit; its log has the details",
    )


def missing_extra(module: str, extra: str) -> EdgekitError:
    """Return the error for an optional library that is not installed.

    Args:
        module: The module that could not be imported.
        extra: The extra of edgekit that installs it.
    """
    return EdgekitError(
        f"this needs `{module}`, which is not installed",
        hint=f"pip install 'edgekit-llm[{extra}]'",
        code="missing_extra",
    )


def import_failure(error: ImportError, extra: str) -> EdgekitError | None:
    """Return the error for a library that cannot be imported; None if edgekit's own code is at fault.

    Args:
        error: `ModuleNotFoundError` if it is not installed; else a library that it loads is missing or another version
            than it expects, or it is too old to have what edgekit imports from it.
        extra: The extra of edgekit that installs it.

    Returns:
        An error with the code `missing_extra` or `broken_library`.
    """
    library = _library_of(error)
    if library is None:
        return None
    if isinstance(error, ModuleNotFoundError):
        return missing_extra(library, extra)
    return broken_library(library, error)


def broken_library(library: str, error: BaseException, *, hint: str | None = None) -> EdgekitError:
    """Return the error for a library that is installed and cannot be imported.

    Args:
        library: Its module.
        error: What importing it raised.
        hint: What mends it; by default, to install it again.
    """
    return EdgekitError(
        f"`{library}` is installed and cannot be imported: {first_line(error)}",
        hint=hint or f"{sys.executable} -m pip install --force-reinstall {library}",
        code="broken_library",
    )


def _library_of(error: ImportError) -> str | None:
    """The package of the library that could not be imported; None if it is edgekit."""
    names = [error.name or ""]
    if not isinstance(error, ModuleNotFoundError):
        # An extension module is named without its package, but the code that imports it is that library's.
        frames = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
        names = [name for name in reversed(frames) if not name.startswith("importlib")][:1] + names
    packages = (name.partition(".")[0] for name in names)
    return next((package for package in packages if package not in {"", "edgekit", "__main__"}), None)


def first_line(error: BaseException) -> str:
    """Return the reason in an exception of another library, in one line.

    Backends append stack traces. numpy explains on a page why imports may fail; the reason is in the `ImportError`
    that it was raised from.
    """
    if isinstance(error, ImportError) and isinstance(error.__cause__, ImportError):
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip()
