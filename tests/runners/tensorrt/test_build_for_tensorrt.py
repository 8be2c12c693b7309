"""What a build does differently with TensorRT 10.3, which runs on no machine without a GPU: a stand-in is built with.

The stand-in has the names and signatures of the real bindings, and computes nothing: what is tested is what the build
asks of the library and what it makes of the answers.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import EdgekitError, RunnerError
from edgekit.runners.tensorrt.build import BuildReport, build_engine, installed_library, open_chain
from edgekit.runners.tensorrt.engine_set import read_engine_set, verify_files
from edgekit.runners.tensorrt.shapes import BuildLimits
from edgekit.runners.tensorrt.troubles import build_failed, write_failed
from tests.runners.tensorrt.graphs import write_graph

STAND_IN = """
import json, os, sys
__version__ = "10.3.0"

class ILogger:
    VERBOSE, INFO, WARNING, ERROR, INTERNAL_ERROR = range(5)
class IProgressMonitor: ...
class NetworkDefinitionCreationFlag: STRONGLY_TYPED = 1
class BuilderFlag: TF32 = 7
class ProfilingVerbosity: DETAILED = 2
class MemoryPoolType: WORKSPACE = 0

class Cache:
    def __init__(self, data): self.data = data
    def serialize(self): return self.data + b"+"

class Profile:
    def __init__(self): self.shapes = {}
    def set_shape(self, name, *shapes): self.shapes[name] = shapes

class IBuilderConfig:
    def __init__(self): self.profiles, self.limits, self.cache = [], {}, None
    def set_memory_pool_limit(self, pool, size): self.limits[pool] = size
    def add_optimization_profile(self, profile): self.profiles.append(profile.shapes)
    def create_timing_cache(self, data): return Cache(bytes(data))
    def set_timing_cache(self, cache, ignore_mismatch):
        self.cache = cache
        return not cache.data.startswith(b"foreign")
    def get_timing_cache(self): return self.cache

class Builder:
    def __init__(self, logger): self.logger = logger
    def create_network(self, flags): return flags
    def create_builder_config(self): return IBuilderConfig()
    def create_optimization_profile(self): return Profile()
    def build_serialized_network(self, network, config):
        monitor = config.progress_monitor
        monitor.phase_start("Building engine", None, 6)
        monitor.step_complete("Building engine", 2)
        monitor.phase_start("Computing profile costs", "Building engine", 4)
        monitor.step_complete("Computing profile costs", 1)
        if reason := os.environ.get("STAND_IN_FAILS"):
            self.logger.log(ILogger.ERROR, reason)
            return None
        self.logger.log(ILogger.WARNING, "a warning")
        facts = {"network": network, "profiles": config.profiles, "workspace": config.limits.get(0),
                 "streams": config.max_aux_streams, "verbosity": config.profiling_verbosity,
                 "timings": config.cache and config.cache.data.decode()}
        return json.dumps(facts).encode()

class OnnxParser:
    num_errors = 0
    def __init__(self, network, logger): ...
    def parse(self, model, path=None): return True
