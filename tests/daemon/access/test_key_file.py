"""`edgekit key`, and the file that it writes, as a running daemon reads it."""

from __future__ import annotations

import hmac
import json
import os
import stat
import subprocess
import sys
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from edgekit.daemon.access import key_file
from edgekit.daemon.access.key_file import MAX_KEYS, add_key, default_keys_file, read_keys, revoke_key
from edgekit.daemon.access.key_store import KeySet, KeyStore
from edgekit.daemon.access.keys import ApiKey, digest_of, new_secret, redact, timestamp
from edgekit.errors import ConfigError, EdgekitError
from tests.conftest import edgekit_command


def make(name: str, **limits: object) -> tuple[ApiKey, str]:
    key_id, secret = new_secret()
    made = ApiKey(key_id, name, digest_of(secret.encode()), timestamp(datetime.now(timezone.utc)), **limits)  # type: ignore[arg-type]
    return made, secret


def key(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(edgekit_command("key", *arguments), capture_output=True, text=True, timeout=60, check=False)


def test_a_key_is_shown_once_and_kept_as_a_hash_in_a_file_of_mode_0600(tmp_path: Path) -> None:
    file = tmp_path / "state" / "keys.json"
    added = key("add", "ann", "--expires", "30d", "--tokens-per-minute", "1000", "--file", file)
    secret = added.stdout.strip()
    assert (added.returncode, secret[:3]) == (0, "ek-"), added.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    listed = key("list", "--json", "--file", file)
    (shown,) = json.loads(listed.stdout)
    assert (shown["name"], shown["tokens_per_minute"], shown["scopes"]) == ("ann", 1000, ["inference"])
    assert secret not in file.read_text() + listed.stdout + key("list", "--file", file).stdout + added.stderr
    assert KeySet(read_keys(file), configured=True).find(secret.encode()) == read_keys(file)[0]
    assert "already a key" in key("add", "ann", "--file", file).stderr
    assert "no keys are left" in key("revoke", "ann", "--file", file).stderr
    assert key("revoke", "ann", "--file", file).returncode == 2
    assert read_keys(file) == ()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("a b",), "cannot be a name"),
        (("other",), "reserved"),
        (("x", "--scope", "root"), "unknown scope"),
        (("x", "--expires", "1999-01-01"), "has passed"),
        (("x", "--expires", "soon"), "not a time"),
        (("x", "--expires", "99999y"), "not a time"),
        (("x", "--share", "nan"), "`share`"),
        (("x", "--requests-per-minute", "0"), "`requests_per_minute`"),
        (("x", "--priority", "-2000"), "`priority`"),
        (("x", "--tenant", "a/b"), "cannot be a tenant"),
    ],
)
def test_a_wrong_option_is_one_line_and_writes_nothing(
    tmp_path: Path,
    arguments: tuple[str, ...],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from edgekit.cli import main

    monkeypatch.setattr(sys, "argv", ["edgekit", "key", "add", *arguments, "--file", str(tmp_path / "keys.json")])
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert (ended.value.code, says in error, "Traceback" in error) == (2, True, False), error
    assert not (tmp_path / "keys.json").exists()


def test_keys_that_are_added_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    threads = [threading.Thread(target=add_key, args=(file, make(f"k{number}")[0])) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.name for one in read_keys(file)} == {f"k{number}" for number in range(24)}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 2, "keys": []}',
        b'{"version": 1, "keys": {}}',
        b'{"version": 1, "keys": [7]}',
        b'{"version": 1, "keys": [{"id": "a", "name": "a"}]}',
        b'{"version": 1, "keys": [{"id": "a", "name": "a", "sha256": "xy"}]}',
        b'{"version": 1, "keys": [{"id": "a", "name": "a", "sha256": "' + b"0" * 64 + b'", "hours": "9-17"}]}',
        b'{"version": 1, "keys": [{"id": "a", "name": "a", "sha256": "' + b"0" * 64 + b'", "scopes": []}]}',
        b'{"version": 1, "keys": [{"id": "a", "name": "a", "sha256": "' + b"0" * 64 + b'", "priority": true}]}',
        b"[" * 100_000,
        b"\xff\xfe",
    ],
)
def test_a_damaged_file_stops_a_start_and_leaves_a_running_daemon_its_keys(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys.json"
    made, secret = make("ann")
    add_key(file, made)
    store = KeyStore(file)
    assert store.load().find(secret.encode()) == made
    file.write_bytes(content)
    assert store.current().find(secret.encode()) == made
    assert "stay in use" in caplog.text
    with pytest.raises(ConfigError) as caught:
        KeyStore(file).load()
    assert (str(file) in caught.value.message, "\n" in caught.value.message) == (True, False)


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    add_key(file, make("ann")[0])
    file.chmod(0o620)
    with pytest.raises(ConfigError, match="other accounts"):
        KeyStore(file).load()


def test_a_running_store_sees_added_and_revoked_keys_and_a_removed_file(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    store = KeyStore(file)
    assert not store.load().configured
    made, secret = make("ann")
    add_key(file, made)
    assert store.current().find(secret.encode()) == made
    revoke_key(file, made.id)
    # Without keys, but with the file, keys are still required.
    assert (store.current().find(secret.encode()), store.current().configured) == (None, True)
    file.unlink()
    assert not store.current().configured


def test_an_unreadable_file_leaves_a_running_daemon_its_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    made, secret = make("ann")
    add_key(file, made)
    store = KeyStore(file)
    store.load()
    file.unlink()
    file.mkdir()
    assert store.current().find(secret.encode()) == made
    with pytest.raises(EdgekitError):
        KeyStore(file).load()


def test_unknown_wrong_truncated_and_almost_right_keys_take_the_same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [make(f"k{number}") for number in range(5)]
    keys = KeySet([one for one, _ in made], configured=True)
    right = made[2][1]
    flipped = right[:-1] + ("A" if right[-1] != "A" else "B")
    compared: list[tuple[bytes, bytes]] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    paths = []
    for presented in (b"", b"ek-unknown", right[:-1].encode(), right[:8].encode(), flipped.encode(), b"\xff" * 512):
        compared.clear()
        lines: list[int] = []

        def trace(frame: object, event: str, _: object, lines: list[int] = lines) -> object:
            if frame.f_code is KeySet.find.__code__ and event == "line":  # type: ignore[attr-defined]
                lines.append(frame.f_lineno)  # type: ignore[attr-defined]
            return trace

        before = sys.gettrace()
        sys.settrace(trace)  # type: ignore[arg-type]
        try:
            assert keys.find(presented) is None
        finally:
            sys.settrace(before)
        # Each key, and the decoy, by digests of equal length: never by what was presented.
        assert [(len(one), len(other)) for one, other in compared] == [(32, 32)] * 6
        paths.append(lines)
    assert paths[0]
    assert all(path == paths[0] for path in paths)
    assert keys.find(right.encode()) == made[2][0]


def test_a_key_expires(tmp_path: Path) -> None:
    past, future = (timestamp(datetime.now(timezone.utc) + timedelta(hours=hours)) for hours in (-1, 1))
    assert make("old", expires=past)[0].expired()
    assert not make("new", expires=future)[0].expired()
    file = tmp_path / "keys.json"
    add_key(file, make("old", expires=past)[0])
    assert "(expired)" in key("list", "--file", file).stdout


def test_there_is_a_maximum_number_of_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_KEYS == 1000
    monkeypatch.setattr(key_file, "MAX_KEYS", 2)
    file = tmp_path / "keys.json"
    for name in ("a", "b"):
        add_key(file, make(name)[0])
    with pytest.raises(ConfigError, match="already 2 keys"):
        add_key(file, make("c")[0])


def test_a_revoked_name_comes_before_an_id(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    first, _ = make("ann")
    second, _ = make(first.id)
    add_key(file, first)
    add_key(file, second)
    assert revoke_key(file, first.id) == second


def test_root_changes_the_keys_of_the_system_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EDGEKIT_STATE", "STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    service = tmp_path / "service"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_keys_file(service) != service / "keys.json"
    service.mkdir()
    assert default_keys_file(service) == service / "keys.json"
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "own"))
    assert default_keys_file(service) == tmp_path / "own" / "keys.json"
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert default_keys_file(service) != service / "keys.json"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change owners")
def test_what_root_writes_belongs_to_the_folders_owner(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    os.chown(folder, 12_345, 12_345)
    add_key(folder / "keys.json", make("ann")[0])
    status = (folder / "keys.json").stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (12_345, 0o600)


def test_the_keys_file_of_a_services_configuration_is_found_outside_the_service(tmp_path: Path) -> None:
    (tmp_path / "edgekit.yaml").write_text(
        "mqtt: {password_file: $CREDENTIALS_DIRECTORY/mqtt-password}\n"
        "http: {socket: $RUNTIME_DIRECTORY/http.sock}\n"
        "access: {keys_file: own.json}\n"
    )
    added = key("add", "ann", "--config", tmp_path / "edgekit.yaml")
    assert added.returncode == 0, added.stderr
    assert read_keys(tmp_path / "own.json")[0].name == "ann"


def test_what_looks_like_a_key_is_redacted() -> None:
    _, secret = make("ann")
    assert redact(f"/v1/{secret}/x") == "/v1/ek-…/x"
    assert redact("/v1/chat/completions") == "/v1/chat/completions"
