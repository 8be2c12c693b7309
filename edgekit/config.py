"""Daemon configuration: defaults, then `edgekit.yaml`, then the environment, then flags; into frozen dataclasses.

The types of the fields are the schema (see `yaml_lines`). What a value means to a door is the door's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_origin

from edgekit.errors import ConfigError, nearest
from edgekit.yaml_lines import Between, Matches, Source, Tree, build, convert, field_types, read

__all__ = ["DaemonConfig", "GenerationConfig", "HttpConfig", "MqttConfig", "find_config", "load_config"]

Port = Annotated[int, Between(0, 65535)]
TopicLevels = Annotated[
    str, Matches(r"[^+#$/\s][^+#\s]*[^+#/\s]|[^+#$/\s]", "must be topic levels without + # or spaces")
]
TopicLevel = Annotated[str, Matches(r"[^+#$/\s]+", "must be one topic level: no / + # $ or spaces")]

# Variables that systemd sets, and the line of the unit that makes it do so.
_SYSTEMD = {
    "CACHE_DIRECTORY": "CacheDirectory=",
    "CREDENTIALS_DIRECTORY": "LoadCredential=",
    "STATE_DIRECTORY": "StateDirectory=",
}


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """The HTTP door.

    Attributes:
        enabled: Open this door.
        host: Address to listen on; loopback unless the user opens it.
        port: 0 lets the system choose.
        max_body_bytes: A larger request body is refused.
    """

    enabled: bool = True
    host: Annotated[str, Matches(r"\S+", "must be an address or a host name")] = "127.0.0.1"
    port: Port = 8090
    max_body_bytes: Annotated[int, Between(1024, 1 << 30)] = 1_048_576


@dataclass(frozen=True, slots=True)
class MqttConfig:
    """The MQTT door.

    Attributes:
        host: The broker; None keeps the door closed.
        port: The broker's port; 8883 is usual with TLS.
        device_id: Names this device in topics; the host's name unless set.
        prefix: First level of every topic.
        username: For the broker; None connects without one.
        password_file: File that holds the password (a systemd credential, say); never the password itself.
        tls: Use TLS; `ca_file` None trusts the system's authorities.
        ca_file: Authorities to trust instead of the system's, PEM.
        reply_prefixes: Response topics must start with one of these; empty allows any topic outside
            `prefix/…` and `$…`.
        keepalive_s: Seconds of silence after which the broker takes us for dead.
        session_expiry_s: How long the broker keeps our session, and queued requests, while we are away.
        coalesce_ms: Deltas of one answer are gathered this long into one message.
        max_payload_bytes: A larger request is refused.
    """

    host: Annotated[str, Matches(r"\S+", "must be an address or a host name")] | None = None
    port: Annotated[int, Between(1, 65535)] = 1883
    device_id: TopicLevel | None = None
    prefix: TopicLevels = "edgekit"
    username: str | None = None
    password_file: Path | None = None
    tls: bool = False
    ca_file: Path | None = None
    reply_prefixes: tuple[str, ...] = ()
    keepalive_s: Annotated[int, Between(5, 65535)] = 30
    session_expiry_s: Annotated[int, Between(0, 0xFFFFFFFF)] = 3600
    coalesce_ms: Annotated[int, Between(0, 10_000)] = 80
    max_payload_bytes: Annotated[int, Between(1024, 268_435_455)] = 1_048_576


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """The generation core.

    Attributes:
        context_length: Tokens a sequence may hold; None takes the bundle's own.
        max_queue: Requests that may wait; one more is answered `overloaded`.
        threads: Threads of the runner; None takes one per physical core.
        prefix_memory_mib: KV cache of prompts' beginnings kept in memory; 0 keeps none.
        prefix_folder: Where it is kept on disk as well, and outlives a restart; None keeps none.
        prefix_disk_mib: Never more than this on disk.
        parallel: Answers that are made at the same time.
        kv_cache_mib: Most KV cache in memory; None takes what the memory plan leaves.
        kv_cache_bits: 8 halves the KV cache, where the runner can; None keeps it as the model computes it.
        speculation: Guess tokens ahead where it pays, for requests that do not say.
        draft_bundle: Folder of a smaller model's bundle, of the same tokenizer, that guesses too.
        draft_max: How many tokens it guesses at most in a step.
    """

    context_length: Annotated[int, Between(64, 1 << 24)] | None = None
    max_queue: Annotated[int, Between(1, 10_000)] = 16
    threads: Annotated[int, Between(1, 1024)] | None = None
    prefix_memory_mib: Annotated[int, Between(0, 999_999)] = 256
    prefix_folder: Path | None = None
    prefix_disk_mib: Annotated[int, Between(1, 999_999)] = 4096
    parallel: Annotated[int, Between(1, 64)] = 8
    kv_cache_mib: Annotated[int, Between(1, 1 << 20)] | None = None
    kv_cache_bits: Annotated[int, Between(8, 8)] | None = None
    speculation: bool = True
    draft_bundle: Path | None = None
    draft_max: Annotated[int, Between(1, 64)] = 8


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """Everything `edgekit serve` reads.

    Attributes:
        bundle: Folder of the bundle to serve.
        http: The HTTP door.
        mqtt: The MQTT door.
        generation: The generation core.
        log_level: The least severe message that is logged.
    """

    bundle: Path | None = None
    http: HttpConfig = field(default_factory=HttpConfig)
    mqtt: MqttConfig = field(default_factory=MqttConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def find_config(env: Mapping[str, str], system: Path = Path("/etc/edgekit/edgekit.yaml")) -> Path | None:
    """Return the file to read when none is named: the user's, then the system's; None if there is neither.

    The working directory is not searched: a daemon started in someone's checkout must not obey it.
    `$EDGEKIT_CONFIG` names a file as `--config` does, so it is returned even if it does not exist.
    """
    if env.get("EDGEKIT_CONFIG"):
        return Path(env["EDGEKIT_CONFIG"])
    home = env.get("XDG_CONFIG_HOME") or (f"{env['HOME']}/.config" if env.get("HOME") else "")
    candidates = ([Path(home) / "edgekit" / "edgekit.yaml"] if home else []) + [system]
    return next((path for path in candidates if path.is_file()), None)


def load_config(path: Path | None, *, env: Mapping[str, str], overrides: Mapping[str, object]) -> DaemonConfig:
    """Return the configuration: defaults < file < environment < overrides.

    Args:
        path: The file; None reads the one that `find_config` finds, if any.
        env: The environment. `EDGEKIT_HTTP_PORT` is `http.port`; lists are separated by commas.
        overrides: Values of flags by dotted key (`http.port`); None means that the flag was not given.

    Raises:
        ConfigError: With file and line, or variable: an unknown key, a wrong value, a file that cannot be read.
    """
    named = path if path is not None else find_config(env)
    tree: Tree = {}
    if named is not None:
        source = Source(str(named), _path_reader(named.parent, env))
        tree = read(_text(named), DaemonConfig, source)
    for variable, keys, kind in _variables():
        if env.get(variable):  # a variable set to nothing is one not set
            source = Source(f"${variable}", _path_reader(Path(), env))
            _put(tree, keys, _from_text(kind, env[variable], source, ".".join(keys)))
    _refuse_unknown_variables(env)
    for key, value in overrides.items():
        if value is not None:
            _put(tree, *_override(key, value))
    return build(DaemonConfig, tree, Source("configuration"))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {path}", hint="see docs/configuration.md") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error


def _path_reader(folder: Path, env: Mapping[str, str]) -> Callable[[str], Path]:
    """Paths may start with `~` and hold `$NAME`; a relative one is relative to the file it stands in."""

    def variable(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not env.get(name):
            setting = _SYSTEMD.get(name)
            hint = setting and f"systemd sets it where the unit has {setting}"
            raise ConfigError(f"${name} is not set, and a path in the configuration uses it", hint=hint)
        return env[name]

    def reader(text: str) -> Path:
        if text.startswith("~/") and env.get("HOME"):
            text = env["HOME"] + text[1:]
        return folder / re.sub(r"\$(?:\{(\w+)\}|(\w+))", variable, text)

    return reader


def _variables() -> list[tuple[str, tuple[str, ...], Any]]:
    """Every environment variable, with the keys and the type of what it sets."""
    found: list[tuple[str, tuple[str, ...], Any]] = []
    for name, kind in field_types(DaemonConfig).items():
        if is_dataclass(kind):
            inner = field_types(kind)  # type: ignore[arg-type] # a dataclass here is always a type
            found += [(f"EDGEKIT_{name}_{key}".upper(), (name, key), inner[key]) for key in inner]
        else:
            found.append((f"EDGEKIT_{name}".upper(), (name,), kind))
    return found


def _refuse_unknown_variables(env: Mapping[str, str]) -> None:
    """A mistyped `EDGEKIT_MQTT_HOTS` would otherwise be ignored in silence."""
    known = [variable for variable, _, _ in _variables()]
    sections = tuple(
        f"EDGEKIT_{name}_".upper() for name, kind in field_types(DaemonConfig).items() if is_dataclass(kind)
    )
    for variable in sorted(env):
        if variable.startswith(sections) and variable not in known:
            meant = nearest(variable, known)
            hint = f"did you mean `{meant}`?" if meant else None
            raise ConfigError(f"unknown environment variable `{variable}`", hint=hint)


def _from_text(kind: Any, text: str, source: Source, where: str) -> Any:
    if get_origin(kind) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return convert(kind, text, source, where)


def _override(key: str, value: object) -> tuple[tuple[str, ...], Any]:
    known = {".".join(keys): (keys, kind) for _, keys, kind in _variables()}
    if key not in known:
        raise ConfigError(f"unknown setting `{key}`", hint="known: " + ", ".join(sorted(known)))
    keys, kind = known[key]
    if isinstance(value, (list, tuple)):
        return keys, tuple(value)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    # A path from the command line is taken as it is: the shell has expanded `~` and `$` already.
    return keys, convert(kind, text, Source("command line"), key)


def _put(tree: Tree, keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value
