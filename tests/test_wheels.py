"""The wheels of scripts/wheels: their kernels compute what they should, and one answers in an empty environment.

No Mac runs here: of the wheel for macOS only what scripts/check_wheel.py reads is known.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from build_wheels import TARGETS
from check_wheel import VARIANTS

from edgekit.runners.base import Chunk
from edgekit.runners.cpu.build import FOLDER, Compiler, compile_kernels
from edgekit.runners.cpu.library import Kernels, load
from edgekit.runners.cpu.onnx_reader.match_model import ModelDescription
from edgekit.runners.cpu.runner import CpuRunner
from edgekit.version import current_version
from tests.arm_root import ArmRoot
from tests.broker import Broker, Caller, free_port
from tests.conftest import SMALL, edgekit
from tests.jetson.tree import write, write_nano
from tests.models import tiny_checkpoint
from tests.runners.cpu import small_kernels
from tests.runners.cpu.conftest import best  # noqa: F401  a fixture
from tests.runners.cpu.models import random_model
from tests.runners.cpu.parity import SHAPES, check
from tests.runners.cpu.remote import QEMU, Remote, kernels_of
from tests.runners.cpu.schedules import MODELS, SLOTS, Slots

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

REPOSITORY = Path(__file__).parent.parent
ZIG = (str(REPOSITORY / ".venv-wheels" / "bin" / "python"), "-m", "ziglang", "cc")
LINUX = {"x86_64": "manylinux_2_28_x86_64", "aarch64": "manylinux_2_28_aarch64"}
# What a compiler defines where it may use the instructions of a variant.
MACROS = {
    "avx512vnni": ["__AVX512F__", "__AVX512BW__", "__AVX512VL__", "__AVX512DQ__", "__AVX512VNNI__"],
    "avx2": ["__AVX2__", "__FMA__", "__F16C__"],
    "dotprod": ["__ARM_FEATURE_DOTPROD", "__ARM_FEATURE_FP16_VECTOR_ARITHMETIC", "__ARM_FP16_FORMAT_IEEE"],
    "plain": [],
}
# The first 64-bit processors lack these.
NOT_PLAIN = ["defined(__SSE3__)", "defined(__ARM_FEATURE_ATOMICS)", "defined(__ARM_FEATURE_DOTPROD)"]


@dataclass(frozen=True)
class Wheels:
    """What scripts/wheels built.

    Attributes:
        folder: With the files.
        unpacked: Of each platform's wheel, the folder with the kernels.
    """

    folder: Path
    unpacked: dict[str, Path]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([str(REPOSITORY / "scripts" / "wheels"), str(folder)], check=True, timeout=3000)
    unpacked = {}
    for wheel in folder.glob("*.whl"):
        name = wheel.stem.rpartition("-")[2]
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / name)
        unpacked[name] = folder / name / FOLDER.relative_to(REPOSITORY)
    return Wheels(folder, unpacked)


@pytest.fixture(scope="module", params=LINUX)
def kernels(
    request: pytest.FixtureRequest, wheels: Wheels, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kernels]:
    """Of a wheel for Linux: run by this processor, or for 64-bit Arm by qemu."""
    machine, folder = request.param, wheels.unpacked[LINUX[request.param]]
    if machine == platform.machine():
        found = load({}, folder)
        assert isinstance(found, Kernels), found
        yield found
        return
    if machine != "aarch64" or shutil.which(QEMU[0]) is None or not Path(QEMU[2]).is_dir():
        pytest.skip(f"kernels for {machine} do not run here (for 64-bit Arm: apt install qemu-user libc6-arm64-cross)")
    program = tmp_path_factory.mktemp("remote") / "remote"
    source = REPOSITORY / "tests" / "runners" / "cpu" / "remote.c"
    subprocess.run([*ZIG, "-target", TARGETS[LINUX[machine]], "-O2", str(source), "-o", str(program)], check=True)
    remote = Remote([*QEMU, program, folder / "_kernels.so"])
    found = kernels_of(remote)
    assert found.variants == VARIANTS[LINUX[machine]]
    yield found
    assert remote.close() == ""


def test_there_is_a_wheel_for_each_platform_and_the_sources(wheels: Wheels) -> None:
    names = {f"edgekit_llm-{current_version()}-py3-none-{name}.whl" for name in VARIANTS}
    files = {path.name for path in wheels.folder.iterdir() if path.is_file()}
    assert files == names | {f"edgekit_llm-{current_version()}.tar.gz"}


def test_the_processor_runs_the_variants_that_the_systems_compiler_gives_it_too(
    wheels: Wheels,
    best: Kernels,  # noqa: F811
) -> None:
    found = load({}, wheels.unpacked[LINUX[platform.machine()]])
    assert isinstance(found, Kernels)
    assert (found.variants, found.variant) == (best.variants, best.variant)


@pytest.mark.parametrize("name", TARGETS)
def test_zig_compiles_each_variant_for_its_instructions(
    name: str,
    wheels: Wheels,  # noqa: ARG001  scripts/wheels installs zig
    tmp_path: Path,
) -> None:
    compiler = Compiler((*ZIG, "-target", TARGETS[name]), TARGETS[name])
    lines = [small_kernels.KERNELS]
    for number, (variant, macros) in enumerate(MACROS.items(), 1):
        wrong = " || ".join([f"!defined({macro})" for macro in macros] or NOT_PLAIN)
        lines += [f"#define ID_{variant} {number}", f"#if NAME(ID_, EK_VARIANT) == {number} && ({wrong})", "#error"]
        lines += ["#endif"]
    sources = small_kernels.write(tmp_path, kernels="\n".join([*lines, ""]))
    built = compile_kernels(compiler, sources, tmp_path / "kernels.so")
    assert (built.variants, built.left_out, built.warnings) == (VARIANTS[name], {}, ())


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_computes_what_numpy_computes(shape: str, kernels: Kernels) -> None:
    for variant in kernels.variants:
        check(random_model(**SHAPES[shape]), replace(kernels, variant=variant), threads=2)


@pytest.mark.parametrize("window", [-1, 300])
def test_attention_over_several_spans_of_positions(window: int, kernels: Kernels) -> None:
    model = random_model(positions=700, window=window, kv_heads=1)
    for variant in kernels.variants:
        check(model, replace(kernels, variant=variant), (254, 1, 1, 1, 255, 1, 1, 80, 1, 5), threads=2)


def test_token_by_token_gives_the_bits_of_one_long_chunk(kernels: Kernels) -> None:
    for name in MODELS:
        for variant in kernels.variants:
            slots = Slots(name, replace(kernels, variant=variant), 2)
            for slot in range(SLOTS):
                slots.restart(slot, slot)
            slots.run([(1, 500, "none"), (0, 250, "none"), (2, 16, "none")])
            for _ in range(5):
                slots.run([(slot, 1, "last") for slot in range(SLOTS)])
            slots.check_cache()
            slots.runner.close()


@pytest.mark.parametrize("shape", SHAPES)
def test_the_wheel_gives_the_bits_of_the_systems_compiler(
    shape: str,
    wheels: Wheels,
    best: Kernels,  # noqa: F811
) -> None:
    found = load({}, wheels.unpacked[LINUX[platform.machine()]])
    assert isinstance(found, Kernels)
    model = random_model(**SHAPES[shape])
    for variant in best.variants:
        ours, theirs = (results(model, replace(kernels, variant=variant)) for kernels in (found, best))
        assert ours == theirs, variant


def results(model: ModelDescription, kernels: Kernels) -> tuple[bytes, bytes]:
    """The logits and the KV cache of a few chunks, as bytes."""
    sizes = (31, 5, 1, 1, 8)
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, sum(sizes)).tolist()
    runner = CpuRunner(model, kernels, threads=2, max_chunk=max(sizes))
    logits, done = b"", 0
    for count in sizes:
        logits += runner.run([Chunk(0, tokens[done : done + count], "all")])[0].tobytes()
        done += count
    cache = runner.read_kv(0, 0, done)
    runner.close()
    return logits, cache


def test_the_wheel_exports_and_answers_in_an_empty_environment(wheels: Wheels, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    programs = tmp_path / "venv" / "bin"
    # No compiler, no repository: what is not in the wheels is not there.
    kept = {name: os.environ[name] for name in ("HOME", "XDG_CACHE_HOME", "EDGEKIT_CACHE") if name in os.environ}
    env = {**kept, "PATH": str(programs), "LANG": "C.UTF-8"}

    def call(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=1800)
        assert done.returncode == 0, done.stderr
        return done.stdout

    requirement = f"edgekit-llm[export,daemon]=={current_version()}"
    call(str(programs / "pip"), "install", "--find-links", str(wheels.folder), requirement)
    edgekit = str(programs / "edgekit")
    assert call(edgekit, "--version").split()[-1] == current_version()
    (kernels,) = (
        item for item in json.loads(call(edgekit, "doctor", "--json"))["checks"] if item["name"] == "CPU kernels"
    )
    assert kernels["state"] == "ok"
    assert kernels["detail"].partition(" ")[0] in VARIANTS[LINUX[platform.machine()]]
    call(edgekit, "export", SMALL, "--target", "cpu", "-o", "bundle")
    answer = call(edgekit, "run", "bundle", "--system", "Answer in one sentence.", "What is the capital of France?")
    assert "Paris" in answer


@pytest.mark.broker
def test_the_wheel_for_arm_answers_from_an_orins_bundle_on_a_system_that_looks_like_a_jetsons(
    wheels: Wheels, tmp_path: Path
) -> None:
    (wheel,) = wheels.folder.glob(f"*{LINUX['aarch64']}.whl")
    answer_on_arm(wheel, tmp_path)


def answer_on_arm(wheel: Path, tmp_path: Path) -> None:
    """Ask a wheel's daemon, in a Debian root for 64-bit Arm under qemu, with a Jetson's files in /proc and /sys."""
    root = ArmRoot(tmp_path)
    root.pip_install(f"edgekit-llm[daemon] @ {wheel.as_uri()}")
    checkpoint = tiny_checkpoint(tmp_path / "tiny")
    edgekit("export", checkpoint, "--target", "orin-nano-8", "-o", root.path / "opt" / "bundle")
    write_nano(root.path)
    write(root.path, "proc/meminfo", "MemTotal: 7801405 kB\nMemAvailable: 5452595 kB\nCmaFree: 0 kB\n")
    messages = [{"role": "user", "content": "Hello"}]
    with Broker(tmp_path) as broker, Caller(broker.port, "edgekit/nano/status", "replies/me") as caller:
        port = free_port()
        options = ["--http-port", str(port), "--mqtt", f"127.0.0.1:{broker.port}", "--device", "nano"]
        daemon = root.popen("-m", "edgekit", "serve", "/opt/bundle", *options, log=tmp_path / "log")
        try:
            status = caller.next(600)
            caller.publish(
                "edgekit/nano/chat/request", {"messages": messages, "max_tokens": 8, "reply_to": "replies/me"}
            )
            final = caller.until("final", 600)[-1]
            url = f"http://127.0.0.1:{port}/v1/chat/completions"
            reply = httpx.post(url, json={"model": "tiny", "messages": messages, "max_tokens": 8}, timeout=600).json()
        finally:
            daemon.terminate()
            daemon.wait(120)
    log = (tmp_path / "log").read_text()
    assert "serving tiny on cpu (dotprod)" in log, log
    # Why no better runner: there is no engine, and no TensorRT.
    assert "tensorrt" in log
    assert status["device"]["jetpack"] == "6.2.1"
    assert status["device"]["power_w"] == 6.0
    # Greedy, as the checkpoint states no sampling: both transports give one answer.
    assert final["message"]["content"] == reply["choices"][0]["message"]["content"]
    assert final["usage"]["completion_tokens"] == reply["usage"]["completion_tokens"] > 0
