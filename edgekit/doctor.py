"""Checks this machine: its target, what is missing, and the command that fixes it. Changes nothing.

Libraries are located but not imported, so that a broken one cannot crash the check.
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

from edgekit.bundle.bundle import open_bundle
from edgekit.check import Check, State
from edgekit.config import DaemonConfig
from edgekit.cores import count_cores
from edgekit.device_id import device_id, is_stored, machine_hash
from edgekit.errors import ConfigError, EdgekitError, import_failure
from edgekit.jetson.board import find_board
from edgekit.jetson.device import Jetson
from edgekit.jetson_doctor import check_jetson, onnxruntime_install, onnxruntime_on_jetson
from edgekit.machine import GIB, Machine, available_bytes, cache_folder, contiguous_bytes, memory_limit, probe
from edgekit.recognition import check_targets, recognise
from edgekit.rtx_doctor import check_rtx
from edgekit.target import Target

__all__ = ["EXTRAS", "Check", "Diagnosis", "diagnose", "machine_checks"]

# Extra -> its modules that no other extra needs, with their distributions. A test compares this with pyproject.toml.
EXTRAS: dict[str, dict[str, str]] = {
    "text": {"jinja2": "jinja2", "numpy": "numpy", "prompt_toolkit": "prompt-toolkit", "tokenizers": "tokenizers"},
    "export": {"huggingface_hub": "huggingface-hub", "ml_dtypes": "ml-dtypes", "onnx": "onnx"},
    "onnxruntime": {"onnxruntime": "onnxruntime"},
    "onnxruntime-gpu": {"onnxruntime": "onnxruntime-gpu"},
    "mlx": {"mlx": "mlx", "mlx_lm": "mlx-lm"},
    "tensorrt-rtx": {
        "cuda.bindings": "cuda-bindings",
        "tensorrt_rtx_bindings": "tensorrt-rtx-cu12-bindings",
        "tensorrt_rtx_libs": "tensorrt-rtx-cu12-libs",
    },
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


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The result of `edgekit doctor`.

    Attributes:
        target: The target of this machine.
        title: The machine's name.
        checks: All checks, in display order.
    """

    target: str
    title: str
    checks: tuple[Check, ...]

    @property
    def ready(self) -> bool:
        """Whether nothing is missing."""
        return all(check.state != "missing" for check in self.checks)

    def to_json(self) -> dict[str, object]:
        """Return JSON-serializable values."""
        checks = [asdict(check) for check in self.checks]
        return {"target": self.target, "title": self.title, "ready": self.ready, "checks": checks}


def diagnose(
    config: DaemonConfig | None = None,
    *,
    machine: Machine | None = None,
    root: Path = Path("/"),
    cache: Path | None = None,
) -> Diagnosis:
    """Check this machine.

    Args:
        config: The daemon's configuration, to check the files that it names too.
        machine: Facts about the machine; probed by default.
        root: Folder that contains /etc, /proc and /usr.
        cache: The folder for downloaded models; the usual one by default.
    """
    machine = machine if machine is not None else probe(root)
    target = recognise(machine)
    board = find_board(machine.device_tree)
    jetson = None if board is None else Jetson(board, root)
    checks = [
        _target(target, machine),
        *(Check("targets", "warn", error.message, error.hint) for error in check_targets()),
        _python(),
        _cores(root),
        _memory(target, machine, root),
        _disk(cache),
        _device_id(config, root),
    ]
    checks += check_rtx(machine, root) if jetson is None else check_jetson(jetson, machine.memory_gib, root)
    checks += _runners(target, jetson)
    if target.dialect != "onnxruntime":
        checks.append(_kernels("note"))
    checks += [_extra("daemon", "missing"), _extra("export", "note")]
    checks += [_service_manager(), _broker(), _locale()]
    if config is not None:
        checks += _configured(config)
    return Diagnosis(target.name, target.title, tuple(checks))


