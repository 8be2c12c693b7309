"""`edgekit build`, with NVIDIA's real builder and tiny graphs."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from edgekit.runners.tensorrt.engine_set import read_engine_set, verify_files
from tests.conftest import edgekit, edgekit_command
from tests.generation.bundles import tiny_bundle
from tests.models import tiny_checkpoint

pytest.importorskip("tensorrt_rtx_bindings", reason="NVIDIA's builder is not installed")

SMALL = ("--context", "64", "--chunk", "16")


@pytest.fixture(scope="module")
def orin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("orin")
    edgekit("export", tiny_checkpoint(folder / "hf", layers=2), "--target", "orin", "-o", folder / "bundle")
    return folder / "bundle"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def build(bundle: Path, *options: str | Path) -> dict[str, Any]:
    return dict(json.loads(edgekit("build", bundle, *SMALL, *options, "--json").stdout))


def test_an_engine_is_built_once_and_found_again(orin: Path, cache: Path) -> None:
    first = build(orin, "--segments", "2")
    assert Path(first["path"]).parent == cache / "engines"
    assert len(first["engine"]["segments"]) == len(first["build"]["segments"]) == 2
    assert (first["engine"]["compute_capability"], first["engine"]["context_length"]) == ("8.7", 64)
    verify_files(Path(first["path"]), read_engine_set(Path(first["path"])))
    again = build(orin)
    assert (again["path"], again["build"]) == (first["path"], None)
    done = edgekit("build", orin, *SMALL)
    assert "in 2 segments, tensorrt_rtx" in done.stdout
    assert "for compute capability 8.7 (built for 8.6: the library has no kernels of its own for 8.7)" in done.stdout
    assert "there already" in done.stdout
    # It stands in for TensorRT in these tests; on a Jetson its engines do not load.
    assert "tensorrt_rtx builds for other devices than jetson-orin" in done.stderr


def test_no_warning_where_the_library_is_that_of_the_bundles_devices(tmp_path: Path, cache: Path) -> None:
    edgekit("export", tiny_checkpoint(tmp_path / "hf", layers=1), "--target", "rtx", "-o", tmp_path / "rtx")
    done = edgekit("build", tmp_path / "rtx", *SMALL, "--compute-capability", "8.6")
    assert "other devices" not in done.stderr
    assert cache.exists()


def test_two_processes_that_build_at_once_build_one_engine(orin: Path, cache: Path) -> None:
    command = edgekit_command("build", orin, *SMALL, "--json")
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(2)]
    replies = [json.loads(process.communicate(timeout=240)[0]) for process in processes]
    assert sorted(reply["build"] is None for reply in replies) == [False, True]
    assert replies[0]["path"] == replies[1]["path"]
    assert {path.name for path in (cache / "engines").iterdir()} == {"edgekit-engines", Path(replies[0]["path"]).name}


def test_an_engine_is_built_for_another_machine_which_takes_it(orin: Path, cache: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    made = build(orin, "--compute-capability", "8.9", "--output", engine)
    assert (made["path"], made["engine"]["built_for"]) == (str(engine), "SM89")
    assert not (cache / "engines").exists()
    assert edgekit("build", orin, *SMALL, "--output", engine, check=False).stderr.count("already exists") == 1
    other = edgekit("build", orin, *SMALL, "--from", engine, check=False)
    assert "its compute capability is `8.9`, not `8.7`" in other.stderr
    damaged = shutil.copytree(engine, tmp_path / "damaged")
    with (damaged / "segment-00.engine").open("r+b") as file:
        file.seek(1000)
        file.write(b"damage")
    options = ("--compute-capability", "8.9", "--from")
    assert "is damaged" in edgekit("build", orin, *SMALL, *options, damaged, check=False).stderr
    assert "its context length is" in edgekit("build", orin, "--context", "72", *options, engine, check=False).stderr
    # Without a word about it, whatever the other machine chose.
    taken = json.loads(edgekit("build", orin, *options, engine, "--json").stdout)
    assert (taken["build"], taken["fetched"], taken["engine"]) == (None, True, made["engine"])
    assert f"there already: nothing was copied from {engine}" in edgekit("build", orin, *options, engine).stdout
    # Although one that fits is there.
    gone = edgekit("build", orin, *options, tmp_path / "gone", check=False).stderr
    assert f"error: there is no folder {tmp_path / 'gone'}\n\nhint: name the folder that has engine.json" in gone
    assert build(orin, "--compute-capability", "8.9")["build"] is None
    assert [path.name for path in (cache / "engines").iterdir() if path.is_dir() and path.name == "building"] == []


def test_a_mistake_is_one_line(orin: Path, cache: Path, tmp_path: Path) -> None:
    for options, message in (
        (("--segments", "9"), "can be cut into at most 4 segments, not 9"),
        (("--compute-capability", "orin"), "`orin` is not a compute capability"),
        (("--compute-capability", "7.2"), "does not build for compute capability 7.2"),
        (("--context", "257"), "--context must be between 64 and 256, not 257"),
        (("--context", "63"), "--context must be between 64 and 256, not 63"),
        (("--from", str(tmp_path)), "has no engine.json"),
        (("--output", f"{orin}/engines/orin"), "is inside the bundle"),
        (("--from", "a", "--output", "b"), "--from and --output exclude each other"),
    ):
        done = edgekit("build", orin, *SMALL, *options, check=False)
        assert done.returncode != 0
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    done = edgekit("build", tiny_bundle(tmp_path, "onnx"), check=False)
    assert "is not for TensorRT: its artifact is onnx onnxruntime" in done.stderr
    assert not list(cache.glob("engines/*/segment*"))


def test_a_damaged_bundle_is_not_built(orin: Path, cache: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(orin, tmp_path / "bundle")
    with (bundle / "model.onnx.data").open("r+b") as file:
        file.write(b"damage")
    assert "is damaged: model.onnx.data" in edgekit("build", bundle, check=False).stderr
    assert not cache.exists()


ENDLESS = """
import pathlib, time
__version__ = "10.3.0"
class ILogger:
    ERROR, INTERNAL_ERROR, WARNING = range(3)
