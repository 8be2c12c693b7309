"""What this machine is and what it lacks, with the command that mends it.

Looks and changes nothing. Libraries are found, not imported: a broken one must not take the doctor with it.
"""

from __future__ import annotations

import locale
import os
import platform
import re
import shutil
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from edgekit.config import DaemonConfig
from edgekit.errors import ConfigError
from edgekit.machine import Machine, available_gib, cache_folder, probe
from edgekit.target import Target, recognise

__all__ = ["EXTRAS", "Check", "Diagnosis", "diagnose"]

State = Literal["ok", "note", "warn", "missing"]

# Extra -> the modules it brings that nothing else needs, with the name of the distribution. A test holds this
# against pyproject.toml.
EXTRAS: dict[str, dict[str, str]] = {
    "text": {"jinja2": "jinja2", "numpy": "numpy", "tokenizers": "tokenizers"},
    "export": {"huggingface_hub": "huggingface-hub", "ml_dtypes": "ml-dtypes", "onnx": "onnx"},
    "onnxruntime": {"onnxruntime": "onnxruntime"},
    "onnxruntime-gpu": {"onnxruntime": "onnxruntime-gpu"},
    "mlx": {"mlx": "mlx", "mlx_lm": "mlx-lm"},
    "tensorrt-rtx": {"tensorrt_rtx": "tensorrt-rtx-cu12-bindings"},
    "tensorrt": {"tensorrt": "tensorrt"},
    "daemon": {
        "httpx": "httpx",
        "paho": "paho-mqtt",
        "prometheus_client": "prometheus-client",
        "pydantic": "pydantic",
        "starlette": "starlette",
        "uvicorn": "uvicorn",
    },
}
# L4T release (of /etc/nv_tegra_release) -> JetPack; the newest that is not above counts.
_JETPACKS = (
    ((34, 0, 0), "5"),
    ((36, 2, 0), "6.0"),
    ((36, 4, 0), "6.1"),
    ((36, 4, 3), "6.2"),
    ((38, 2, 0), "7.0"),
    ((39, 2, 0), "7.2"),
)
_TENSORRT_LEAST = (10, 3)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at.

    Attributes:
        name: What.
        state: "ok"; "note" for information that needs nothing done; "warn"; "missing" where this machine
            cannot do its work without.
        detail: What was found.
        fix: The command that mends it.
    """

    name: str
    state: State
    detail: str
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What `edgekit doctor` says.

    Attributes:
        target: The target that this machine is.
        title: The machine in words.
        checks: In the order to show them.
    """

    target: str
    title: str
    checks: tuple[Check, ...]

    @property
    def ready(self) -> bool:
        """Whether nothing is missing."""
        return all(check.state != "missing" for check in self.checks)

    def to_json(self) -> dict[str, object]:
        """Return plain JSON-able values."""
        checks = [asdict(check) for check in self.checks]
        return {"target": self.target, "title": self.title, "ready": self.ready, "checks": checks}


def diagnose(
    config: DaemonConfig | None = None,
    *,
    machine: Machine | None = None,
    root: Path = Path("/"),
    cache: Path | None = None,
) -> Diagnosis:
    """Look at this machine.

    Args:
        config: The daemon's configuration, if its files should be looked at too.
        machine: What the machine said; probed unless given.
        root: Where /etc, /proc and /usr are looked for.
        cache: The folder that models are kept in; the usual one unless given.
    """
    machine = machine if machine is not None else probe(root)
    target = recognise(machine)
    jetson = any("tegra" in item for item in machine.device_tree)
    checks = [
        _target(target, machine),
        _python(),
        _cores(),
        _memory(target, machine, root),
        _disk(cache or cache_folder()),
    ]
    if jetson:
        checks += _jetson(root)
    checks += _runners(target, jetson=jetson)
    if "cpu" not in target.runners:
        checks.append(_kernels("note"))
    checks += [_extra("daemon", "missing"), _extra("export", "note")]
    checks += [_service_manager(), _broker(), _locale()]
    if config is not None:
        checks += _configured(config)
    return Diagnosis(target.name, target.title, tuple(checks))


def pip_install(extra: str) -> str:
    """Return the command that installs `extra` into the Python that runs this."""
    return f"{sys.executable} -m pip install 'edgekit[{extra}]'"


def _target(target: Target, machine: Machine) -> Check:
    orin = any("tegra" in item for item in machine.device_tree)
    if target.name == "cpu" and (orin or machine.gpus):
        what = machine.device_tree[0] if machine.device_tree else machine.gpus[0].name
        return Check("target", "warn", f"cpu: no profile for {what}, so it is used without its GPU", "edgekit targets")
    where = machine.cpu_brand if target.name == "cpu" and machine.cpu_brand else target.title
    return Check("target", "ok", f"{target.name} ({where}, {machine.architecture})")


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _cores() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Check("cores", "ok" if usable > 1 else "warn", f"{usable} usable of {os.cpu_count()}")


