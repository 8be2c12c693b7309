"""Daemon configuration as frozen dataclasses: defaults < `edgekit.yaml` < environment < flags.

The fields' types are the schema (see `yaml_lines`).
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from edgekit.errors import ConfigError, EdgekitError, nearest
from edgekit.yaml_lines import Between, Matches, Source, Tree, build, convert, field_types, read

__all__ = [
    "DEFAULT_ORIGINS",
    "MAX_PARALLEL",
    "MAX_THREADS",
    "MIN_CONTEXT",
    "AccessConfig",
    "DaemonConfig",
    "GenerationConfig",
    "HttpConfig",
    "MqttConfig",
    "RunnerName",
    "find_config",
    "load_config",
]

Port = Annotated[int, Between(0, 65535)]
TopicLevels = Annotated[
    str, Matches(r"[^+#$/\s][^+#\s]*[^+#/\s]|[^+#$/\s]", "must be topic levels without + # or spaces")
]
ModelName = Annotated[str, Matches(r"[^\s,]{1,256}", "must be a name without spaces and commas")]
TopicLevel = Annotated[str, Matches(r"[^+#$/\s]+", "must be one topic level: no / + # $ or spaces")]

MAX_PARALLEL = 64
"""Sequence slots of a runner. More would only wait for memory: a step's time grows with its sequences."""

MAX_THREADS = 1024

MIN_CONTEXT = 64
"""Tokens of the shortest sequence that is configured or an engine built for: a chat's template alone takes tens."""

RunnerName = Literal["auto", "tensorrt", "cuda", "cpu", "onnxruntime", "mlx"]
"""What runs a model: `auto` takes the best that works; a fixed one is used, or the model is not loaded."""

# Variables that systemd sets, and the unit setting that each comes from.
_SYSTEMD = {
    "CACHE_DIRECTORY": "CacheDirectory=",
    "CREDENTIALS_DIRECTORY": "LoadCredential=",
    "RUNTIME_DIRECTORY": "RuntimeDirectory=",
    "STATE_DIRECTORY": "StateDirectory=",
}


DEFAULT_ORIGINS = (
    *(
        f"{scheme}://{host}:*"
        for host in ("localhost", "127.0.0.1", "0.0.0.0", "[::1]")  # noqa: S104  not bound
        for scheme in ("http", "https")
    ),
    "app://*",
    "file://*",
    "tauri://*",
    "vscode-webview://*",
    "vscode-file://*",
)
"""Origins of web pages that may send requests: those that Ollama allows, and `[::1]`."""


@dataclass(frozen=True, slots=True)
class HttpConfig:
    """The HTTP API.

    Attributes:
        enabled: Whether to serve it.
        tcp: Whether to listen on `host` and `port`; otherwise on `socket` only.
        host: Address to listen on; only loopback by default.
        port: Port; 0 takes a free one.
        insecure: Answer other machines without API keys.
        socket: Path of a Unix socket to listen on, too.
        socket_mode: Its permissions, in octal: who may write may connect.
        tls_certificate: Certificate chain, PEM; serves HTTPS. The Unix socket is not encrypted.
        tls_key: Its private key, PEM.
        allowed_origins: Origins of web pages that may send requests, besides the daemon's own: `https://chat.example`,
            with `:*` on any port, `https://*.example` for any subdomain, `app://*` for a scheme, `*` for any.
        allowed_hosts: Names that a request's `Host` may have, besides addresses and `localhost`. Empty allows any if
            `host` is not a loopback address.
        trusted_proxies: Addresses or networks of proxies whose `X-Forwarded-For` names the client.
        max_body_bytes: Maximum size of a request body.
        max_connections: Maximum number of connections; fewer if the process may open fewer files.
        max_connections_per_client: Maximum number of connections from one address.
        stored_responses: Maximum number of responses kept for `previous_response_id`; 0 keeps none.
        stored_responses_mib: Maximum size of them all, in MiB.
        stored_responses_hours: Hours after which one that is not used is dropped.
    """

    enabled: bool = True
    host: Annotated[str, Matches(r"\S+", "must be an address or a host name")] = "127.0.0.1"
    port: Port = 8090
    tcp: bool = True
    insecure: bool = False
    socket: Path | None = None
    socket_mode: Annotated[str, Matches("0?[0-7]{3}", "must be an octal mode such as 0660")] = "0660"
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    allowed_origins: tuple[str, ...] = DEFAULT_ORIGINS
    allowed_hosts: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    max_body_bytes: Annotated[int, Between(1024, 1 << 30)] = 1_048_576
    max_connections: Annotated[int, Between(8, 65_536)] = 1024
    max_connections_per_client: Annotated[int, Between(1, 65_536)] = 512
    stored_responses: Annotated[int, Between(0, 100_000)] = 512
    stored_responses_mib: Annotated[int, Between(1, 1024)] = 16
    stored_responses_hours: Annotated[int, Between(1, 720)] = 24