class IBuilderConfig: ...
class Builder:
    def __init__(self, logger):
        pathlib.Path({started!r}).touch()
        time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("to", ["store", "output"])
def test_a_build_that_is_terminated_leaves_no_child_and_no_files(
    orin: Path, cache: Path, tmp_path: Path, number: signal.Signals, to: str
) -> None:
    """Of a library that never finishes."""
    started = tmp_path / "started"
    (tmp_path / "tensorrt.py").write_text(ENDLESS.format(started=str(started)))
    output = ("--output", tmp_path / "output" / "engine") if to == "output" else ()
    process = subprocess.Popen(
        edgekit_command("build", orin, *SMALL, "--segments", "1", *output),
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 60
        while not started.exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, "no build began"
            time.sleep(0.02)
        (child,) = psutil.Process(process.pid).children()
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    assert b"Traceback" not in errors
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running()
    if number != signal.SIGKILL:
        found = [path for folder in (cache / "engines", tmp_path / "output") for path in folder.glob("*")]
        assert [path.name for path in found] == ([] if to == "output" else ["edgekit-engines"])


@pytest.mark.slow
def test_a_store_whose_builds_are_killed_at_any_moment_stays_usable(orin: Path, cache: Path) -> None:
    """Twenty times, at random: only whole engines are ever found."""
    draw = random.Random(7)  # noqa: S311  not for cryptography
    killed = found = 0
    start = time.monotonic()
    subprocess.run(edgekit_command("build", orin, *SMALL, "--segments", "3"), check=True, capture_output=True)
    whole_s = time.monotonic() - start
    while killed < 20:
        process = subprocess.Popen(
            edgekit_command("build", orin, *SMALL, "--segments", "3", "--context", str(draw.choice((72, 80)))),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(draw.uniform(0, 1.02 * whole_s))
        except subprocess.TimeoutExpired:
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            psutil.wait_procs(children, timeout=30)
            assert not any(child.is_running() for child in children)
            killed += 1
        for description in (cache / "engines").glob(f"{'[0-9a-f]' * 32}/engine.json"):
            verify_files(description.parent, read_engine_set(description.parent))
            found += 1
    assert found
    made = build(orin)
    verify_files(Path(made["path"]), read_engine_set(Path(made["path"])))
    names = {path.name for path in (cache / "engines").iterdir()}
    assert names == {"edgekit-engines", Path(made["path"]).name}
