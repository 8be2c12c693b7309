"""A bundle's engine in the store is what runs it, over doubles of TensorRT and of the CUDA driver."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

import pytest

from edgekit.bundle.bundle import open_bundle
from edgekit.config import GenerationConfig
from edgekit.errors import RunnerError, missing_extra
from edgekit.generation.engine.slots import Slots
from edgekit.generation.model import TextModel
from edgekit.generation.startup import open_model, plan_memory
from edgekit.runners import expected_runner
from edgekit.runners.base import Chunk
from edgekit.runners.tensorrt.engine_folder import RUNTIME_CACHE, mark_verified
from edgekit.runners.tensorrt.engine_set import EngineSegment, EngineSet, Profile, write_engine_set
from edgekit.runners.tensorrt.memory import EngineMemory
from edgekit.runners.tensorrt.open import find_engine, open_engine
from edgekit.runners.tensorrt.runner import TensorRtRunner
from edgekit.runners.tensorrt.store import EngineStore, StoredEngine, Wanted, graph_digest
from tests.runners.cuda.driver_double import DriverDouble
from tests.runners.tensorrt.builder_double import export_two, machine_with_tensorrt
from tests.runners.tensorrt.engines import build

VERSION = "10.3.0"
CONTEXT = 128


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_two(tmp_path_factory.mktemp("exported"))


@pytest.fixture
def bundle(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported / "bundle", tmp_path / "bundle"))


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DriverDouble]:
    """The double of the driver, of which the machine has one, and TensorRT."""
    with machine_with_tensorrt(tmp_path, monkeypatch) as (_, driver):
        yield driver


def place(bundle: Path, graph_of: Path | None = None, **changes: Any) -> StoredEngine:
    """Put an engine of the bundle's graph, or of another one's, into the store."""
    opened = open_bundle(bundle)
    wanted = Wanted(
        graph_sha256=graph_digest(opened),
        dialect=opened.manifest.artifact.dialect,
        layout=opened.manifest.artifact.layout,
        library="tensorrt",
        version=VERSION,
        compute_capability="8.7",
        context_length=CONTEXT,
        workspace_bytes=0,
        profiles=(Profile(1, 1), Profile(1, 64), Profile(4, 1)),
    )
    wanted = replace(wanted, **changes)
    work = Path(shutil.copytree(graph_of or bundle, bundle.parent / f"graph-{wanted.context_length}"))
    (made,) = build(work / "model.onnx", context=wanted.context_length or CONTEXT)

    def make(folder: Path) -> None:
        name, data = "segment-00.engine", made.read_bytes()
        (folder / name).write_bytes(data)
        segment = EngineSegment(name, len(data), sha256(data).hexdigest(), 0, 2, None, ("input_ids",), ("logits",))
        fields = {field.name: getattr(wanted, field.name) for field in dataclass_fields(Wanted)}
        write_engine_set(folder, EngineSet(**{**fields, "segments": (segment,), "built_for": ""}))

    return EngineStore().obtain(bundle, wanted, make)


def opened(bundle: Path, **options: Any) -> TextModel:
    config = GenerationConfig(threads=1, parallel=3, ignore_compatible=True, **options)
    return open_model(open_bundle(bundle), config)


def reason(model: TextModel) -> str:
    """Why the engine does not run it."""
    first = model.info.rejected[0]
    assert first.name == "tensorrt"
    model.close()
    return first.reason


def test_an_engine_that_passes_the_self_test_runs_the_bundle_and_everything_is_released(
    bundle: Path, driver: DriverDouble, caplog: pytest.LogCaptureFixture
) -> None:
    stored = place(bundle)
    caplog.set_level("INFO")
    model = opened(bundle)
    assert isinstance(model.runner, TensorRtRunner)
    assert "self-test passed by tensorrt" in caplog.text
    assert model.info.rejected == ()
    assert (model.info.context_length, model.runner.limits.sequence_slots) == (CONTEXT, 3)
    assert model.runner.limits.max_chunk == 64
    assert "the engine holds 128 of the bundle's" in caplog.text
    model.close()
    assert (driver.allocated, driver.open_handles) == (0, 0)
    assert (stored.folder / RUNTIME_CACHE).exists(), "TensorRT for RTX keeps what it compiled"
    place(bundle, context_length=64)
    assert not stored.folder.exists(), "the engine before is removed, with its cache"


def test_the_engine_with_the_longest_context_is_taken(bundle: Path, driver: DriverDouble) -> None:
    del driver
    place(bundle)
    # For the store, another bundle with the same graph.
    place(Path(shutil.copytree(bundle, bundle.parent / "b")), context_length=256)
    model = opened(bundle)
    assert model.info.context_length == 256
    model.close()


def test_the_engine_of_another_gpu_does_not_hide_the_one_for_this_gpu(bundle: Path, driver: DriverDouble) -> None:
    place(bundle)
    foreign = Path(shutil.copytree(bundle, bundle.parent / "b"))
    place(foreign, context_length=256, compute_capability="8.6")
    model = opened(bundle)
    assert isinstance(model.runner, TensorRtRunner)
    assert model.info.context_length == CONTEXT
    model.close()
    assert find_engine(bundle, "8.6")[1].engine.context_length == 256
    assert (driver.allocated, driver.open_handles) == (0, 0)


def test_without_an_engine_another_runner_is_chosen_and_the_reason_says_so(bundle: Path, driver: DriverDouble) -> None:
    del driver
    assert reason(opened(bundle)) == "no engine was built"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"version": "10.16.1"}, "was built with tensorrt 10.16.1; tensorrt 10.3.0 is installed"),
        ({"compute_capability": "8.6"}, "was built for compute capability 8.6; "),
    ],
)
def test_an_engine_for_another_version_or_gpu_is_not_loaded(
    bundle: Path, driver: DriverDouble, changes: dict[str, Any], why: str
) -> None:
    place(bundle, **changes)
    assert why in reason(opened(bundle))
    assert (driver.allocated, driver.open_handles) == (0, 0)


def test_an_engine_that_computes_something_else_is_rejected_with_the_figures(
    bundle: Path, exported: Path, driver: DriverDouble
) -> None:
    place(bundle, graph_of=exported / "other")
    assert "computes wrong logits with this bundle: error of the logits " in reason(opened(bundle))
    assert (driver.allocated, driver.open_handles) == (0, 0)


def test_without_a_driver_no_engine_is_promised_and_that_is_the_reason_whether_one_was_built_or_not(
    bundle: Path, exported: Path, tmp_path: Path, driver: DriverDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    del driver
    other = Path(shutil.copytree(exported / "other", tmp_path / "other"))
    place(bundle)
    assert expected_runner(bundle, "onnx", "portable") == ("tensorrt 10.3.0, 128 tokens", ())
    assert expected_runner(other, "onnx", "portable")[1][0].reason == "no engine was built"

    def no_driver() -> None:
        raise RunnerError("this machine has no NVIDIA driver")

    monkeypatch.setattr("edgekit.runners.tensorrt.open.check_driver", no_driver)
    for folder in (bundle, other):
        label, rejected = expected_runner(folder, "onnx", "portable")
        assert not label.startswith("tensorrt")
        assert (rejected[0].name, rejected[0].reason) == ("tensorrt", "this machine has no NVIDIA driver")
        assert reason(opened(folder)) == "this machine has no NVIDIA driver"


def test_without_the_library_that_is_the_reason_and_not_the_engine_that_it_did_not_build(
    bundle: Path, driver: DriverDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    del driver

    def missing(prefer: str) -> NoReturn:
        raise missing_extra(prefer, prefer)

    monkeypatch.setattr("edgekit.runners.tensorrt.open.installed_library", missing)
    _, rejected = expected_runner(bundle, "onnx", "portable")
    assert (rejected[0].name, rejected[0].code) == ("tensorrt", "missing_extra")


def test_a_damaged_engine_is_not_loaded(bundle: Path, driver: DriverDouble) -> None:
    del driver
    stored = place(bundle)
    (stored.folder / "segment-00.engine").write_bytes(b"damaged")
    assert reason(opened(bundle)) == "the engine that was built is damaged"


def test_an_engine_that_a_disk_damaged_without_a_write_is_found_to_be_damaged_once_it_does_not_load(
    bundle: Path, driver: DriverDouble
) -> None:
    stored = place(bundle)
    (stored.folder / "segment-00.engine").write_bytes(b"damaged")
    mark_verified(stored.folder, stored.engine)
    assert "does not load" in reason(opened(bundle))
    assert reason(opened(bundle)) == "the engine that was built is damaged"
    assert (driver.allocated, driver.open_handles) == (0, 0)


def test_engines_of_another_version_are_not_read(
    bundle: Path, driver: DriverDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    del driver
    stored = place(bundle, version="10.16.1")
    (stored.folder / "verified.json").unlink()
    monkeypatch.setattr("edgekit.runners.tensorrt.engine_folder.verify_files", lambda *_: pytest.fail("it is hashed"))
    assert "was built with tensorrt 10.16.1; tensorrt 10.3.0 is installed" in reason(opened(bundle))


def allocating(bundle: Path, stored: StoredEngine, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], TensorRtRunner]:
    """Opens the engine for 4 slots of 1024 tokens, with so many bytes available."""

    def open_with(available: int) -> TensorRtRunner:
        monkeypatch.setattr("edgekit.runners.tensorrt.open.available_bytes", lambda: available)
        return open_engine(open_bundle(bundle), stored, context_length=1024, sequence_slots=4)

    return open_with


def accounts_of(monkeypatch: pytest.MonkeyPatch) -> list[EngineMemory]:
    """The accounts that are made from now on."""
    accounts: list[EngineMemory] = []
    real = EngineMemory.of

    def noted(*of: Any, **by: Any) -> EngineMemory:
        accounts.append(real(*of, **by))
        return accounts[-1]

    monkeypatch.setattr(EngineMemory, "of", noted)
    return accounts


def test_the_account_covers_what_is_allocated(
    bundle: Path, driver: DriverDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = accounts_of(monkeypatch)
    runner = allocating(bundle, place(bundle, context_length=1024), monkeypatch)(1 << 40)
    (account,), pool = accounts, runner.limits.kv_pool
    assert pool is not None
    assert (pool.positions, pool.capacity, pool.allocated) == (4 * 1024, 1024, True)
    # A whole chunk with the logits of every token, which have a buffer only when they are wanted.
    runner.run([Chunk(0, [1] * 64, "all")])
    allocated = driver.allocated
    counted = account.buffers + account.scratch + pool.positions * account.position
    assert allocated <= counted <= allocated + 64 * 1024
    runner.close()


def test_the_kv_cache_has_the_positions_that_memory_leaves_and_slots_share_them(
    bundle: Path, driver: DriverDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = accounts_of(monkeypatch)
    open_with = allocating(bundle, place(bundle, context_length=1024), monkeypatch)
    open_with(1 << 40).close()
    (account,) = accounts

    def left(positions: int) -> int:
        return int((account.beside + (positions + 0.5) * account.position) / 0.9)

    for positions, limits in ((1500, (1024, 4)), (600, (600, 2)), (256, (256, 1))):
        runner = open_with(left(positions))
        assert (runner.limits.context_length, runner.limits.sequence_slots) == limits
        assert runner.limits.kv_positions == positions // 8 * 8
        runner.close()
    with pytest.raises(RunnerError, match=r"beside the engine, .* GiB are left: .* 256 tokens of KV cache"):
        open_with(left(255))
    assert (driver.allocated, driver.open_handles) == (0, 0)


def test_the_generation_core_shares_the_memory_and_admits_what_the_pool_holds(
    bundle: Path, driver: DriverDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    del driver
    place(bundle, context_length=256)
    monkeypatch.setattr("edgekit.runners.tensorrt.open.available_bytes", lambda: 1 << 40)
    model = opened(bundle, kv_cache_mib=1)
    assert isinstance(model.runner, TensorRtRunner)
    limits = model.runner.limits
    assert model.runner._kv.size <= 1 << 20
    plan = plan_memory(model, open_bundle(bundle), GenerationConfig(parallel=3))
    assert plan.kv_bytes == limits.kv_positions * limits.kv_bytes_per_token
    assert Slots(model.runner, budget_bytes=plan.kv_bytes).max_tokens == limits.kv_positions
    model.close()
