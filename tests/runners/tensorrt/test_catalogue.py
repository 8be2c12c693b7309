"""NVIDIA's real parser and builder, by `edgekit export` and `edgekit build`, on every shape in the catalogue.

The models that come as files have their own weights, the others random ones. `scripts/bench engines` builds all of them
whole; here the largest have one layer and their head, of their exact shape.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from edgekit.export.sources.catalog import Entry, catalog
from edgekit.memory import GIB, MIB
from edgekit.runners.tensorrt.build import build_engine, open_chain
from edgekit.runners.tensorrt.build_memory import choose_segments, needed_bytes
from edgekit.runners.tensorrt.engine_set import read_engine_set, verify_files
from edgekit.runners.tensorrt.shapes import BuildLimits
from edgekit.target import load_target
from tests.conftest import edgekit
from tests.models import tiny_checkpoint
from tests.runners.tensorrt.large import write_large_graph

pytest.importorskip("tensorrt_rtx_bindings", reason="NVIDIA's builder is not installed")

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
DIALECTS = {"portable": (), "native": ("--jetpack", "7.2", "--dialect", "native")}
# Kernels of a layer in a step of one token. The models that are files have offsets, which are products of their own.
LAYER = {("portable", False): 17, ("native", False): 11, ("portable", True): 23, ("native", True): 19}
REST = 10
# Weights of a model that is not built whole here.
LARGE = 2_000_000_000


def build(source: str | Path, dialect: str, folder: Path) -> dict[str, Any]:
    bundle = folder / "bundle"
    edgekit("export", source, "--target", "orin", *DIALECTS[dialect], "-o", bundle)
    done = edgekit(
        "build", bundle, "--compute-capability", "8.7", "--context", "4096", "--output", folder / "engine", "--json"
    )
    report: dict[str, Any] = json.loads(done.stdout)["build"]
    return report


def check(report: dict[str, Any], dialect: str, *, layers: int, offsets: bool) -> None:
    decode, prefill = report["decode"], report["prefill"]
    assert report["int4_kept"]
    assert (decode["expanded"], prefill["expanded"]) == ([], [])
    assert decode["int4"] == prefill["int4"] >= 7 * layers + 1
    assert decode["cache_copies"] == []
    assert decode["kernels"] <= REST + layers * LAYER[dialect, offsets]
    # Kernels take some megabytes, whatever the model.
    assert report["engine_bytes"] < 1.5 * report["graph_bytes"] + 8 * MIB
    assert report["scratch_bytes"] < 256 * MIB


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_layer_of_a_catalogue_models_shape_is_built(dialect: str, tmp_path: Path) -> None:
    """Of SmolLM2, whose widths take groups of 64 only, and whose nine heads share three key/value heads."""
    source = tiny_checkpoint(
        tmp_path / "hf", model_type="llama", layers=1, heads=9, kv_heads=3, hidden=576, intermediate=1536, tied=True,
        vocab=1024, max_position=8192,
    )  # fmt: skip
    check(build(source, dialect, tmp_path), dialect, layers=1, offsets=False)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("entry", catalog(), ids=lambda entry: entry.name)
def test_every_model_of_the_catalogue_is_built(
    entry: Entry, dialect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers, offsets = int(entry.shape["num_hidden_layers"]), not isinstance(entry.source, str)
    source: str | Path = entry.name
    if not offsets:
        monkeypatch.syspath_prepend(str(BENCHMARKS))
        layers = 1 if entry.parameters > LARGE else layers
        config = {**entry.shape, "num_hidden_layers": layers}
        source = importlib.import_module("inputs.make_checkpoint").write_checkpoint(tmp_path / "hf", config)
    check(build(source, dialect, tmp_path), dialect, layers=layers, offsets=offsets)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_7b_is_built_on_a_board_of_8_gb(tmp_path: Path) -> None:
    """In as many segments as the memory check asks for there; 4 GB of disk, and as much memory."""
    board = load_target("orin-nano-8")
    assert board.memory_gib is not None
    available = int((board.memory_gib - board.reserve_gib) * GIB)
    # What its bundle will be served with there: one sequence at a time.
    chain, limits = open_chain(write_large_graph("qwen2.5-7b-instruct", tmp_path / "onnx"), BuildLimits())
    # By the needs of the library that it has, which are higher than those of the one that builds here.
    count = choose_segments(chain, board.runners[0], available)
    folder = tmp_path / "engine"
    folder.mkdir()
    report = build_engine(chain, limits, compute_capability="8.7", segments=count, folder=folder)
    verify_files(folder, read_engine_set(folder))
    assert report.peak_memory_bytes <= 4.5 * GIB
    for segment, part in zip(report.segments, chain.cut(count), strict=True):
        assert segment.peak_memory_bytes <= needed_bytes(part, report.library)
    # 28 layers of seven matrices, and the head.
    decode, prefill = report.decode, report.prefill
    assert decode is not None
    assert prefill is not None
    assert (decode.int4, decode.expanded, prefill.int4, prefill.expanded) == (197, (), 197, ())
    assert (report.int4_kept, decode.cache_copies) == (True, ())
    assert report.engine_bytes < 1.1 * report.graph_bytes
