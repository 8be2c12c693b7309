from __future__ import annotations

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from edgekit.config import DaemonConfig, find_config, load_config
from edgekit.errors import ConfigError
from edgekit.yaml_lines import field_types

REPOSITORY = Path(__file__).parent.parent


def write(folder: Path, text: str) -> Path:
    path = folder / "edgekit.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def keys() -> list[str]:
    found = []
    for item in fields(DaemonConfig):
        value = getattr(DaemonConfig(), item.name)
        if is_dataclass(value):
            found += [f"{item.name}.{inner.name}" for inner in fields(value)]
        else:
            found.append(item.name)
    return found


def test_without_settings_the_defaults_apply(tmp_path: Path) -> None:
    assert load_config(None, env={"HOME": str(tmp_path)}, overrides={}) == DaemonConfig()


def test_flags_beat_the_environment_which_beats_the_file_which_beats_the_defaults(tmp_path: Path) -> None:
    path = write(tmp_path, "log_level: debug\nhttp: {port: 1, host: a}\nmqtt: {host: b}\n")
    env = {"EDGEKIT_HTTP_PORT": "2", "EDGEKIT_HTTP_HOST": "c", "EDGEKIT_GENERATION_MAX_QUEUE": "", "PATH": "/bin"}
    config = load_config(path, env=env, overrides={"http.port": 3, "mqtt.host": None, "http.enabled": False})
    assert (config.http.port, config.http.host, config.mqtt.host) == (3, "c", "b")
    assert (config.http.enabled, config.log_level, config.generation.max_queue) == (False, "debug", 256)


def test_lists_come_from_the_environment_separated_by_commas() -> None:
    config = load_config(None, env={"EDGEKIT_MQTT_REPLY_PREFIXES": "a/, b/,"}, overrides={})
    assert config.mqtt.reply_prefixes == ("a/", "b/")


def test_aliases_come_from_the_file_the_environment_or_flags_and_are_names(tmp_path: Path) -> None:
    path = write(tmp_path, "bundle: b\naliases: [gpt-4o, 'org/model:8b']\n")
    assert load_config(path, env={}, overrides={}).aliases == ("gpt-4o", "org/model:8b")
    assert load_config(path, env={"EDGEKIT_ALIASES": "a, b"}, overrides={"aliases": None}).aliases == ("a", "b")
    assert load_config(path, env={}, overrides={"aliases": ["c"]}).aliases == ("c",)
    for wrong in ("''", "a b", "'a,b'", '"a\\nb"'):
        with pytest.raises(ConfigError, match=r"edgekit\.yaml:1: `aliases\[0\]` must be a name"):
            load_config(write(tmp_path, f"aliases: [{wrong}]"), env={}, overrides={})
    with pytest.raises(ConfigError, match="must be a list"):
        load_config(write(tmp_path, "aliases: gpt-4o"), env={}, overrides={})
    with pytest.raises(ConfigError, match=r"EDGEKIT_ALIASES.*must be a name"):
        load_config(None, env={"EDGEKIT_ALIASES": "a b"}, overrides={})
    with pytest.raises(ConfigError, match="command line: `aliases` must not be empty"):
        load_config(None, env={}, overrides={"aliases": [""]})


def test_relative_paths_are_relative_to_the_file_and_variables_are_filled_in(tmp_path: Path) -> None:
    path = write(tmp_path, "bundle: here/b\nmqtt:\n  password_file: $CREDENTIALS_DIRECTORY/p\n  ca_file: ~/${X}.pem\n")
    env = {"CREDENTIALS_DIRECTORY": "/run/credentials/edgekit.service", "HOME": "/home/u", "X": "ca"}
    config = load_config(path, env=env, overrides={})
    assert config.bundle == tmp_path / "here/b"
    assert config.mqtt.password_file == Path("/run/credentials/edgekit.service/p")
    assert config.mqtt.ca_file == Path("/home/u/ca.pem")


