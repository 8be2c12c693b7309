"""One URL into one file, taken up again where it was left. It knows no package and no model."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPSHandler, Request, build_opener

from edgekit.errors import ExportError

__all__ = ["RefusedError", "disk_error", "download"]

_CHUNK = 1 << 18
_TIMEOUT_S = 30
# After the first failure; it doubles.
_PAUSE_S = 0.5
# Where users of other tools have put the authorities they trust.
_CERTIFICATES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


class RefusedError(ExportError):
    """The server wants credentials or a certificate that we do not have; another tool may have them."""


def download(url: str, part: Path, size: int, progress: Callable[[int], None], *, attempts: int = 5) -> None:
    """Download into a file that may hold the beginning already.

    Args:
        url: http, https or file. Proxies are taken from the environment.
        part: The file, appended to; a failure leaves what has come, for the next time.
        size: Bytes the whole must have.
        progress: Called with the bytes that are there.
        attempts: Failures in a row, none of which brought a byte, before giving up.

    Raises:
        RefusedError: See there.
        ExportError: The server cannot be reached, has no such file or another one, or the disk is full.
    """
    if urlsplit(url).scheme not in ("http", "https", "file"):
        raise RefusedError(f"{_place(url)} is no address that edgekit can fetch from")
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
            _raise_if_final(url, error)
            reason = error
        after = _length(part, size)
        failures = 0 if after > before else failures + 1
        if failures >= attempts:
            raise ExportError(
                f"{_place(url)} cannot be reached: {_words(reason)}",
                hint="check the network and run it again: what has come is kept",
                code="download_failed",
            ) from reason
        if after < size:
            time.sleep(_PAUSE_S * 2**failures)


def _append(url: str, part: Path, done: int, size: int, progress: Callable[[int], None]) -> None:
    headers = {"Accept-Encoding": "identity", "User-Agent": "edgekit"}
    if done:
        headers["Range"] = f"bytes={done}-"
    request = Request(url, headers=headers)  # noqa: S310  the scheme was checked
    with _opener(url).open(request, timeout=_TIMEOUT_S) as response:
        resumed = response.status == 206 if hasattr(response, "status") else False
        if done and not (resumed and str(response.headers.get("Content-Range", "")).startswith(f"bytes {done}-")):
            done = 0  # the server sends it all again
        with _opened(part, "ab" if done else "wb") as stream:
            # One byte more than there should be tells a longer file from the right one.
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
        raise ExportError(f"{_place(url)} sent more than the {size} bytes the catalogue knows", hint="is it a mirror?")


def _opened(path: Path, mode: str) -> Any:
    try:
        return path.open(mode)
    except OSError as error:
        raise disk_error(path, error) from error


def _length(part: Path, size: int) -> int:
    """Bytes that are there; a file longer than the whole is none of ours, and is removed."""
    try:
        length = part.stat().st_size
    except FileNotFoundError:
        return 0
    if length > size:
        part.unlink()
        return 0
    return length


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
            import certifi  # Python for macOS knows no authority by itself; huggingface_hub brings these

            context.load_verify_locations(certifi.where())
    except (ImportError, OSError):
        pass  # the connection will say what is missing
    return context


def _raise_if_final(url: str, error: Exception) -> None:
    """Raise where trying again cannot help."""
    if isinstance(error, HTTPError):
        error.close()
        if error.code in (401, 403, 407):
            raise RefusedError(f"{_place(url)} refuses the download (HTTP {error.code})") from error
        if error.code < 500 and error.code not in (408, 416, 425, 429):
            raise ExportError(
                f"{_place(url)} answers HTTP {error.code}", hint="does your package mirror carry the file?"
            ) from error
    if isinstance(error, URLError):
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise RefusedError(
                f"{_place(url)} has a certificate that this machine does not trust",
                hint="SSL_CERT_FILE names the authorities to trust",
            ) from error
        if isinstance(error.reason, FileNotFoundError | IsADirectoryError) or urlsplit(url).scheme == "file":
            raise ExportError(f"{_place(url)} cannot be read: {_words(error)}") from error


def disk_error(path: Path, error: OSError) -> ExportError:
    """The error for a cache that cannot be written."""
    full = error.errno in (28, 122)  # ENOSPC, EDQUOT
    return ExportError(
        f"no room on the disk for {path}" if full else f"{path} cannot be written: {error.strerror or error}",
        hint="EDGEKIT_CACHE names another folder for downloads",
        code="disk_full" if full else None,
    )


def _place(url: str) -> str:
    """Host and file name: an address without credentials, short enough for one line."""
    parts = urlsplit(url)
    return f"{parts.hostname or parts.scheme}:…/{parts.path.rsplit('/', 1)[-1]}"


def _words(error: Exception | None) -> str:
    reason = getattr(error, "reason", None) or error or "the connection was closed early"
    return " ".join(str(reason).split())[:120] or type(reason).__name__
