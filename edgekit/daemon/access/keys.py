"""API keys: what a key allows, and its form in the keys file. The secret itself is never kept, only its SHA-256.

A secret has 256 random bits, so that a fast hash protects it as well as a slow one would.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any, Literal, cast, get_args

from edgekit.errors import ConfigError, nearest

__all__ = ["SCOPES", "ApiKey", "Scope", "check_name", "digest_of", "new_secret", "redact", "timestamp"]

Scope = Literal["inference", "metrics", "admin"]
"""`inference` generates and describes models, `metrics` reads the daemon's state, `admin` changes it."""

SCOPES: tuple[Scope, ...] = get_args(Scope)

_SECRET = re.compile("ek-[A-Za-z0-9_-]{16,}")
_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
# Labels of the metrics.
_RESERVED = frozenset({"anonymous", "other"})
_TIME = "%Y-%m-%dT%H:%M:%SZ"
_MAX_PER_MINUTE = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key and its limits.

    Attributes:
        id: Public id, for the log and for `edgekit key revoke`.
        name: Unique name; an MQTT user of this name has the key's limits too.
        digest: SHA-256 of the secret.
        created: When it was made, RFC 3339 in UTC.
        expires: When it ceases to be valid, RFC 3339 in UTC; None never.
        scopes: What it may be used for.
        requests_per_minute: Maximum rate of requests; None is no limit.
        tokens_per_minute: Maximum rate of prompt and completion tokens; None is no limit.
        share: Weight in the fair queue: with 2 it gets twice the tokens of one with 1 while both wait.
        priority: The smallest `priority` that its requests may have.
        models: Models that it may use; empty for all.
        tenant: Keys of one tenant share the prefix cache; None is a tenant of its own.
    """

    id: str
    name: str
    digest: bytes = field(repr=False)
    created: str
    expires: str | None = None
    scopes: tuple[Scope, ...] = ("inference",)
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    share: float = 1.0
    priority: int = 0
    models: tuple[str, ...] = ()
    tenant: str | None = None

    def __post_init__(self) -> None:
        """Reject values outside their ranges."""
        check_name(self.name, "name")
        if self.tenant is not None:
            check_name(self.tenant, "tenant")
        for name in ("requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= _MAX_PER_MINUTE:
                raise ConfigError(f"`{name}` must be between 1 and {_MAX_PER_MINUTE}, not {value}")
        if not 0.01 <= self.share <= 100:
            raise ConfigError(f"`share` must be between 0.01 and 100, not {self.share:g}")
        if not -1000 <= self.priority <= 1000:
            raise ConfigError(f"`priority` must be between -1000 and 1000, not {self.priority}")
        if not self.scopes:
            raise ConfigError("a key needs a scope", hint="scopes: " + ", ".join(SCOPES))
        for scope in self.scopes:
            if scope not in SCOPES:
                raise ConfigError(f"unknown scope `{scope}`", hint="scopes: " + ", ".join(SCOPES))
        if self.expires is not None:
            _parse_time(self.expires)

    def expired(self, now: datetime | None = None) -> bool:
        """Whether it has expired.

        Args:
            now: The time; None is now.
        """
        return self.expires is not None and (now or datetime.now(timezone.utc)) >= _parse_time(self.expires)

    def to_json(self) -> dict[str, Any]:
        """Return its entry in the keys file."""
        return {
            "id": self.id,
            "name": self.name,
            "sha256": self.digest.hex(),
            "created": self.created,
            "expires": self.expires,
            "scopes": list(self.scopes),
            "requests_per_minute": self.requests_per_minute,
            "tokens_per_minute": self.tokens_per_minute,
            "share": self.share,
            "priority": self.priority,
            "models": list(self.models),
            "tenant": self.tenant,
        }

    @classmethod
    def from_json(cls, entry: object) -> ApiKey:
        """Read an entry of the keys file.

        Raises:
            ConfigError: A field is missing or wrong, or unknown: it may restrict the key.
        """
        if not isinstance(entry, Mapping):
            raise ConfigError("a key must be a JSON object")
        known = ("id", "name", "sha256", *_OPTIONAL)
        for name in entry:
            if name not in known:
                meant = nearest(str(name), known)
                raise ConfigError(
                    f"unknown field `{name}` of a key",
                    hint=f"did you mean `{meant}`?" if meant else "a newer edgekit may have written it",
                )
        digest = _field(entry, "sha256", str)
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise ConfigError("`sha256` of a key must be 64 hexadecimal digits")
        return cls(
            id=_field(entry, "id", str),
            name=_field(entry, "name", str),
            digest=bytes.fromhex(digest),
            created=_field(entry, "created", str, ""),
            expires=_field(entry, "expires", str, None),
            scopes=cast("tuple[Scope, ...]", _strings(entry, "scopes", ("inference",))),
            requests_per_minute=_field(entry, "requests_per_minute", int, None),
            tokens_per_minute=_field(entry, "tokens_per_minute", int, None),
            share=float(_field(entry, "share", (int, float), 1.0)),
            priority=_field(entry, "priority", int, 0),
            models=_strings(entry, "models", ()),
            tenant=_field(entry, "tenant", str, None),
        )


_OPTIONAL = (
    "created",
    "expires",
    "scopes",
    "requests_per_minute",
    "tokens_per_minute",
    "share",
    "priority",
    "models",
    "tenant",
)
_REQUIRED = object()


def new_secret() -> tuple[str, str]:
    """Return the id and the secret of a new key."""
    return secrets.token_hex(4), f"ek-{secrets.token_urlsafe(32)}"


def digest_of(secret: bytes) -> bytes:
    """Return the SHA-256 of what a client presents as its key."""
    return hashlib.sha256(secret).digest()


def redact(text: str) -> str:
    """Return a text from a client with everything that looks like a key replaced, for the log."""
    return _SECRET.sub("ek-…", text)


def check_name(name: str, what: str) -> str:
    """Return a key's or a tenant's name.

    Raises:
        ConfigError: It is no such name.
    """
    if not _NAME.fullmatch(name) or name in _RESERVED:
        raise ConfigError(
            f"{name!r} cannot be a {what}",
            hint="use up to 64 letters, digits and `.`, `_`, `@`, `-`, beginning with a letter or a digit"
            + (f"; `{name}` is reserved" if name in _RESERVED else ""),
        )
    return name


def timestamp(at: datetime) -> str:
    """Return a time as RFC 3339 in UTC, in seconds."""
    return at.astimezone(timezone.utc).strftime(_TIME)


def _parse_time(text: str) -> datetime:
    try:
        return datetime.strptime(text, _TIME).replace(tzinfo=timezone.utc)
    except ValueError as error:
        raise ConfigError(f"`expires` must be a time such as 2027-01-31T00:00:00Z, not {text!r}") from error


def _field(entry: Mapping[Any, Any], name: str, kind: Any, default: Any = _REQUIRED) -> Any:
    value = entry.get(name, default)
    if value is _REQUIRED:
        raise ConfigError(f"a key has no `{name}`")
    # True is an int in Python.
    if value is not default and (not isinstance(value, kind) or isinstance(value, bool)):
        raise ConfigError(f"`{name}` of a key has the wrong type: {value!r}")
    return value


def _strings(entry: Mapping[Any, Any], name: str, default: tuple[str, ...]) -> tuple[str, ...]:
    value = entry.get(name, list(default))
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"`{name}` of a key must be a list of strings")
    return tuple(value)
