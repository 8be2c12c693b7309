from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgekit.errors import ConfigError, EdgekitError
from edgekit.service import ServiceSpec, find_executable, install, launchd, service_file, status, systemd, uninstall
from edgekit.service.readable import Account, first_unreadable

linux = pytest.mark.skipif(shutil.which("systemctl") is None, reason="no systemctl here")
PROGRAM = Path("/opt/edgekit/bin/edgekit")
UNIT = "etc/systemd/system/edgekit.service"


@linux
def test_a_service_is_installed_into_an_image_enabled_and_removed_again(tmp_path: Path) -> None:
    """The real systemctl works on the image; systemd need not run."""
    assert status(root=tmp_path).installed is False
    done = install(ServiceSpec(PROGRAM, bundle=Path("/opt/bundle")), root=tmp_path)
    link = tmp_path / "etc/systemd/system/multi-user.target.wants/edgekit.service"
    assert done.path == tmp_path / UNIT
    assert done.started is False
    assert link.is_symlink()
    assert "ExecStart=/opt/edgekit/bin/edgekit serve /opt/bundle\n" in done.path.read_text()
    assert done.path.stat().st_mode & 0o777 == 0o644
    assert json.loads(json.dumps(status(root=tmp_path).to_json()))["enabled"] is True
    assert uninstall(root=tmp_path) == done.path
    assert not link.is_symlink()
    assert not done.path.exists()
    assert uninstall(root=tmp_path) is None


@linux
def test_installing_again_replaces_the_unit_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    install(ServiceSpec(PROGRAM, bundle=Path("/opt/a")), root=tmp_path)
    done = install(ServiceSpec(PROGRAM, bundle=Path("/opt/b")), root=tmp_path)
    assert "/opt/b" in done.path.read_text()
    assert sorted(path.name for path in done.path.parent.iterdir()) == ["edgekit.service", "multi-user.target.wants"]


@pytest.mark.parametrize("link", [False, True])
def test_a_unit_that_edgekit_did_not_write_is_neither_replaced_nor_removed(tmp_path: Path, link: bool) -> None:
    path = tmp_path / UNIT if sys.platform == "linux" else launchd.plist_path("system", tmp_path)
    path.parent.mkdir(parents=True)
    if link:  # a masked unit
        path.symlink_to("/dev/null")
    else:
        path.write_text("[Service]\nExecStart=/opt/mine\n")
    message = "is a link to /dev/null" if link else "was not written by edgekit"
    with pytest.raises(EdgekitError, match=message):
        install(ServiceSpec(PROGRAM, run_as="alice"), root=tmp_path)
    with pytest.raises(EdgekitError, match=message):
        uninstall(root=tmp_path)
    assert path.is_symlink() if link else path.read_text() == "[Service]\nExecStart=/opt/mine\n"


@linux
def test_a_users_service_is_enabled_for_every_user_of_an_image(tmp_path: Path) -> None:
    done = install(ServiceSpec(PROGRAM, scope="user"), root=tmp_path)
    assert done.path == tmp_path / "etc/systemd/user/edgekit.service"
    assert (tmp_path / "etc/systemd/user/default.target.wants/edgekit.service").is_symlink()
    assert uninstall("user", root=tmp_path) == done.path


@linux
def test_the_unit_can_be_shown_without_changing_anything(tmp_path: Path) -> None:
    path, text = service_file(ServiceSpec(PROGRAM), root=tmp_path)
    assert path == tmp_path / UNIT
    assert text.startswith("# edgekit as a system service")
    assert list(tmp_path.iterdir()) == []


@linux
def test_a_failed_write_leaves_the_old_unit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = install(ServiceSpec(PROGRAM, bundle=Path("/opt/a")), root=tmp_path).path

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EdgekitError, match="cannot be written: No space left"):
        install(ServiceSpec(PROGRAM, bundle=Path("/opt/b")), root=tmp_path)
    assert "/opt/a" in path.read_text()
    assert not list(path.parent.glob(".edgekit-*"))


@pytest.mark.skipif(systemd.is_running() or not shutil.which("systemctl"), reason="systemd runs here")
def test_without_a_running_systemd_the_error_says_what_to_do() -> None:
    with pytest.raises(EdgekitError, match="systemd is not running here") as caught:
        install(ServiceSpec(Path("/bin/sh")))
    assert "--root DIR" in (caught.value.hint or "")
    assert status().installed is False


