"""TLS: a certificate that can be replaced while the server runs."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from edgekit.errors import ConfigError

__all__ = ["Certificate"]

logger = logging.getLogger(__name__)


class Certificate:
    """The server's certificate and key.

    Args:
        certificate: Certificate chain, PEM; the server's own certificate first.
        key: Its private key, PEM, without a password.

    Attributes:
        context: For listening; it stays the same when the certificate is reloaded.

    Raises:
        ConfigError: The files cannot be read, or do not belong together.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self._current = self.context = self._load()

        def choose(connection: ssl.SSLSocket | ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            # Called for each handshake, with a server name or without one.
            connection.context = self._current

        self.context.sni_callback = choose

    def reload(self) -> None:
        """Read the files again, for the connections from now on; if they cannot be used, the old ones stay in use."""
        try:
            self._current = self._load()
        except ConfigError as error:
            logger.warning("http: the certificate from before stays in use: %s", error.message)
        else:
            logger.info("http: read the certificate %s again", self._certificate)

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            # Without the callback, OpenSSL would ask for a password on the terminal.
            context.load_cert_chain(self._certificate, self._key, password=lambda: "")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            if isinstance(error, ssl.SSLError):
                reason = error.reason or "one of them is not in PEM format, or they do not belong together"
            raise ConfigError(
                f"cannot use the certificate {self._certificate} with the key {self._key}: {reason}",
                hint="check `http.tls_certificate` and `http.tls_key`: PEM, readable by the daemon, without a password",
            ) from error
        return context