def machine_checks(machine: Machine, root: Path = Path("/")) -> tuple[Check, ...]:
    """Return the checks of `diagnose` that describe the machine, and nothing of its owner's folders or accounts.

    Args:
        machine: From `probe`.
        root: As for `diagnose`.
    """
    target = recognise(machine)
    board = find_board(machine.device_tree)
    checks = [_target(target, machine), _cores(root), _memory(target, machine, root)]
    if board is not None:
        checks += check_jetson(Jetson(board, root), machine.memory_gib, root)
    return (*checks, _kernels("note"))


def pip_install(extra: str) -> str:
    """Return the command that installs `extra` into the running Python."""
    return f"{sys.executable} -m pip install 'edgekit-llm[{extra}]'"


def _target(target: Target, machine: Machine) -> Check:
    if target.name == "cpu" and (find_board(machine.device_tree) or machine.gpus):
        what = machine.device_tree[0] if machine.device_tree else machine.gpus[0].name
        return Check("target", "warn", f"cpu: there is no target for {what}, so its GPU is not used", "edgekit targets")
    where = machine.cpu_brand if target.name == "cpu" and machine.cpu_brand else target.title
    return Check("target", "ok", f"{target.name} ({where}, {machine.architecture})")


def _device_id(config: DaemonConfig | None, root: Path) -> Check:
    if config is not None and config.mqtt.device_id is not None:
        return Check("device id", "ok", f"{config.mqtt.device_id}, as configured")
    if machine_hash(root) is None and not is_stored():
        return Check("device id", "note", "chosen when the daemon first starts: this machine has no machine id")
    return Check("device id", "ok", device_id(root=root, store=False))


def _python() -> Check:
    return Check("python", "ok", f"{platform.python_version()} at {sys.executable}")


def _cores(root: Path) -> Check:
    """The default number of threads, and every limit that makes it smaller than the number of CPUs."""
    cores = count_cores(root)
    found = [f"{cores.cpus} CPUs"]
    if cores.allowed < cores.cpus:
        found.append(f"{cores.allowed} of them allowed by affinity or cpuset")
    if cores.physical < cores.allowed:
        found.append(f"{cores.physical} physical cores")
    if cores.full < cores.physical:
        found.append(f"{cores.full} performance cores")
    if cores.quota is not None:
        found.append(f"a quota of {cores.quota.cpus:g} CPUs ({cores.quota.file})")
    return Check("cores", "ok" if cores.usable > 1 else "warn", f"{cores.usable} usable: {', '.join(found)}")


def _memory(target: Target, machine: Machine, root: Path) -> Check:
    free, limit, contiguous = available_bytes(root), memory_limit(root), contiguous_bytes(root)
    detail, reserve = f"{machine.memory_gib:.1f} GiB", target.reserve_gib
    if find_board(machine.device_tree) and target.memory_gib is not None and target.memory_gib > machine.memory_gib:
        # The reserve is of the memory that the module is sold with.
        detail += f" of {target.memory_gib:g}, as firmware holds the rest"
        reserve = max(0.0, reserve - (target.memory_gib - machine.memory_gib))
    detail += f", of which the system needs about {reserve:.1f}"
    if limit is not None:
        detail += f"; a limit of {limit.limit / GIB:.2f} GiB ({limit.file})"
    if free is None:
        return Check("memory", "ok", detail)
    # A Jetson's GPU shares this memory, and can use the page cache's part only after it is released.
    digits = 1 if limit is None else 2
    detail += f"; {free / GIB:.{digits}f} available now"
    if contiguous:
        detail += f", without the {contiguous / GIB:.1f} that are kept for cameras and display"
    return Check("memory", "ok" if free > GIB else "warn", detail)


def _disk(cache: Path | None) -> Check:
    try:
        cache = cache or cache_folder()
    except ConfigError as error:
        return Check("disk", "warn", error.message, error.hint)
    existing = next((folder for folder in (cache, *cache.parents) if folder.exists()), Path("/"))
    free = shutil.disk_usage(existing).free / 1e9
    detail = f"{free:.1f} GB free for {cache}"
    if not os.access(existing, os.W_OK):
        return Check("disk", "warn", f"{cache} is not writable", "export EDGEKIT_CACHE=FOLDER")
    return Check("disk", "ok" if free >= 2 else "warn", detail)