@linux
def test_installing_a_system_service_without_root_is_refused_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "is_running", lambda: True)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(EdgekitError, match="needs root") as caught:
        install(ServiceSpec(Path("/bin/sh")))
    assert caught.value.code == "permission_denied"
    assert "--user" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ServiceSpec(Path("bin/edgekit")), "must be absolute"),
        (ServiceSpec(PROGRAM, bundle=Path("/a\nExecStartPre=/bin/evil")), "control character"),
        (ServiceSpec(PROGRAM, run_as="a b"), "not a valid account name"),
        (ServiceSpec(PROGRAM, run_as="x\nUser=root"), "not a valid account name"),
        (ServiceSpec(PROGRAM, run_as="root"), "must not run as root"),
        (ServiceSpec(PROGRAM, run_as="alice", scope="user"), "runs as that user"),
    ],
)
def test_a_service_that_could_do_harm_or_never_start_is_refused(
    spec: ServiceSpec, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        service_file(spec, root=tmp_path)


def test_a_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no bundle at"):
        service_file(ServiceSpec(Path("/bin/sh"), bundle=tmp_path / "no", scope="user"))


@linux
def test_a_path_that_the_system_unit_cannot_see_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigError, match="private temporary folder"):
        service_file(ServiceSpec(Path("/bin/sh"), bundle=Path("/tmp")))  # noqa: S108
    with pytest.raises(ConfigError, match="no access to home folders") as caught:
        service_file(ServiceSpec(Path("/bin/sh"), bundle=Path("/home")))
    assert "--run-as" in (caught.value.hint or "")
    assert service_file(ServiceSpec(Path("/bin/sh"), bundle=Path("/home"), run_as="alice"))[1]


@linux
def test_a_program_whose_python_is_in_a_home_is_refused_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "edgekit"
    script.write_text("#!/home/alice/.venv/bin/python3\n")
    monkeypatch.setattr("edgekit.service.spec._TEMPORARY", ())
    monkeypatch.setattr("edgekit.service.spec._HOMES", (Path("/home"),))
    with pytest.raises(ConfigError, match=r"cannot see /home/alice/\.venv/bin/python3"):
        service_file(ServiceSpec(script))


def test_the_program_is_that_of_this_installation() -> None:
    assert find_executable().name == "edgekit"
    assert find_executable().is_absolute()


@pytest.fixture
def readable(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A bundle's folder that every account can reach, outside of pytest's own, which only its owner may enter."""
    monkeypatch.setattr("edgekit.service.spec._TEMPORARY", ())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "bundle"
        folder.mkdir()
        (folder / "model.onnx.data").write_bytes(b"x")
        for path, mode in ((Path(name), 0o755), (folder, 0o755), (folder / "model.onnx.data", 0o644)):
            path.chmod(mode)
        yield folder


@linux
@pytest.mark.parametrize(("name", "mode"), [("model.onnx.data", 0o600), (".", 0o700), ("..", 0o700)])
def test_what_the_services_account_cannot_read_is_refused_with_the_command_that_mends_it(
    readable: Path, name: str, mode: int
) -> None:
    assert service_file(ServiceSpec(Path("/bin/sh"), bundle=readable))
    path = (readable / name).resolve()
    path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        service_file(ServiceSpec(Path("/bin/sh"), bundle=readable))
    assert caught.value.message == f"the service's account cannot read {path}"
    hint = str(caught.value.hint).split()
    assert hint[0] == "sudo"
    subprocess.run(hint[1:], check=True)
    assert service_file(ServiceSpec(Path("/bin/sh"), bundle=readable))


@linux
def test_an_account_reads_its_own_files_and_those_of_its_groups(readable: Path) -> None:
    file = readable / "model.onnx.data"
    file.chmod(0o640)
    status = file.stat()
    for account, blocked in (
        (Account(status.st_uid, frozenset()), None),
        (Account(12345, frozenset({status.st_gid})), None),
        (Account(12345, frozenset()), file),
        (Account(None, frozenset()), file),
    ):
        assert first_unreadable(readable, account) == blocked


@linux
def test_an_environment_that_was_installed_under_umask_077_is_refused(readable: Path) -> None:
    (readable / "bin").mkdir(mode=0o755)
    (readable / "lib/__pycache__").mkdir(parents=True)
    (readable / "lib").chmod(0o755)
    (readable / "lib/__pycache__").chmod(0o700)  # written by root's first run
    program, module = readable / "bin/edgekit", readable / "lib/module.py"
    for path, mode in ((readable / "pyvenv.cfg", 0o644), (program, 0o755), (module, 0o644)):
        path.write_text("")
        path.chmod(mode)
    assert service_file(ServiceSpec(program))
    module.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        service_file(ServiceSpec(program))
    assert caught.value.message == f"the service's account cannot read {module}"