def test_a_path_that_uses_an_unset_variable_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "mqtt: {password_file: $CREDENTIALS_DIRECTORY/p}\n")
    with pytest.raises(ConfigError, match=r"but \$CREDENTIALS_DIRECTORY is not set") as caught:
        load_config(path, env={}, overrides={})
    assert "LoadCredential" in (caught.value.hint or "")
    path = write(tmp_path, "generation: {prefix_folder: $CACHE_DIRECTORY}\n")
    with pytest.raises(ConfigError, match=r"\$CACHE_DIRECTORY is not set") as caught:
        load_config(path, env={}, overrides={})
    assert "CacheDirectory=" in (caught.value.hint or "")
    assert load_config(path, env={"CACHE_DIRECTORY": "/c"}, overrides={}).generation.prefix_folder == Path("/c")


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_known_one(tmp_path: Path) -> None:
    path = write(tmp_path, "# broker\nmqtt:\n  port: 1883\n  hots: broker\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path, env={}, overrides={})
    assert caught.value.message == f"{path}:4: unknown key `hots` in `mqtt`"
    assert caught.value.hint == "did you mean `host`?"
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("http: {port: 65536}", "`http.port` must be between 0 and 65535, not `65536`"),
        ("http: {host: a b}", "`http.host` must be an address or a host name"),
        ("mqtt: {port: 0}", "`mqtt.port` must be between 1 and 65535"),
        ("mqtt: {device_id: a/b}", "`mqtt.device_id` must be one topic level"),
        ("mqtt: {prefix: 'a/#'}", "`mqtt.prefix` must be topic levels"),
        ("mqtt: {prefix: $SYS}", "`mqtt.prefix` must be topic levels"),
        ("mqtt: {prefix: a/}", "`mqtt.prefix` must be topic levels"),
        ("generation: {max_queue: 0}", "`generation.max_queue` must be between 1 and 10000"),
        ("generation: {prefix_memory_mib: -1}", "`generation.prefix_memory_mib` must be between 0 and 999999"),
        ("generation: {prefix_disk_mib: 0}", "`generation.prefix_disk_mib` must be between 1 and 999999"),
        ("log_level: loud", "`log_level` must be one of debug, info, warning, error"),
    ],
)
def test_a_value_out_of_range_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(write(tmp_path, text), env={}, overrides={})


def test_every_bound_is_spelled_in_digits(tmp_path: Path) -> None:
    bounds = [
        (f"{section}.{key}", rule)
        for section, kind in field_types(DaemonConfig).items()
        if is_dataclass(kind)
        for key, annotated in field_types(kind).items()  # type: ignore[arg-type] # a dataclass here is always a type
        for rule in re.findall(r"Between\(low=(\d+), high=(\d+)\)", repr(annotated))
    ]
    assert len(bounds) > 15
    for key, (low, high) in bounds:
        section, name = key.split(".")
        rule = low if low == high else f"between {low} and {high}"
        with pytest.raises(ConfigError, match=rf"`{key}` must be {rule}, not `{int(high) + 1}`$"):
            load_config(write(tmp_path, f"{section}: {{{name}: {int(high) + 1}}}"), env={}, overrides={})


def test_a_mistyped_environment_variable_is_named() -> None:
    with pytest.raises(ConfigError, match="EDGEKIT_MQTT_HOTS") as caught:
        load_config(None, env={"EDGEKIT_MQTT_HOTS": "x"}, overrides={})
    assert caught.value.hint == "did you mean `EDGEKIT_MQTT_HOST`?"


def test_a_wrong_environment_value_names_its_variable() -> None:
    with pytest.raises(ConfigError, match=r"\$EDGEKIT_HTTP_PORT: `http.port` must be a whole number"):
        load_config(None, env={"EDGEKIT_HTTP_PORT": "http"}, overrides={})


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting `http\.prot`"):
        load_config(None, env={}, overrides={"http.prot": 1})


def test_a_missing_file_is_an_error_only_if_it_was_named(tmp_path: Path) -> None:
    for path, env in ((tmp_path / "no.yaml", {}), (None, {"EDGEKIT_CONFIG": str(tmp_path / "no.yaml")})):
        with pytest.raises(ConfigError, match="there is no configuration file"):
            load_config(path, env=env, overrides={})


def test_a_file_that_is_not_text_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "edgekit.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_config(path, env={}, overrides={})
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_config(tmp_path, env={}, overrides={})


def test_the_users_file_comes_before_the_systems_and_the_working_directory_is_not_searched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    user, system = tmp_path / ".config/edgekit/edgekit.yaml", tmp_path / "etc/edgekit.yaml"
    write(tmp_path, "")
    monkeypatch.chdir(tmp_path)
    env = {"HOME": str(tmp_path)}
    assert find_config(env, system) is None
    for path in (system, user):
        path.parent.mkdir(parents=True)
        path.touch()
        assert find_config(env, system) == path
    assert find_config({**env, "XDG_CONFIG_HOME": str(tmp_path / "x")}, system) == system
    assert find_config({**env, "EDGEKIT_CONFIG": "/c.yaml"}, system) == Path("/c.yaml")


def test_the_documentation_lists_every_key_with_its_variable() -> None:
    text = (REPOSITORY / "docs/configuration.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `([a-z_.]+)` \| `(\w+)` \|", text, re.MULTILINE)
    assert sorted(listed) == sorted((key, "EDGEKIT_" + key.replace(".", "_").upper()) for key in keys())


def test_the_sample_has_every_key_with_its_default(tmp_path: Path) -> None:
    sample = (REPOSITORY / "systemd/edgekit.yaml").read_text(encoding="utf-8")
    assert load_config(write(tmp_path, sample), env={}, overrides={}) == DaemonConfig()
    uncommented = re.sub(r"^( *)#(?=\w)", r"\1", sample, flags=re.MULTILINE)
    assert load_config(write(tmp_path, uncommented), env={}, overrides={}) == DaemonConfig()
    for key in keys():
        assert re.search(rf"^ *#{key.rpartition('.')[2]}: ", sample, re.MULTILINE), key
