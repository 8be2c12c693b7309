from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edgekit.errors import ConfigError
from edgekit.service.spec import ServiceSpec
from edgekit.service.systemd import render_unit

UNITS = Path(__file__).parent.parent.parent / "systemd"
systemd_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "bin" / "edgekit"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def analyze(*arguments: str, unit: str, folder: Path, user: bool = False) -> subprocess.CompletedProcess[str]:
    path = folder / "edgekit.service"
    path.write_text(unit, encoding="utf-8")
    command = ["systemd-analyze", "--no-pager", *(["--user"] if user else []), *arguments, str(path)]
    env = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


@systemd_analyze
@pytest.mark.parametrize("run_as", [None, "daemon"])
def test_the_system_unit_passes_systemds_own_verification(program: Path, tmp_path: Path, run_as: str | None) -> None:
    unit = render_unit(ServiceSpec(program, bundle=Path("/opt/b"), run_as=run_as))
    done = analyze("verify", unit=unit, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@systemd_analyze
def test_the_user_unit_passes_systemds_own_verification(program: Path, tmp_path: Path) -> None:
    done = analyze("verify", unit=render_unit(ServiceSpec(program, scope="user")), folder=tmp_path, user=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@systemd_analyze
@pytest.mark.parametrize("run_as", [None, "alice"])
def test_the_system_unit_is_exposed_at_most_two_of_ten(program: Path, tmp_path: Path, run_as: str | None) -> None:
    unit = render_unit(ServiceSpec(program, run_as=run_as))
    done = analyze("security", "--offline=true", unit=unit, folder=tmp_path)
    level = re.search(r"Overall exposure level for edgekit.service: ([0-9.]+)", done.stdout)
    assert level is not None, done.stderr
    assert float(level[1]) <= 2.0


@systemd_analyze
@pytest.mark.parametrize(
    "name", ["my dir", "100%", "$HOME", "${HOME}", "ünï", "semi;colon", "-dash", "%h", "#x", "a=b,c"]
)
def test_paths_reach_the_program_as_they_are(tmp_path: Path, name: str) -> None:
    """`systemd-analyze verify` fails if the quoted program is not the one that exists."""
    folder = tmp_path / name
    folder.mkdir()
    program = folder / "edgekit"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = render_unit(ServiceSpec(program, bundle=folder))
    done = analyze("verify", unit=unit, folder=tmp_path)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    program.unlink()
    gone = analyze("verify", unit=unit, folder=tmp_path)
    assert f"{program} is not executable" in gone.stderr


@pytest.mark.parametrize("name", ['quote"d', "back\\slash", "a'b"])
def test_a_program_that_systemd_would_not_start_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="systemd cannot start /opt"):
        render_unit(ServiceSpec(Path("/opt") / name / "edgekit"))


def test_arguments_are_quoted_so_that_systemd_expands_nothing(program: Path) -> None:
    unit = render_unit(ServiceSpec(program, bundle=Path('/a b/$HOME/%h/"q"'), config=Path("/c\\d.yaml")))
    line = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    assert line == f'ExecStart={program} serve "/a b/$$HOME/%%h/\\"q\\"" --config "/c\\\\d.yaml"'


def test_only_groups_that_the_machine_has_are_named(program: Path, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    for groups, expected in (
        ("root:x:0:\nvideo:x:44:\nrender:x:105:\n", ["video render"]),
        ("video:x:44:\n", ["video"]),
    ):
        (tmp_path / "etc/group").write_text(groups)
        assert (
            re.findall("^SupplementaryGroups=(.*)$", render_unit(ServiceSpec(program), tmp_path), re.MULTILINE)
            == expected
        )
    (tmp_path / "etc/group").unlink()
    assert "SupplementaryGroups" not in render_unit(ServiceSpec(program), tmp_path)


def test_a_named_account_replaces_the_dynamic_one(program: Path) -> None:
    lines = render_unit(ServiceSpec(program, run_as="alice")).splitlines()
    assert "User=alice" in lines
    assert "ProtectHome=read-only" in lines
    assert not any(line.startswith("DynamicUser") for line in lines)


def test_the_unit_names_a_watchdog_a_state_folder_and_a_credential() -> None:
    lines = (UNITS / "edgekit.service").read_text(encoding="utf-8").splitlines()
    for line in (
        "Type=notify",
        "NotifyAccess=main",
        "WatchdogSec=60",
        "Restart=on-failure",
        "DynamicUser=yes",
        "StateDirectory=edgekit",
        "CacheDirectory=edgekit",
        "ConfigurationDirectory=edgekit",
        "LoadCredential=mqtt-password:/etc/edgekit/mqtt-password",
        "MemoryDenyWriteExecute=yes",
        "WantedBy=multi-user.target",
    ):
        assert line in lines


def mounts(unit: str) -> list[str]:
    return re.findall("^RequiresMountsFor=(.*)$", unit, re.MULTILINE)


def test_the_unit_waits_for_the_media_of_the_program_the_configuration_and_the_bundles(tmp_path: Path) -> None:
    config = tmp_path / "edgekit.yaml"
    config.write_text("bundle: /mnt/usb/bundle\ngeneration: {draft_bundle: drafts/small}\n")
    program = Path("/opt/e d/edgekit")
    for spec, expected in (
        (ServiceSpec(program, bundle=Path("/srv/b")), '"/opt/e d/edgekit" /srv/b'),
        (
            ServiceSpec(program, config=config),
            f'"/opt/e d/edgekit" {config} /mnt/usb/bundle {tmp_path}/drafts/small',
        ),
        (
            ServiceSpec(program, bundle=Path("/srv/100%"), config=config, scope="user"),
            f'"/opt/e d/edgekit" {config} /srv/100%% {tmp_path}/drafts/small',
        ),
        (ServiceSpec(program, bundle=Path('/srv/"q"')), '"/opt/e d/edgekit"'),
    ):
        assert mounts(render_unit(spec)) == [expected]
    config.write_text("bundle: [")
    assert mounts(render_unit(ServiceSpec(program, config=config))) == [f'"/opt/e d/edgekit" {config}']


def test_in_an_image_the_configuration_is_read_from_the_image(tmp_path: Path) -> None:
    (tmp_path / "etc/edgekit").mkdir(parents=True)
    (tmp_path / "etc/edgekit/edgekit.yaml").write_text("bundle: /data/bundle\n")
    assert mounts(render_unit(ServiceSpec(Path("/bin/e")), tmp_path)) == ["/bin/e /data/bundle"]


def test_the_unit_allows_the_devices_that_cuda_opens_on_orin_and_many_connections() -> None:
    lines = (UNITS / "edgekit.service").read_text(encoding="utf-8").splitlines()
    # nvgpu's devices have the name of the GPU's node in the device tree: 17000000.gpu, on JetPack 5 17000000.ga10b.
    gpu = ("char-nvhost*", "char-nvgpu*", "char-*.gpu", "char-*.ga10b", "char-nvidia*", "char-drm")
    for device in ("/dev/nvmap", "/dev/host1x-fence", *gpu):
        assert f"DeviceAllow={device} rw" in lines
    for name in ("edgekit.service", "user/edgekit.service"):
        assert "LimitNOFILE=65536" in (UNITS / name).read_text(encoding="utf-8").splitlines()
