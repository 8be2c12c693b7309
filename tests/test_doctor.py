from __future__ import annotations

import json
import re
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from edgekit import doctor
from edgekit.config import DaemonConfig, GenerationConfig, HttpConfig, MqttConfig, RunnerName
from edgekit.doctor import EXTRAS, Check, Diagnosis, diagnose
from edgekit.jetson_doctor import tensorrt_version
from edgekit.machine import Gpu, Machine
from edgekit.runners.cpu import build
from edgekit.runners.cpu.build import find_compiler, refresh
from edgekit.runners.cpu.library import Kernels, load
from tests.generation.bundles import tiny_bundle
from tests.jetson.tree import write, write_nano
from tests.test_fatbin import container

REPOSITORY = Path(__file__).parent.parent
ORIN = Machine(
    "Linux",
    "aarch64",
    7.44,
    ("NVIDIA Jetson Orin Nano Developer Kit", "nvidia,p3768-0000+p3767-0005", "nvidia,tegra234"),
)
PC_WITH_CARD = Machine("Linux", "x86_64", 15.5, gpus=(Gpu("NVIDIA GeForce RTX 3060", 12.0, "8.6"),))
MAC = Machine("Darwin", "arm64", 16.0, cpu_brand="Apple M2")
PC = Machine("Linux", "x86_64", 15.5, cpu_brand="AMD Ryzen 5")
R36_4_3 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025\n"


def checks(diagnosis: Diagnosis) -> dict[str, Check]:
    return {check.name: check for check in diagnosis.checks}


def jetson(root: Path, release: str, libnvinfer: str | None) -> Path:
    (root / "etc").mkdir()
    (root / "etc/nv_tegra_release").write_text(release)
    libraries = root / "usr/lib/aarch64-linux-gnu"
    libraries.mkdir(parents=True)
    if libnvinfer:
        for name in ("libnvinfer.so.10", f"libnvinfer.so.{libnvinfer}", "libnvinfer_plugin.so.99.9.9"):
            (libraries / name).touch()
    return root


def test_this_machine_is_diagnosed() -> None:
    diagnosis = diagnose()
    plain = json.loads(json.dumps(diagnosis.to_json()))
    assert (plain["target"], plain["ready"]) == (diagnosis.target, diagnosis.ready)


def test_a_pc_with_everything_installed_is_ready() -> None:
    diagnosis = diagnose(machine=PC)
    assert (diagnosis.target, diagnosis.ready) == ("cpu", True)
    found = checks(diagnosis)
    assert found["python"].detail.startswith(".".join(map(str, sys.version_info[:3])))
    assert found["runner onnxruntime"].detail.startswith("onnxruntime 1.")
    assert found["CPU kernels"].state == "ok"
    assert re.search(r"[0-9.]+ GB free for ", found["disk"].detail)


def test_the_extras_are_those_of_the_package() -> None:
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[project.optional-dependencies]")[1].split("\n[project.scripts]")[0]
    packaged = {
        extra: set(re.findall(r'"([A-Za-z0-9-]+)[^"]*"', body))
        for extra, body in re.findall(
            r"^([a-z-]+) = \[(.*?)\]$", section.replace("[text]", "").replace("[cpu]", ""), re.MULTILINE | re.DOTALL
        )
    }
    assert set(EXTRAS) == set(packaged) - {"dev", "optimum", "test"}
    for extra, modules in EXTRAS.items():
        assert set(modules.values()) <= packaged[extra], extra


def test_a_missing_extra_comes_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name in {"onnxruntime", "onnx", "paho"} else object())
    refresh(find_compiler())
    # Our own kernels do not need it.
    assert checks(diagnose(machine=PC))["runner onnxruntime"].state == "note"
    monkeypatch.setenv("EDGEKIT_CPU_KERNELS", "off")
    diagnosis = diagnose(machine=PC)
    found = checks(diagnosis)
    assert not diagnosis.ready
    assert found["runner onnxruntime"] == Check(
        "runner onnxruntime",
        "missing",
        "not installed: onnxruntime",
        f"{sys.executable} -m pip install 'edgekit-llm[onnxruntime]'",
    )
    assert (found["daemon"].state, found["daemon"].detail) == ("missing", "not installed: paho-mqtt")
    assert found["export"].state == "note"