def _runners(target: Target, jetson: Jetson | None) -> list[Check]:
    """The target's runners: the last one, which works on any such machine, is required, the others are optional."""
    if target.dialect == "onnxruntime":
        return _cpu_runners()
    checks = []
    for runner in target.profile.export.runners:
        state: State = "missing" if runner == target.runners[-1] else "note"
        if runner == "tensorrt" and jetson is not None:
            checks.append(_jetson_tensorrt(state))
        elif runner == "cuda":
            checks.append(_onnxruntime_cuda(jetson))
        elif runner != "cpu":
            checks.append(_extra(runner.replace("_", "-"), state, f"runner {runner}"))
    return checks


def _cpu_runners() -> list[Check]:
    """Our own kernels and onnxruntime: one of the two is required."""
    fallback = _extra("onnxruntime", "note", "runner onnxruntime")
    kernels = _kernels("warn" if fallback.state == "ok" else "missing")
    if kernels.state != "ok":
        fallback = _extra("onnxruntime", "missing", "runner onnxruntime")
    return [kernels, fallback]


def _kernels(if_absent: State) -> Check:
    """The compiled kernels of runners/cpu; without them onnxruntime runs bundles for the CPU."""
    name = "CPU kernels"
    try:
        # Imported here because the package needs the extra `text`.
        from edgekit.runners.cpu.build import BuildError, find_compiler
        from edgekit.runners.cpu.library import VARIABLE, Unavailable, load

        found = load()
    except ImportError as error:
        return _not_imported(name, "missing", error)  # nothing computes without numpy
    except ConfigError as error:
        return Check(name, "missing", f"{error.message}; {error.hint}", f"unset {VARIABLE}")
    if not isinstance(found, Unavailable):
        others = ", ".join(variant for variant in found.variants if variant != found.variant)
        return Check(name, "ok", found.variant + (f" (also {others})" if others else ""))
    detail = f"none, so onnxruntime runs bundles for the CPU: {found.reason}"
    if os.environ.get(VARIABLE) == "off":
        return Check(name, "note", detail, f"unset {VARIABLE}")
    fix = f"{sys.executable} -m edgekit.runners.cpu.build"
    try:
        find_compiler()
    except BuildError as error:
        compiler = "xcode-select --install" if sys.platform == "darwin" else "sudo apt install gcc libc6-dev"
        return Check(name, if_absent, f"{detail}; {error}", f"{compiler} && {fix}")
    return Check(name, if_absent, detail, fix)


def _not_imported(name: str, state: State, error: ImportError) -> Check:
    failure = import_failure(error, "text")
    if failure is None:
        raise error
    return Check(name, state, failure.message, pip_install("text") if failure.code == "missing_extra" else failure.hint)


def _jetson_tensorrt(state: State) -> Check:
    """JetPack's bindings: they are for the system's Python, and an environment must be made to see them."""
    name, spec = "runner tensorrt", find_spec("tensorrt")
    in_environment = sys.prefix != sys.base_prefix
    if spec is not None:
        if in_environment and spec.origin and Path(spec.origin).is_relative_to(sys.prefix):
            detail = f"{_installed('tensorrt')} of this environment hides JetPack's, the only one for this GPU"
            return Check(name, "warn", detail, f"{sys.executable} -m pip uninstall -y tensorrt")
        return Check(name, "ok", _installed("tensorrt"))
    if in_environment and sys.base_prefix != "/usr":
        detail = f"JetPack's bindings are for /usr/bin/python3; this environment is of the Python in {sys.base_prefix}"
        return Check(name, state, detail, "install edgekit with scripts/jetson (docs/jetson.md)")
    if in_environment and not _sees_the_system(Path(sys.prefix)):
        fix = f"/usr/bin/python3 -m venv --system-site-packages {sys.prefix}"
        return Check(name, state, "JetPack's Python bindings are not visible in this environment", fix)
    return Check(name, state, "the Python bindings are not installed", "sudo apt install python3-libnvinfer")


def _sees_the_system(environment: Path) -> bool:
    """Whether a virtual environment has the packages of the Python that it was made with."""
    try:
        text = (environment / "pyvenv.cfg").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return re.search(r"^include-system-site-packages\s*=\s*true\s*$", text, re.MULTILINE | re.IGNORECASE) is not None