"""


@pytest.fixture(autouse=True)
def _stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "module").mkdir()
    (tmp_path / "module" / "tensorrt.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'module'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    installed_library.cache_clear()
    yield
    installed_library.cache_clear()


def build(source: Path, folder: Path, **options: Any) -> tuple[BuildReport, list[dict[str, Any]]]:
    folder.mkdir()
    chain, limits = open_chain(source, BuildLimits(chunk=16, context_length=64, typical_past=32, batch=4))
    report = build_engine(chain, limits, compute_capability="8.7", folder=folder, **options)
    return report, [json.loads((folder / one.file).read_bytes()) for one in read_engine_set(folder).segments]


def test_an_engine_that_the_library_cannot_stream_is_written_from_memory(tmp_path: Path) -> None:
    report, (facts,) = build(write_graph(tmp_path), tmp_path / "engine", workspace_bytes=1 << 28)
    engine = read_engine_set(tmp_path / "engine")
    verify_files(tmp_path / "engine", engine)
    assert (engine.library, engine.version, engine.compute_capability, engine.built_for) == (
        "tensorrt",
        "10.3.0",
        "8.7",
        "",
    )
    assert (facts["network"], facts["workspace"], facts["streams"], facts["verbosity"]) == (2, 1 << 28, 0, 2)
    decode, prefill, batch = facts["profiles"]
    assert decode["input_ids"] == [[1, 1], [1, 1], [1, 1]]
    assert batch["input_ids"] == [[1, 1], [4, 1], [4, 1]]
    assert prefill["input_ids"] == [[1, 1], [1, 16], [1, 16]]
    # A sequence of 64 tokens: the last one sees 63 others, in blocks of 8.
    assert prefill["past_key_values.0.key"][2] == [1, 2, 8, 8, 32]
    assert prefill["attention_mask"] == [[1, 1, 1, 1], [1, 1, 16, 48], [1, 1, 16, 80]]
    assert report.warnings == ("a warning",)
    # It lists no kernels that edgekit can read.
    assert (report.decode, report.prefill, report.int4_kept) == (None, None, None)


def test_timings_of_one_segment_are_used_for_the_next_and_those_of_another_gpu_are_not(tmp_path: Path) -> None:
    source, timings = write_graph(tmp_path), tmp_path / "timings"
    _, facts = build(source, tmp_path / "first", segments=3, timing_cache=timings)
    assert [one["timings"] for one in facts] == ["", "+", "++"]
    _, facts = build(source, tmp_path / "second", timing_cache=timings)
    assert [one["timings"] for one in facts] == ["+++"]
    timings.write_bytes(b"foreign")
    _, facts = build(source, tmp_path / "third", timing_cache=timings)
    assert facts[0]["timings"] == ""


def test_progress_follows_the_phase_that_takes_the_time(tmp_path: Path) -> None:
    seen: list[float] = []
    build(write_graph(tmp_path), tmp_path / "engine", progress=lambda progress: seen.append(progress.share))
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0.0, 1.0)
    # Half of a phase that is 96 % of the build, and a part of the next quarter if that takes some time.
    assert any(0.5 <= share <= 0.74 for share in seen)


@pytest.mark.parametrize(
    ("reason", "hint"),
    [
        ("NvMapMemAllocInternalTagged: 1075072515 error 12", "L4T 36.4.7 mends it"),
        ("[defaultAllocator.cpp] Cuda Runtime (out of memory)", "build with more `segments`"),
        ("CUDA initialization failure with error: 35", "edgekit doctor"),
        ("Error Code 10: myelin graph could not be compiled", "another number of `segments`"),
        ("no implementation for node", None),
    ],
)
def test_a_failure_is_the_builders_own_message_and_what_is_known_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, hint: str | None
) -> None:
    monkeypatch.setenv("STAND_IN_FAILS", reason)
    with pytest.raises(RunnerError) as caught:
        build(write_graph(tmp_path), tmp_path / "engine")
    assert caught.value.message == reason
    assert caught.value.hint is None if hint is None else hint in str(caught.value.hint)
    assert not (tmp_path / "engine" / "engine.json").exists()


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "free some space, or name a folder on another disk"),
        (errno.EDQUOT, "the account's disk quota is used up"),
        (errno.EFBIG, "build with more `segments`, which are smaller files"),
    ],
)
def test_a_disk_that_takes_no_more_has_its_own_hint_in_a_build_and_in_a_copy(number: int, hint: str) -> None:
    for error in (
        build_failed(os.strerror(number), number),
        write_failed("copying failed", OSError(number, os.strerror(number))),
    ):
        assert os.strerror(number) in error.message
        assert hint in str(error.hint)
        assert error.code == "build_disk"


def test_without_the_library_the_error_names_the_extra(tmp_path: Path) -> None:
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        (tmp_path / "module" / f"{name}.py").write_text(f"raise ModuleNotFoundError(name='{name}')")
    with pytest.raises(EdgekitError) as caught:
        installed_library()
    assert (caught.value.code, caught.value.hint) == ("missing_extra", "pip install 'edgekit-llm[tensorrt-rtx]'")
