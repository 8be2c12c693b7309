"""Authenticates senders, and binds the requests that they submit to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from edgekit.config import AccessConfig
from edgekit.daemon.access.audit import AuditLog, AuditRecord
from edgekit.daemon.access.identity import ANONYMOUS, Identity, key_identity, user_identity
from edgekit.daemon.access.key_file import default_keys_file
from edgekit.daemon.access.key_store import KeyStore
from edgekit.daemon.access.limits import AttemptLimit, KeyLimits
from edgekit.daemon.access.submission import BoundSubmit, Submit
from edgekit.daemon.metrics import Metrics
from edgekit.errors import RequestError
from edgekit.machine import state_folder

__all__ = ["Access"]

T = TypeVar("T")


class Access:
    """Everything about who may ask; any thread may use it.

    Args:
        config: The keys file and the audit log; None has no keys and no audit log.
        metrics: Counts the requests of each key; None counts none.
    """

    def __init__(self, config: AccessConfig | None = None, metrics: Metrics | None = None) -> None:
        self._metrics = metrics
        if config is None:
            self.keys, self.audit = KeyStore(None), AuditLog("off")
        else:
            self.keys = KeyStore(config.keys_file or default_keys_file())
            folder = state_folder()
            path = config.audit_file or (folder and folder / "audit.jsonl")
            self.audit = AuditLog(config.audit, path or None, config.audit_mib << 20)
        self._limits = KeyLimits()
        self._attempts = AttemptLimit()

    def start(self) -> None:
        """Read the keys and open the audit log.

        Raises:
            EdgekitError, ConfigError: One of the files cannot be used.
        """
        self.keys.load()
        self.audit.start()

    def stop(self) -> None:
        """Close the audit log."""
        self.audit.stop()

    def reload(self) -> None:
        """Read the keys again, and open the audit log anew."""
        self.keys.current()
        self.audit.reopen()

    def identify(self, presented: Sequence[bytes], address: str, *, required: bool) -> Identity:
        """Return the sender of a request.

        Args:
            presented: The keys that it presents, as bytes of the headers.
            address: Its address, for the limit of failed attempts.
            required: A key is required even if none is configured.

        Raises:
            RequestError: `api_key_missing`, `invalid_api_key` or `api_key_expired`.
            UnavailableError: `too_many_attempts` with invalid keys.
        """
        keys = self.keys.current()
        if not (keys.configured or required):
            return ANONYMOUS
        if not presented:
            raise RequestError(
                "this daemon needs an API key",
                hint="send it as `Authorization: Bearer KEY`; `edgekit key add NAME` makes one",
                code="api_key_missing",
            )
        found = next((key for key in [keys.find(secret) for secret in presented] if key is not None), None)
        if found is None:
            self._attempts.failed(address)
            raise RequestError(
                "the API key is not valid", hint="`edgekit key list` shows the keys", code="invalid_api_key"
            )
        if found.expired():
            raise RequestError(
                f"the API key `{found.name}` expired at {found.expires}",
                hint="`edgekit key add NAME` makes a new one",
                code="api_key_expired",
            )
        return key_identity(found)

    def identify_user(self, user: str) -> Identity:
        """Return the identity of an MQTT user: that of the key of the same name, if there is one.

        Raises:
            RequestError: `api_key_expired`.
        """
        key = self.keys.current().named(user)
        if key is None:
            return user_identity(user)
        if key.expired():
            raise RequestError(
                f"the API key of the user `{user}` expired at {key.expires}",
                hint=f"edgekit key revoke {user}, then edgekit key add {user}",
                code="api_key_expired",
            )
        return key_identity(key)

    def name_user(self, user: str) -> Identity:
        """Return the identity of an MQTT user for the audit log: its key may have expired."""
        key = self.keys.current().named(user)
        return user_identity(user) if key is None else key_identity(key)

    def bound(self, submit: Submit[T], identity: Identity, names: Sequence[str], record: AuditRecord) -> BoundSubmit[T]:
        """Return a `submit` for the requests of one sender.

        Args:
            submit: The worker's.
            identity: The sender.
            names: The model's name and aliases.
            record: The line in the audit log.
        """
        record.model = names[0]
        return BoundSubmit(submit, identity, names, record, limits=self._limits, metrics=self._metrics)
