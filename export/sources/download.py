"""Downloads one URL into one file, and resumes an interrupted download."""

from __future__ import annotations

import errno
import os
import ssl
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPSHandler, Request, build_opener

from edgekit.errors import ExportError

__all__ = ["RefusedError", "disk_error", "download", "open_unlinked", "open_url"]

_CHUNK = 1 << 18
_TIMEOUT_S = 30
# Pause after the first failure; it doubles.
_PAUSE_S = 0.5
# Variables that name trusted authorities for other tools.
_CERTIFICATES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class RefusedError(ExportError):
    """The server requires credentials or a certificate that edgekit does not have; another tool may have them."""


def download(url: str, part: Path, size: int, progress: Callable[[int], None], *, attempts: int = 5) -> None:
    """Download into a file, continuing after the bytes that it has already.

    Args:
        url: http, https or file. Proxies are taken from the environment.
        part: The file, appended to; on failure it keeps what arrived, for the next attempt.
        size: Expected size in bytes.
        progress: Called with the bytes that the file has.
        attempts: Consecutive failures without a new byte before giving up.

    Raises:
        RefusedError: The server requires credentials or a certificate.
        ExportError: The server cannot be reached, has no such file or a different one, or the disk is full.
    """
    if urlsplit(url).scheme not in ("http", "https", "file"):
        raise RefusedError(f"{_short_url(url)} is not an address that edgekit can fetch from")
    failures = 0
    while True:
        before = _length(part, size)
        if before == size:
            progress(size)
            return
        reason: Exception | None = None
        try:
            _append(url, part, before, size, progress)
        except (OSError, HTTPException) as error:
            _raise_if_permanent(url, error)
            reason = error
        after = _length(part, size)
        failures = 0 if after > before else failures + 1
        if failures >= attempts:
            raise ExportError(
                f"{_short_url(url)} cannot be reached: {_reason(reason)}",
                hint="check the network and run it again: the download resumes",
                code="download_failed",
            ) from reason
        if after < size:
            time.sleep(_PAUSE_S * 2**failures)


def _append(url: str, part: Path, done: int, size: int, progress: Callable[[int], None]) -> None:
    headers = {"Accept-Encoding": "identity", "User-Agent": "edgekit"}
    if done:
        headers["Range"] = f"bytes={done}-"
    request = Request(url, headers=headers)  # noqa: S310  the scheme was checked
    with open_url(request) as response:
        resumed = response.status == 206 if hasattr(response, "status") else False
        if done and not (resumed and str(response.headers.get("Content-Range", "")).startswith(f"bytes {done}-")):
            done = 0  # the server sends it all again
        with open_unlinked(part, "ab" if done else "wb") as stream:
            # One byte beyond the expected size detects a longer file.
            while chunk := response.read(min(_CHUNK, size - done + 1)):
                try:
                    stream.write(chunk)
                    stream.flush()
                except OSError as error:
                    raise disk_error(part, error) from error
                done += len(chunk)
                if done > size:
                    break
                progress(done)
    if done > size:
        part.unlink()
        raise ExportError(f"{_short_url(url)} sent more than the {size} bytes in the catalogue", hint="is it a mirror?")


def open_unlinked(path: Path, mode: str) -> IO[bytes]:
    """Open a file of the cache for writing, in a binary mode; a link in its place is refused, not followed.

    Raises:
        ExportError: It cannot be opened.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW, 0o666)

    try:
        return open(path, mode, opener=opener)
    except OSError as error:
        raise disk_error(path, error) from error


def _length(part: Path, size: int) -> int:
    """The file's size in bytes; a file longer than expected is not ours, and is removed."""
    try:
        length = part.stat().st_size
    except FileNotFoundError:
        return 0
    if length > size:
        part.unlink()
        return 0
    return length


def open_url(request: Request) -> Any:
    """Send a request, and return the response to read; proxies and certificates are those of the environment.

    Raises:
        OSError: The server cannot be reached, or answers with an error.
        HTTPException: Its answer is not HTTP.
    """
    return _opener(request.full_url).open(request, timeout=_TIMEOUT_S)


def _opener(url: str) -> Any:
    if urlsplit(url).scheme != "https":
        return build_opener()
    return build_opener(HTTPSHandler(context=_tls()))


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()  # honours SSL_CERT_FILE and SSL_CERT_DIR
    bundle = next((os.environ[name] for name in _CERTIFICATES if os.environ.get(name)), None)
    try:
        if bundle is not None:
            context.load_verify_locations(**{"capath" if Path(bundle).is_dir() else "cafile": bundle})
        elif not context.get_ca_certs() and ssl.get_default_verify_paths().cafile is None:
            import certifi  # Python for macOS ships no authorities; huggingface_hub depends on certifi

            context.load_verify_locations(certifi.where())
    except (ImportError, OSError):
        pass  # the connection will fail with the reason
    return context


def _raise_if_permanent(url: str, error: Exception) -> None:
    """Raise an error that a retry cannot solve."""
    if isinstance(error, HTTPError):
        error.close()
        if error.code in (401, 403, 407):
            raise RefusedError(f"{_short_url(url)} refuses the download (HTTP {error.code})") from error
        if error.code < 500 and error.code not in (408, 416, 425, 429):
            raise ExportError(
                f"{_short_url(url)} answers HTTP {error.code}", hint="does your package mirror have the file?"
            ) from error
    if isinstance(error, URLError):
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise RefusedError(
                f"{_short_url(url)} has a certificate that this machine does not trust",
                hint="set SSL_CERT_FILE to a file with the authorities to trust",
            ) from error
        if isinstance(error.reason, FileNotFoundError | IsADirectoryError) or urlsplit(url).scheme == "file":
            raise ExportError(f"{_short_url(url)} cannot be read: {_reason(error)}") from error


def disk_error(path: Path, error: OSError) -> ExportError:
    """Return the error for a cache that cannot be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "it is a link" if error.errno == errno.ELOOP else error.strerror or error
    return ExportError(
        f"no space left on the disk for {path}" if full else f"{path} cannot be written: {reason}",
        hint="set EDGEKIT_CACHE to another folder for downloads",
        code="disk_full" if full else None,
    )


def _short_url(url: str) -> str:
    """Host and file name: the address without credentials, short enough for one line."""
    parts = urlsplit(url)
    return f"{parts.hostname or parts.scheme}:…/{parts.path.rsplit('/', 1)[-1]}"


def _reason(error: Exception | None) -> str:
    reason = getattr(error, "reason", None) or error or "the connection was closed early"
    return " ".join(str(reason).split())[:120] or type(reason).__name__