def _memory(target: Target, machine: Machine, root: Path) -> Check:
    free = available_gib(root)
    of = f"{machine.memory_gib:.1f} GiB, the system keeps about {target.reserve_gib:.1f}"
    if free is None:
        return Check("memory", "ok", of)
    state: State = "ok" if free > 1.0 else "warn"
    # On a Jetson the GPU's memory is the same, and the page cache must be given back before it can use it.
    return Check("memory", state, f"{of}; {free:.1f} available now")


def _disk(cache: Path) -> Check:
    place = next((folder for folder in (cache, *cache.parents) if folder.exists()), Path("/"))
    free = shutil.disk_usage(place).free / 1e9
    detail = f"{free:.1f} GB free for {cache}"
    if not os.access(place, os.W_OK):
        return Check("disk", "warn", f"{cache} cannot be written", "set XDG_CACHE_HOME to a folder of yours")
    return Check("disk", "ok" if free >= 2 else "warn", detail)


def _jetson(root: Path) -> list[Check]:
    """JetPack and TensorRT, which come with the board's software and not from pip."""
    checks = []
    release = l4t_release(root)
    if release is None:
        checks.append(Check("jetpack", "warn", "/etc/nv_tegra_release is missing or unreadable"))
    else:
        known = [name for least, name in _JETPACKS if least <= release]
        text = f"JetPack {known[-1]} (L4T {'.'.join(map(str, release))})" if known else f"L4T {release[0]}"
        if release < (36, 4, 0):
            fix = "flash JetPack 6.2 or later with NVIDIA's SDK Manager"
            checks.append(Check("jetpack", "missing", f"{text}: its TensorRT cannot hold INT4 weights", fix))
        else:
            checks.append(Check("jetpack", "ok", text))
    found = tensorrt_version(root)
    if found is None:
        checks.append(Check("libnvinfer", "missing", "TensorRT is not installed", "sudo apt install nvidia-jetpack"))
    elif found[:2] < _TENSORRT_LEAST:
        fix = "flash JetPack 6.2 or later with NVIDIA's SDK Manager"
        checks.append(Check("libnvinfer", "missing", f"TensorRT {_dotted(found)}; 10.3 is the oldest that works", fix))
    else:
        checks.append(Check("libnvinfer", "ok", f"TensorRT {_dotted(found)}"))
    return checks


def l4t_release(root: Path) -> tuple[int, int, int] | None:
    """Read /etc/nv_tegra_release: `# R36 (release), REVISION: 4.3, …` is (36, 4, 3)."""
    try:
        text = (root / "etc/nv_tegra_release").read_text(errors="replace")
    except OSError:
        return None
    match = re.search(r"R(\d+) \(release\), REVISION: (\d+)(?:\.(\d+))?", text)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def tensorrt_version(root: Path) -> tuple[int, ...] | None:
    """The version in the name of the newest libnvinfer, which is there whether or not Python sees it."""
    found = [
        tuple(int(part) for part in match[1].split("."))
        for folder in ("usr/lib/aarch64-linux-gnu", "usr/lib/x86_64-linux-gnu")
        for path in (root / folder).glob("libnvinfer.so.*")
        if (match := re.fullmatch(r"libnvinfer\.so\.(\d+\.\d+\.\d+)", path.name))
    ]
    return max(found, default=None)


def _runners(target: Target, *, jetson: bool) -> list[Check]:
    """The target's runners: the preferred one is needed, the others are second best."""
    if "cpu" in target.runners:
        return _for_plain_cpus()
    checks = []
    for index, runner in enumerate(target.runners):
        state: State = "missing" if index == 0 else "note"
        if runner == "tensorrt" and jetson:
            checks.append(_jetson_tensorrt(state))
        else:
            checks.append(_extra(runner.replace("_", "-"), state, f"runner {runner}"))
    if "onnxruntime" in target.runners and (jetson or target.compatible == "nvidia-rtx"):
        checks.append(_onnxruntime_cuda(jetson=jetson))
    return checks


def _for_plain_cpus() -> list[Check]:
    """The kernels of our own, and onnxruntime in their stead: one of the two is needed."""
    second = _extra("onnxruntime", "note", "runner onnxruntime")
    kernels = _kernels("warn" if second.state == "ok" else "missing")
    if kernels.state != "ok":
        second = _extra("onnxruntime", "missing", "runner onnxruntime")
    return [kernels, second]


