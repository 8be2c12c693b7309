"""How a part of a schema or grammar is refused: first without its place, then with it."""

from __future__ import annotations

from edgekit.errors import RequestError

__all__ = ["PartError", "one_line", "refusal", "too_much"]


class PartError(Exception):
    """What is wrong with a part; whoever knows where the part stands turns it into a `RequestError`.

    Args:
        complex_: It is not wrong but too much.
    """

    def __init__(self, message: str, *, complex_: bool = False, invalid: bool = False, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = "schema_too_complex" if complex_ else "invalid_request" if invalid else "unsupported_schema"
        self.hint = hint


def refusal(complaint: PartError, *, path: str, param: str) -> RequestError:
    """Return the error for a request whose schema or grammar has this at `path`."""
    where = f"{path}: " if path else ""
    return RequestError(where + complaint.message, hint=complaint.hint, code=complaint.code, param=param)


def too_much(what: str, most: int, unit: str) -> PartError:
    """Return the complaint that a part is larger than it may be."""
    return PartError(f"a {what} may have {most} {unit}", complex_=True)


def one_line(message: str) -> str:
    """What llguidance says is wrong, without the state that it adds."""
    for mark in ("<state>", "<non-verbose/>"):
        message = message.partition(mark)[0]
    return " ".join(message.split())[:300]