def test_an_installed_tensorrt_for_rtx_is_seen_with_all_that_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed")
    check = checks(diagnose(machine=PC_WITH_CARD))["runner tensorrt_rtx"]
    assert check.state == "ok"
    assert re.match(r"cuda-bindings [0-9.]+, tensorrt-rtx-cu12-bindings [0-9.]+, tensorrt-rtx-cu12-libs", check.detail)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "cuda.bindings" else object())
    check = checks(diagnose(machine=PC_WITH_CARD))["runner tensorrt_rtx"]
    assert (check.state, check.detail) == ("note", "not installed: cuda-bindings")


def test_a_mac_needs_mlx_and_nothing_from_nvidia() -> None:
    diagnosis = diagnose(machine=MAC)
    assert diagnosis.target == "m2"
    assert "runner mlx" in checks(diagnosis)
    assert not any("tensorrt" in name or "onnxruntime" in name for name in checks(diagnosis))


def test_a_jetson_reports_its_jetpack_and_tensorrt(tmp_path: Path) -> None:
    found = checks(diagnose(machine=ORIN, root=jetson(tmp_path, R36_4_3, "10.3.0")))
    assert found["target"].detail.startswith("orin-nano-8 (")
    assert (found["jetpack"].state, found["jetpack"].detail) == ("ok", "JetPack 6.2 (L4T 36.4.3)")
    assert (found["libnvinfer"].state, found["libnvinfer"].detail) == ("ok", "TensorRT 10.3.0")


@pytest.mark.parametrize("machine", [ORIN, PC_WITH_CARD])
def test_two_onnxruntimes_over_each_other_are_named_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, machine: Machine, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor, "version", lambda _: "1.23.0")
    check = checks(diagnose(machine=machine, root=jetson(tmp_path, R36_4_3, "10.3.0")))["onnxruntime on the GPU"]
    assert check.state == "warn"
    assert check.detail == "onnxruntime 1.23.0 and onnxruntime-gpu 1.23.0 are installed over each other"
    assert "uninstall -y onnxruntime onnxruntime-gpu && " in (check.fix or "")


@pytest.mark.parametrize(
    ("capability", "state", "detail"),
    [
        (87, "ok", "onnxruntime-gpu 1.23.0"),
        (90, "warn", "onnxruntime-gpu 1.23.0 has no code for Orin (SM87), only for SM90: it is PyPI's wheel"),
        (None, "warn", "onnxruntime-gpu 1.23.0 has no readable library for CUDA"),
    ],
)
def test_a_wheel_without_code_for_orin_is_named_with_nvidias_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capability: int | None, state: str, detail: str
) -> None:
    def version(name: str) -> str:
        if name == "onnxruntime":
            raise PackageNotFoundError(name)
        return "1.23.0"

    package = tmp_path / "site/onnxruntime"
    (package / "capi").mkdir(parents=True)
    if capability is not None:
        (package / "capi/libonnxruntime_providers_cuda.so").write_bytes(container((2, capability)))
    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(doctor, "find_spec", lambda _: ModuleSpec("x", None, origin=str(package / "__init__.py")))
    check = checks(diagnose(machine=ORIN, root=jetson(tmp_path, R36_4_3, "10.3.0")))["onnxruntime on the GPU"]
    assert (check.state, check.detail) == (state, detail)
    assert state == "ok" or "jetson-ai-lab.io/jp6/cu126" in (check.fix or "")


def test_the_memory_of_a_jetson_is_shown_with_what_firmware_and_contiguous_buffers_hold(tmp_path: Path) -> None:
    write_nano(tmp_path)
    write(tmp_path, "proc/meminfo", "MemTotal: 7801405 kB\nMemAvailable: 5452595 kB\nCmaFree: 209715 kB\n")
    assert checks(diagnose(machine=ORIN, root=tmp_path))["memory"].detail == (
        "7.4 GiB of 8, as firmware holds the rest, of which the system needs about 1.4; 5.0 available now, "
        "without the 0.2 that are kept for cameras and display"
    )