def _kernels(if_absent: State) -> Check:
    """The compiled kernels of runners/cpu, without which onnxruntime runs bundles for the CPU."""
    name = "CPU kernels"
    try:
        # Imported here: the package needs what the extra `text` brings.
        from edgekit.runners.cpu.build import BuildError, find_compiler
        from edgekit.runners.cpu.library import VARIABLE, Absent, load

        found = load()
    except ImportError as error:
        return Check(name, if_absent, f"cannot be looked for: {error}", pip_install("text"))
    except ConfigError as error:
        return Check(name, "missing", f"{error.message}; {error.hint}", f"unset {VARIABLE}")
    if not isinstance(found, Absent):
        others = ", ".join(variant for variant in found.variants if variant != found.variant)
        return Check(name, "ok", found.variant + (f" (also {others})" if others else ""))
    detail = f"none, so onnxruntime runs bundles for the CPU: {found.reason}"
    if os.environ.get(VARIABLE) == "off":
        return Check(name, "note", detail, f"unset {VARIABLE}")
    fix = f"{sys.executable} -m edgekit.runners.cpu.build"
    try:
        find_compiler()
    except BuildError as error:
        get = "xcode-select --install" if sys.platform == "darwin" else "sudo apt install gcc libc6-dev"
        return Check(name, if_absent, f"{detail}; {error}", f"{get} && {fix}")
    return Check(name, if_absent, detail, fix)


def _jetson_tensorrt(state: State) -> Check:
    if find_spec("tensorrt") is not None:
        return Check("runner tensorrt", "ok", _installed("tensorrt"))
    if sys.prefix != sys.base_prefix:
        # JetPack installs the bindings for the system's Python, which a plain virtual environment does not see.
        fix = f"{sys.base_prefix}/bin/python3 -m venv --system-site-packages {sys.prefix}"
        return Check("runner tensorrt", state, "JetPack's Python bindings are not visible in this environment", fix)
    return Check(
        "runner tensorrt", state, "the Python bindings are not installed", "sudo apt install python3-libnvinfer"
    )


def _onnxruntime_cuda(*, jetson: bool) -> Check:
    try:
        found = version("onnxruntime-gpu")
    except PackageNotFoundError:
        if jetson:
            return Check("onnxruntime on the GPU", "note", "not installed; take NVIDIA's wheel for Jetson, not PyPI's")
        return Check("onnxruntime on the GPU", "note", "not installed", pip_install("onnxruntime-gpu"))
    if jetson:
        detail = f"onnxruntime-gpu {found}: PyPI's wheel for aarch64 has no code for Orin (SM87)"
        return Check("onnxruntime on the GPU", "warn", detail, "install NVIDIA's wheel from its Jetson index instead")
    return Check("onnxruntime on the GPU", "ok", f"onnxruntime-gpu {found}")


def _extra(extra: str, if_absent: State, name: str | None = None) -> Check:
    # Every one of them stands on `text`.
    needed = {**EXTRAS["text"], **EXTRAS[extra]}
    absent = [distribution for module, distribution in needed.items() if find_spec(module) is None]
    if absent:
        return Check(name or extra, if_absent, f"not installed: {', '.join(absent)}", pip_install(extra))
    return Check(name or extra, "ok", ", ".join(_installed(dist) for dist in EXTRAS[extra].values()))


def _installed(distribution: str) -> str:
    try:
        return f"{distribution} {version(distribution)}"
    except PackageNotFoundError:
        return distribution  # apt's, or built by hand


def _service_manager() -> Check:
    if sys.platform == "darwin":
        return Check("service", "ok", "launchd")
    if Path("/run/systemd/system").is_dir():
        return Check("service", "ok", "systemd")
    return Check("service", "note", "systemd is not running here; `edgekit serve` runs under any supervisor")


def _broker() -> Check:
    found = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found:
        return Check("mosquitto", "ok", found)
    fix = "brew install mosquitto" if sys.platform == "darwin" else "sudo apt install mosquitto"
    return Check("mosquitto", "note", "no MQTT broker on this machine; one anywhere in the network will do", fix)


def _locale() -> Check:
    encoding = locale.getpreferredencoding(do_setlocale=False)
    if encoding.lower().replace("-", "") == "utf8":
        return Check("locale", "ok", encoding)
    return Check("locale", "warn", f"{encoding}: answers in other scripts may not print", "export LANG=C.UTF-8")


def _configured(config: DaemonConfig) -> list[Check]:
    checks = []
    for name, path in (
        ("bundle", config.bundle),
        ("mqtt.password_file", config.mqtt.password_file),
        ("mqtt.ca_file", config.mqtt.ca_file),
    ):
        if path is not None and not path.exists():
            checks.append(Check(name, "missing", f"there is no {path}"))
    if config.http.enabled and config.http.host not in {"127.0.0.1", "::1", "localhost"}:
        checks.append(Check("http", "warn", f"listens on {config.http.host}, beyond this machine"))
    return checks


def _dotted(numbers: tuple[int, ...]) -> str:
    return ".".join(map(str, numbers))
