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
    └── ConfigError                 config_invalid

A message is one line and says what is wrong; a hint says what to do about it. Exceptions of other
libraries are wrapped (`raise … from`) at the edge of each floor, so that nothing above has to know them.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "BundleError",
    "ConfigError",
    "EdgekitError",
    "ExportError",
    "IncompatibleBundleError",
    "RequestError",
    "RunnerError",
    "SignatureError",
    "UpdateError",
    "internal_error",
    "missing_extra",
    "nearest",
]


class EdgekitError(Exception):
    """The root of the tree.

    Args:
        message: One line that says what is wrong.
        hint: What the user can do about it, if anything is known.
        code: Stable machine-readable code; the class's own `code` unless given.
    """

    code = "internal_error"
    exit_status = 1

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        message = _one_line(message)
        super().__init__(message)
        self.message = message
        self.hint = hint and _one_line(hint)
        if code is not None:
            self.code = code


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
    """A sound bundle that this device or runner cannot use."""

    code = "bundle_incompatible"


class UpdateError(EdgekitError):
    """An update could not be installed, activated or rolled back."""

    code = "update_failed"


class RunnerError(EdgekitError):
    """A runner cannot load or run an artifact."""

    code = "runner_failed"


class RequestError(EdgekitError):
    """A caller's request is malformed, too large, or cannot be served now.

    Attributes:
        param: The offending field of the request, if one can be named.
        retry_after_s: When it is worth asking again, in seconds; None if never.
    """

    code = "invalid_request"

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint, code=code)
        self.param = param
        self.retry_after_s = retry_after_s


class ConfigError(EdgekitError):
    """The user's configuration or command line is wrong."""

    code = "config_invalid"
    exit_status = 2


def _one_line(text: str) -> str:
    """Escape what would break the line or command the terminal: messages quote names out of strangers' files."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the member of `known` that `word` was most likely meant to be, or None."""
    matches = get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return matches[0] if matches else None


def internal_error(error: BaseException) -> EdgekitError:
    """Return what a caller is told of an exception that nobody expected; the log has the rest."""
    detail = " ".join(str(error).split())[:200]
    return EdgekitError(
        f"internal error: {type(error).__name__}{': ' if detail else ''}{detail}",
        hint="this is a fault in edgekit; its log has the details",
    )


def missing_extra(module: str, extra: str) -> EdgekitError:
    """Return the error for an optional library that is not installed.

    Args:
        module: The module that could not be imported.
        extra: The extra of edgekit that brings it.
    """
    return EdgekitError(
        f"this needs `{module}`, which is not installed",
        hint=f"pip install 'edgekit[{extra}]'",
        code="missing_extra",
    )