def _onnxruntime_cuda(jetson: Jetson | None) -> Check:
    name = "onnxruntime on the GPU"
    found, plain = _version("onnxruntime-gpu"), _version("onnxruntime")
    if found is None:
        if jetson is not None:
            detail = "not installed; PyPI's wheel has no code for Orin, NVIDIA's has"
            return Check(name, "note", detail, onnxruntime_install(jetson))
        return Check(name, "note", "not installed", pip_install("onnxruntime-gpu"))
    if plain is not None:
        # Both are the module `onnxruntime`, and the one that was installed last has overwritten the other's files.
        fix = f"{sys.executable} -m pip uninstall -y onnxruntime onnxruntime-gpu && {pip_install('onnxruntime-gpu')}"
        detail = f"onnxruntime {plain} and onnxruntime-gpu {found} are installed over each other"
        return Check(name, "warn", detail, fix if jetson is None else onnxruntime_install(jetson))
    if jetson is not None:
        spec = find_spec("onnxruntime")
        return onnxruntime_on_jetson(found, Path(spec.origin).parent if spec and spec.origin else None, jetson)
    return Check(name, "ok", f"onnxruntime-gpu {found}")


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _extra(extra: str, if_absent: State, name: str | None = None) -> Check:
    # Every extra includes `text`.
    needed = {**EXTRAS["text"], **EXTRAS[extra]}
    absent = [distribution for module, distribution in needed.items() if not _is_there(module)]
    if absent:
        return Check(name or extra, if_absent, f"not installed: {', '.join(absent)}", pip_install(extra))
    return Check(name or extra, "ok", ", ".join(_installed(dist) for dist in EXTRAS[extra].values()))


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of a package that is not there either
        return False


def _installed(distribution: str) -> str:
    found = _version(distribution)
    return distribution if found is None else f"{distribution} {found}"  # None: from apt, or built from source


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
    return Check("mosquitto", "note", "no MQTT broker on this machine; any broker on the network works too", fix)


def _locale() -> Check:
    encoding = locale.getpreferredencoding(do_setlocale=False)
    if encoding.lower().replace("-", "") == "utf8":
        return Check("locale", "ok", encoding)
    return Check("locale", "warn", f"{encoding}: some characters may not be printable", "export LANG=C.UTF-8")


def _configured(config: DaemonConfig) -> list[Check]:
    checks = []
    for name, path in (
        ("bundle", config.bundle),
        ("mqtt.password_file", config.mqtt.password_file),
        ("mqtt.ca_file", config.mqtt.ca_file),
    ):
        if path is not None and not path.exists():
            checks.append(Check(name, "missing", f"{path} does not exist"))
    if config.bundle is not None and config.bundle.exists():
        checks.append(_runner_of(config.bundle, config.generation.runner))
    http = config.http
    for name, file in (("http.tls_certificate", http.tls_certificate), ("http.tls_key", http.tls_key)):
        if file is not None and not file.exists():
            checks.append(Check(name, "missing", f"{file} does not exist"))
    if http.enabled and http.tcp and http.host not in {"127.0.0.1", "::1", "localhost"}:
        keys = "without API keys" if http.insecure else "with an API key: edgekit key add NAME"
        checks.append(Check("http", "warn", f"listens on {http.host}, reachable from the network {keys}"))
    return checks


def _runner_of(folder: Path, runner: str) -> Check:
    """The runner that the configured bundle would get, and why not a better one."""
    try:
        # Imported here because the runners need the extra `text`.
        from edgekit.runners import expected_runner

        artifact = open_bundle(folder).manifest.artifact
        label, rejected = expected_runner(folder, artifact.kind, artifact.dialect, runner=runner)
    except ImportError as error:
        return _not_imported("bundle's runner", "missing", error)
    except EdgekitError as error:
        return Check("bundle's runner", "missing", error.message, error.hint)
    detail = "; ".join((label, *(f"not {one}" for one in rejected)))
    # What makes the best one work makes the others needless.
    return Check("bundle's runner", "warn" if rejected else "ok", detail, rejected[0].hint if rejected else None)
