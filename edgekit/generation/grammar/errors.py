"""Errors about parts of a schema or grammar: raised without a path, which the caller adds."""

from __future__ import annotations

from edgekit.errors import RequestError

__all__ = ["PartError", "one_line", "refusal", "too_large"]


class PartError(Exception):
    """An error in a part of a schema or grammar; `refusal` turns it into a `RequestError` with the part's path.

    Args:
        message: One line, without the path.
        complex_: The part exceeds a limit (`schema_too_complex`).
        invalid: The part is malformed (`invalid_request`); otherwise it is `unsupported_schema`.
        hint: What to do about it.
    """

    def __init__(self, message: str, *, complex_: bool = False, invalid: bool = False, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = "schema_too_complex" if complex_ else "invalid_request" if invalid else "unsupported_schema"
        self.hint = hint


def refusal(error: PartError, *, path: str, param: str) -> RequestError:
    """Return the error for a request whose schema or grammar has this error at `path`."""
    where = f"`{path}`: " if path else ""
    return RequestError(where + error.message, hint=error.hint, code=error.code, param=param)


def too_large(what: str, limit: int, unit: str) -> PartError:
    """Return the error for a part that exceeds its limit."""
    return PartError(f"a {what} may have at most {limit} {unit}", complex_=True)


def one_line(message: str) -> str:
    """Return llguidance's error message on one line, without the state dump it appends."""
    for mark in ("<state>", "<non-verbose/>"):
        message = message.partition(mark)[0]
    return " ".join(message.split())[:300]