def test_a_jetson_in_a_virtual_environment_learns_how_to_see_jetpacks_bindings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "tensorrt" else object())
    monkeypatch.setattr(sys, "prefix", "/opt/edgekit")
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    check = checks(diagnose(machine=ORIN, root=jetson(tmp_path, R36_4_3, "10.3.0")))["runner tensorrt"]
    assert (check.state, check.fix) == ("note", "/usr/bin/python3 -m venv --system-site-packages /opt/edgekit")


@pytest.mark.parametrize(
    ("release", "libnvinfer", "states"),
    [
        ("# R35 (release), REVISION: 4.1, GCID: 1\n", "8.5.2", ("warn", "warn")),
        ("# R36 (release), REVISION: 3.0, GCID: 1\n", "8.6.2", ("warn", "warn")),
        ("# R39 (release), REVISION: 2.0, GCID: 45755727\n", "10.16.2", ("ok", "ok")),
        (R36_4_3, None, ("ok", "warn")),
        ("# R41 (release), REVISION: 1.0, GCID: 1\n", "11.2.0", ("note", "ok")),
        ("garbage", "10.3.0", ("warn", "ok")),
    ],
)
def test_a_jetpack_too_old_for_int4_is_named(
    tmp_path: Path, release: str, libnvinfer: str | None, states: tuple[str, str]
) -> None:
    found = checks(diagnose(machine=ORIN, root=jetson(tmp_path, release, libnvinfer)))
    assert (found["jetpack"].state, found["libnvinfer"].state) == states
    for check in (found["jetpack"], found["libnvinfer"]):
        assert check.state != "warn" or check.fix
        assert check.state != "warn" or "unknown" in check.detail or "the CPU kernels run the model" in check.detail


def test_the_version_of_tensorrt_is_read_from_its_newest_file(tmp_path: Path) -> None:
    assert tensorrt_version(tmp_path) is None
    root = jetson(tmp_path, R36_4_3, "10.3.0")
    (root / "usr/lib/aarch64-linux-gnu/libnvinfer.so.10.16.2").touch()
    assert tensorrt_version(root) == (10, 16, 2)


def test_a_jetson_without_a_profile_is_used_as_a_cpu_with_a_warning() -> None:
    xavier = Machine("Linux", "aarch64", 30.4, ("NVIDIA Jetson AGX Xavier", "nvidia,p2972-0000", "nvidia,tegra194"))
    diagnosis = diagnose(machine=xavier)
    assert diagnosis.target == "cpu"
    assert checks(diagnosis)["target"].state == "warn"


def test_files_that_the_configuration_names_are_checked(tmp_path: Path) -> None:
    config = DaemonConfig(
        bundle=tmp_path / "gone",
        http=HttpConfig(host="::"),
        mqtt=MqttConfig(ca_file=tmp_path),
    )
    found = checks(diagnose(config, machine=PC))
    assert found["bundle"].state == "missing"
    assert (found["http"].state, found["http"].detail.endswith("edgekit key add NAME")) == ("warn", True)
    assert "mqtt.ca_file" not in found


def test_the_runner_of_the_configured_bundle_is_named_and_why_it_is_no_better_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refresh(find_compiler())
    bundle = tiny_bundle(tmp_path, "onnx")

    def check(runner: RunnerName) -> Check:
        config = DaemonConfig(bundle=bundle, generation=GenerationConfig(runner=runner))
        return checks(diagnose(config, machine=PC))["bundle's runner"]

    monkeypatch.setenv("EDGEKIT_CPU_KERNELS", "plain")
    assert (check("auto").state, check("auto").detail) == ("ok", "the CPU kernels, plain")
    assert check("onnxruntime").detail.startswith("onnxruntime ")
    assert (check("mlx").state, check("mlx").fix) == ("missing", "choose cpu or onnxruntime, or auto")
    monkeypatch.setenv("EDGEKIT_CPU_KERNELS", "off")
    assert check("auto").state == "warn"
    assert check("auto").detail.endswith("; not cpu: switched off by $EDGEKIT_CPU_KERNELS")
    assert "this bundle cannot run on the CPU kernels: switched off" in check("cpu").detail


def test_the_disk_that_is_checked_is_that_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "models"))
    assert str(tmp_path / "models") in checks(diagnose(machine=PC))["disk"].detail