@dataclass(frozen=True, slots=True)
class MqttConfig:
    """The MQTT API.

    Attributes:
        host: The broker; None disables the MQTT API.
        port: The broker's port; usually 8883 with TLS.
        device_id: This device's name in topics; None means that of `edgekit.device_id`.
        prefix: First level or levels of every topic.
        username: User name for the broker; None connects without one.
        password_file: File that contains the password, such as a systemd credential; never the password itself.
        tls: Use TLS.
        ca_file: CA certificates to trust, PEM; None means the system's.
        reply_prefixes: Allowed prefixes of response topics; empty allows any topic outside `prefix/…` and `$…`, and a
            user those below `replies/USER`.
        keepalive_s: MQTT Keep Alive in seconds: after 1.5 times as much silence the broker closes the connection.
        session_expiry_s: How long the broker keeps the session, with queued requests, while the device is offline.
        require_user: Answer only requests whose topic ends with a user's name, which the broker's access list binds.
        coalesce_ms: Time over which deltas of an answer are coalesced into one message.
        max_payload_bytes: Maximum size of a request.
        durable: Keep requests, answers and unsent replies in the state folder, so that none is lost if the daemon ends.
        inbox_requests: Maximum number of requests that are not answered yet, and of replies that have not left.
        inbox_mib: Maximum size of these requests, in MiB.
        record_replies: Maximum number of answers kept for repeated requests.
        record_mib: Maximum size of them all, in MiB.
        record_hours: Hours for which an answer is kept.
        state_interval_s: Least time between two messages on the state topic, in seconds.
        home_assistant: Announce this device to Home Assistant.
        home_assistant_prefix: Home Assistant's discovery prefix.
        home_assistant_user: Home Assistant's user name at the broker, by which it asks; None asks without one.
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
    require_user: bool = False
    keepalive_s: Annotated[int, Between(5, 65535)] = 30
    session_expiry_s: Annotated[int, Between(0, 0xFFFFFFFF)] = 3600
    coalesce_ms: Annotated[int, Between(0, 10_000)] = 80
    max_payload_bytes: Annotated[int, Between(1024, 268_435_455)] = 1_048_576
    durable: bool = True
    inbox_requests: Annotated[int, Between(1, 100_000)] = 4096
    inbox_mib: Annotated[int, Between(1, 1024)] = 32
    record_replies: Annotated[int, Between(1, 100_000)] = 4096
    record_mib: Annotated[int, Between(1, 1024)] = 16
    record_hours: Annotated[int, Between(1, 720)] = 24
    state_interval_s: Annotated[int, Between(1, 3600)] = 5
    home_assistant: bool = False
    home_assistant_prefix: TopicLevels = "homeassistant"
    home_assistant_user: TopicLevel | None = None


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """Generation.

    Attributes:
        context_length: Maximum tokens of a sequence; None means the bundle's.
        max_queue: Maximum number of waiting requests; a further one is answered `overloaded`.
        max_queue_mib: Maximum memory of the prompts of all requests; more are answered `overloaded` too.
        runner: What runs the model; a draft model's runner is always chosen automatically.
        build_engine: Build the TensorRT engine of a bundle for a Jetson or an RTX card at the first start.
        threads: Threads of the runner; None means one per usable core (`cores.py`).
        prefix_memory_mib: Prefix cache in memory; 0 disables it.
        prefix_folder: Folder of the prefix cache on disk, which survives a restart; None disables it.
        prefix_disk_mib: Maximum size of the prefix cache on disk.
        parallel: Maximum number of answers generated at the same time.
        kv_cache_mib: Maximum KV cache in memory, a draft model's included; None means what the memory plan leaves.
        kv_cache_bits: 8 halves the KV cache on runners that support it; None stores it as the model computes it.
        speculation: Default of a request's `speculation`: speculative decoding where it pays.
        draft_bundle: Folder of a draft model's bundle, with the same tokenizer.
        draft_max: Maximum draft tokens per step from the draft model.
        ignore_compatible: Run a bundle that was made for other targets than this machine.
    """

    context_length: Annotated[int, Between(MIN_CONTEXT, 1 << 24)] | None = None
    max_queue: Annotated[int, Between(1, 10_000)] = 256
    max_queue_mib: Annotated[int, Between(1, 1 << 20)] = 64
    runner: RunnerName = "auto"
    build_engine: bool = True
    threads: Annotated[int, Between(1, MAX_THREADS)] | None = None
    prefix_memory_mib: Annotated[int, Between(0, 999_999)] = 256
    prefix_folder: Path | None = None
    prefix_disk_mib: Annotated[int, Between(1, 999_999)] = 4096
    parallel: Annotated[int, Between(1, MAX_PARALLEL)] = 8
    kv_cache_mib: Annotated[int, Between(1, 1 << 20)] | None = None
    kv_cache_bits: Annotated[int, Between(8, 8)] | None = None
    speculation: bool = True
    draft_bundle: Path | None = None
    draft_max: Annotated[int, Between(1, 64)] = 8
    ignore_compatible: bool = False


@dataclass(frozen=True, slots=True)
class AccessConfig:
    """Who may ask, over HTTP and MQTT.

    Attributes:
        keys_file: The API keys; None means `keys.json` in the state folder.
        audit: Where a line is written for each request: nowhere, into the daemon's log, or into `audit_file`.
        audit_file: None means `audit.jsonl` in the state folder.
        audit_mib: Size at which the file is rotated; four older ones are kept.
    """

    keys_file: Path | None = None
    audit: Literal["off", "log", "file"] = "off"
    audit_file: Path | None = None
    audit_mib: Annotated[int, Between(1, 4096)] = 16


@dataclass(frozen=True, slots=True)
class DaemonConfig:
    """Everything `edgekit serve` reads.

    Attributes:
        bundle: Folder of the bundle to serve.
        aliases: Further names by which requests may name its model, such as one that an application has fixed.
        http: The HTTP API.
        mqtt: The MQTT API.
        generation: Generation.
        access: Who may ask.
        log_level: Minimum severity of logged messages.
    """

    bundle: Path | None = None
    aliases: tuple[ModelName, ...] = ()
    http: HttpConfig = field(default_factory=HttpConfig)
    mqtt: MqttConfig = field(default_factory=MqttConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    access: AccessConfig = field(default_factory=AccessConfig)
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def find_config(env: Mapping[str, str], system: Path = Path("/etc/edgekit/edgekit.yaml")) -> Path | None:
    """Return the default configuration file: the user's, else the system's, else None.

    The working directory is not searched, so that a checkout's file cannot configure a daemon started in it.
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
        path: The file; None reads the one that `find_config` returns, if any.
        env: The environment. `EDGEKIT_HTTP_PORT` is `http.port`; lists are separated by commas.
        overrides: Values of flags by dotted key (`http.port`); None means that the flag was not given.

    Raises:
        ConfigError: An unknown key, an invalid value or an unreadable file; the message names file and line, or the
            variable.
    """
    named = path if path is not None else find_config(env)
    tree: Tree = {}
    if named is not None:
        source = Source(str(named), _path_reader(named.parent, env))
        tree = read(_text(named), DaemonConfig, source)
    for variable, keys, kind in _variables():
        if env.get(variable):  # an empty variable counts as not set
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
        # A disk or a network that fails now may work at the next start.
        wrong = error.errno in (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)
        raise (ConfigError if wrong else EdgekitError)(f"{path} cannot be read: {error.strerror}") from error


def _path_reader(folder: Path, env: Mapping[str, str]) -> Callable[[str], Path]:
    """Paths may start with `~` and contain `$NAME`; relative ones are relative to the file that contains them."""

    def variable(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if not env.get(name):
            setting = _SYSTEMD.get(name)
            hint = setting and f"systemd sets it if the unit has {setting}"
            raise ConfigError(f"a path in the configuration uses ${name}, but ${name} is not set", hint=hint)
        return env[name]

    def reader(text: str) -> Path:
        if text.startswith("~/") and env.get("HOME"):
            text = env["HOME"] + text[1:]
        return folder / re.sub(r"\$(?:\{(\w+)\}|(\w+))", variable, text)

    return reader


def _variables() -> list[tuple[str, tuple[str, ...], Any]]:
    """Every environment variable, with the keys and the type of the field it sets."""
    found: list[tuple[str, tuple[str, ...], Any]] = []
    for name, kind in field_types(DaemonConfig).items():
        if is_dataclass(kind):
            inner = field_types(kind)  # type: ignore[arg-type] # a dataclass here is always a type
            found += [(f"EDGEKIT_{name}_{key}".upper(), (name, key), inner[key]) for key in inner]
        else:
            found.append((f"EDGEKIT_{name}".upper(), (name,), kind))
    return found


def _refuse_unknown_variables(env: Mapping[str, str]) -> None:
    """Reject unknown variables, so that a mistyped `EDGEKIT_MQTT_HOTS` is not silently ignored."""
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
        parts = (part.strip() for part in text.split(","))
        return tuple(convert(get_args(kind)[0], part, source, where) for part in parts if part)
    return convert(kind, text, source, where)


def _override(key: str, value: object) -> tuple[tuple[str, ...], Any]:
    known = {".".join(keys): (keys, kind) for _, keys, kind in _variables()}
    if key not in known:
        raise ConfigError(f"unknown setting `{key}`", hint="known: " + ", ".join(sorted(known)))
    keys, kind = known[key]
    if isinstance(value, (list, tuple)):
        return keys, tuple(convert(get_args(kind)[0], str(part), Source("command line"), key) for part in value)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    # A path from the command line is taken literally: the shell has already expanded `~` and `$`.
    return keys, convert(kind, text, Source("command line"), key)


def _put(tree: Tree, keys: tuple[str, ...], value: Any) -> None:
    for key in keys[:-1]:
        tree = tree.setdefault(key, {})
    tree[keys[-1]] = value