def test_a_cache_that_does_not_exist_yet_is_checked_where_it_will_be(tmp_path: Path) -> None:
    check = checks(diagnose(machine=PC, cache=tmp_path / "a/b"))["disk"]
    assert str(tmp_path / "a/b") in check.detail


def test_the_kernels_of_this_machine_are_listed_best_first() -> None:
    refresh(find_compiler())
    found = load()
    assert isinstance(found, Kernels)
    check = checks(diagnose(machine=PC))["CPU kernels"]
    assert check.state == "ok"
    assert re.findall(r"\w+", check.detail.replace("also ", "")) == list(found.variants)


def test_missing_kernels_are_reported_with_the_reason_and_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    command = f"{sys.executable} -m edgekit.runners.cpu.build"
    why = "none, so onnxruntime runs bundles for the CPU: they are not compiled"
    assert checks(diagnose(machine=PC))["CPU kernels"] == Check("CPU kernels", "warn", why, command)
    # A target with another runner does not need them.
    assert checks(diagnose(machine=MAC))["CPU kernels"].state == "note"
    monkeypatch.setenv("PATH", "")
    check = checks(diagnose(machine=PC))["CPU kernels"]
    assert check.detail == f"{why}; there is no C compiler: no `cc`, no `gcc`, no `clang`"
    assert check.fix is not None
    assert check.fix.endswith(f" && {command}")


def test_a_choice_of_kernels_applies_as_in_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    refresh(find_compiler())
    monkeypatch.setenv("EDGEKIT_CPU_KERNELS", "plain")
    assert checks(diagnose(machine=PC))["CPU kernels"].detail.split(" ")[0] == "plain"
    monkeypatch.setenv("EDGEKIT_CPU_KERNELS", "off")
    assert checks(diagnose(machine=PC))["CPU kernels"].state == "note"
    monkeypatch.setenv("EDGEKIT_CPU_KERNELS", "sse9")
    diagnosis = diagnose(machine=PC)
    check = checks(diagnosis)["CPU kernels"]
    assert (check.state, check.fix) == ("missing", "unset EDGEKIT_CPU_KERNELS")
    assert check.detail.startswith("$EDGEKIT_CPU_KERNELS is `sse9`, which is not available here; available: ")
    assert not diagnosis.ready


@pytest.mark.parametrize(
    ("base", "system_packages", "found"),
    [
        ("/usr", "false", ("not visible in this environment", "/usr/bin/python3 -m venv --system-site-packages")),
        ("/usr", "true", ("the Python bindings are not installed", "sudo apt install python3-libnvinfer")),
        ("/home/x/.pyenv", "true", ("this environment is of the Python in /home/x/.pyenv", "scripts/jetson")),
    ],
)
def test_why_jetpacks_bindings_are_not_found_depends_on_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, system_packages: str, found: tuple[str, str]
) -> None:
    environment = tmp_path / "env"
    write(environment, "pyvenv.cfg", f"home = {base}/bin\ninclude-system-site-packages = {system_packages}\n")
    monkeypatch.setattr(sys, "prefix", str(environment))
    monkeypatch.setattr(sys, "base_prefix", base)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None if name == "tensorrt" else object())
    check = checks(diagnose(machine=ORIN, root=write_nano(tmp_path / "root")))["runner tensorrt"]
    assert check.state == "note"
    assert found[0] in check.detail
    assert found[1] in (check.fix or "")


def test_a_tensorrt_of_the_environment_that_hides_jetpacks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModuleSpec("tensorrt", None, origin=str(tmp_path / "env/lib/tensorrt/__init__.py"))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "env"))
    monkeypatch.setattr(doctor, "find_spec", lambda name: spec if name == "tensorrt" else None)
    check = checks(diagnose(machine=ORIN, root=write_nano(tmp_path / "root")))["runner tensorrt"]
    assert (check.state, "hides JetPack's" in check.detail) == ("warn", True)
    spec.origin = "/usr/lib/python3.10/dist-packages/tensorrt/__init__.py"
    assert checks(diagnose(machine=ORIN, root=tmp_path / "root"))["runner tensorrt"].state == "ok"
