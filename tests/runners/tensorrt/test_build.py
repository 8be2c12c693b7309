from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import psutil
import pytest

from edgekit.errors import BundleError, RunnerError
from edgekit.export.architectures.decoder import Linear
from edgekit.export.quantization.grid import Grid, GroupedTensor, Offset
from edgekit.export.quantization.rtn import rtn
from edgekit.export.recipes.recipe import FORMATS, Recipe
from edgekit.export.writers.onnx import OnnxWriter
from edgekit.profile import Dialect
from edgekit.runners.tensorrt import child
from edgekit.runners.tensorrt.build import BuildProgress, BuildReport, build_engine, installed_library, open_chain
from edgekit.runners.tensorrt.build_memory import needed_bytes
from edgekit.runners.tensorrt.engine_set import read_engine_set, verify_files
from edgekit.runners.tensorrt.layers import ProfileReport
from edgekit.runners.tensorrt.shapes import BuildLimits
from edgekit.target import load_target
from tests.conftest import edgekit
from tests.models import TensorWeights, tiny_decoder, tiny_tensors
from tests.variants import VARIANTS, variant

FloatArray = npt.NDArray[np.float32]

pytest.importorskip("tensorrt_rtx_bindings", reason="NVIDIA's builder is not installed")

LIMITS = BuildLimits(chunk=16, context_length=64, typical_past=32)


# Wide enough that INT4 expanded to FP16 would outgrow the engine's kernels; as few layers as differ.
WIDE: dict[str, Any] = {"layers": 1, "heads": 32, "hidden": 1024, "intermediate": 2048}
TWO_KINDS: dict[str, dict[str, Any]] = {
    "qwen2-window": {"layers": 2},
    "gemma3_text": {"layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
}


def export(
    folder: Path,
    name: str = "qwen2-tied",
    *,
    embedding_bits: int = 4,
    offset: Offset | None = Offset.SYMMETRIC,
    group: int | None = 32,
    dialect: Dialect = "portable",
    **options: Any,
) -> Path:
    source = variant(name, folder / "hf", **{"layers": 2, "vocab": 1024} | options)

    def quantize(linear: Linear, weight: FloatArray) -> GroupedTensor | FloatArray:
        if offset is None:
            return weight
        bits = embedding_bits if linear.name == "model.embed_tokens" else 4
        return rtn(weight, Grid(bits, group or weight.shape[1], offset, np.float16))

    weights = TensorWeights(tiny_tensors(source), quantize)
    (folder / "onnx").mkdir()
    OnnxWriter(dialect)(tiny_decoder(source), weights, folder / "onnx", lambda _: None)
    return folder / "onnx"


def recipe_for(target: str, dialect: Dialect) -> Recipe:
    return Recipe("auto", FORMATS[dialect], load_target(target).group_sizes)


def built(
    source: Path, *, compute_capability: str = "8.7", limits: BuildLimits = LIMITS, **options: Any
) -> BuildReport:
    return build_engine(*open_chain(source, limits), compute_capability=compute_capability, **options)


def kernels(report: BuildReport) -> tuple[ProfileReport, ProfileReport]:
    assert report.decode is not None
    assert report.prefill is not None
    return report.decode, report.prefill


def check(folder: Path) -> None:
    report = built(folder)
    assert (report.compute_capability, report.built_for) == ("8.7", "SM86")
    assert report.int4_kept
    # Expanded to FP16 the INT4 weights alone would be larger than the whole engine.
    assert report.engine_bytes < 4 * report.int4_bytes
    assert report.graph_bytes <= (folder / "model.onnx.data").stat().st_size + (folder / "model.onnx").stat().st_size
    assert report.seconds > 0
    assert report.peak_memory_bytes > report.engine_bytes
    assert report.scratch_bytes is not None
    assert report.scratch_bytes < 64 << 20
    (whole,) = open_chain(folder, LIMITS)[0].cut(1)
    assert report.peak_memory_bytes < needed_bytes(whole, report.library)
    assert report.warnings == ()
    layers, native = _layers(folder)
    decode, prefill = kernels(report)
    for profile in (decode, prefill):
        assert profile.expanded == (), "a matrix is not read as INT4"
        assert profile.int4 >= 7 * layers
    assert decode.cache_copies == ()
    # The builder repeats K and V for each query head in a chunk.
    assert (prefill.cache_copies == ()) == (not native)
    # In `native` it moves each layer's keys to the output that is the same memory.
    assert len(decode.cache_moves) == layers * native
    assert decode.kernels <= (5 + 12 * layers if native else 8 + 15 * layers)


def _layers(folder: Path) -> tuple[int, bool]:
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    names = [value.name for value in graph.input]
    return sum(name.endswith(".key") for name in names), "write_indices" in names


def test_a_graph_that_transposes_its_keys_is_seen_to_copy_them(tmp_path: Path) -> None:
    folder = export(tmp_path, layers=1, **{key: value for key, value in WIDE.items() if key != "layers"})
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    scores = next(node for node in model.graph.node if node.name.endswith("past_scores/MatMul"))
    # `q · Kᵀ`, transposed, instead of `K · qᵀ`.
    keys, query = scores.input
    place = list(model.graph.node).index(scores)
    wanted, scores.output[0] = scores.output[0], "product"
    del scores.input[:]
    scores.input.extend(["query", "keys"])
    for offset, (value, name) in enumerate(((keys, "keys"), (query, "query"), ("product", wanted))):
        node = onnx.helper.make_node("Transpose", [value], [name], name=f"turned/{offset}", perm=[0, 1, 3, 2])
        model.graph.node.insert(place + (offset if value != "product" else 3), node)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    report = built(folder, limits=BuildLimits(chunk=16, context_length=256, typical_past=128))
    assert kernels(report)[0].cache_copies


def test_matrices_that_the_builder_expands_are_named(tmp_path: Path) -> None:
    # It does so silently where one group is the whole column.
    decode, _ = kernels(built(export(tmp_path, layers=1, group=None)))
    assert "/model/layers.0/mlp/gate_proj/MatMul" in decode.expanded
    assert decode.int4 + len(decode.expanded) == 8


@pytest.mark.parametrize("dialect", ["portable", "native"])
@pytest.mark.parametrize("name", ["qwen2", *(pytest.param(one, marks=pytest.mark.slow) for one in VARIANTS)])
def test_the_scratch_memory_of_a_step_does_not_grow_with_the_square_of_the_context(
    tmp_path: Path, name: str, dialect: Dialect
) -> None:
    options: dict[str, Any] = {"max_position": 8192, "layers": 1}
    if "window" in name:
        options |= {"sliding_window": 12}
    if "layer_types" in VARIANTS[name]:
        options |= {"layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    folder = export(tmp_path, name, dialect=dialect, **options)
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    hidden = next(value for value in graph.initializer if value.name == "model.norm.weight").dims[0]
    chunk = 16
    small, large = (
        built(folder, limits=BuildLimits(chunk=chunk, context_length=context, typical_past=context // 2)).scratch_bytes
        for context in (1024, 8192)
    )
    assert small is not None
    assert large is not None
    # Scores of a chunk, of at most as many heads as there are inputs, in FP32 and twice over.
    assert large - small <= chunk * 8192 * hidden * 8


# One layer of a K-quants file: 4 bits with offsets in groups of 32, and 8 bits for what had 6.
@pytest.mark.parametrize("dialect", ["portable", pytest.param("native", marks=pytest.mark.slow)])
def test_matrices_of_4_and_8_bits_beside_each_other_are_read_as_int4(tmp_path: Path, dialect: Dialect) -> None:
    source, recipe = variant("qwen2", tmp_path / "hf", **WIDE | {"vocab": 1024}), recipe_for("orin", dialect)

    def quantize(linear: Linear, weight: FloatArray) -> GroupedTensor | FloatArray:
        if linear.name.endswith(("v_proj", "down_proj")):
            return recipe.apply(linear, weight, "Q6_K")[0]
        return rtn(weight, Grid(4, 32, Offset.FLOAT, np.float16))

    (tmp_path / "onnx").mkdir()
    OnnxWriter(dialect)(
        tiny_decoder(source), TensorWeights(tiny_tensors(source), quantize), tmp_path / "onnx", lambda _: None
    )
    for profile in kernels(built(tmp_path / "onnx")):
        # v and down are two halves each.
        assert (profile.expanded, profile.int4) == ((), 10)


# Only the numbers in their RoPE tables differ from another variant's graph.
SAME_GRAPH = {"qwen2-yarn", "llama3", "llama-nested-rope", "phi3-longrope"}
EVERY = [pytest.param(name, marks=pytest.mark.slow) if name in SAME_GRAPH else name for name in VARIANTS]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dialect", ["portable", "native"])
def test_nvidias_builder_takes_every_architecture_and_keeps_int4(tmp_path: Path, name: str, dialect: Dialect) -> None:
    check(export(tmp_path, name, dialect=dialect, **WIDE | TWO_KINDS.get(name, {})))


@pytest.mark.parametrize("dialect", ["portable", "native"])
def test_an_8_bit_head_is_kept_in_two_halves_of_int4(tmp_path: Path, dialect: Dialect) -> None:
    check(export(tmp_path, embedding_bits=8, dialect=dialect, **WIDE))


def test_several_sequences_have_kernels_of_their_own_and_leave_those_of_one_as_they_are(tmp_path: Path) -> None:
    folder = export(tmp_path, offset=Offset.FLOAT, **WIDE | {"layers": 2})
    limits = replace(LIMITS, batch=4)
    one, several = built(folder), built(folder, limits=limits)
    assert (one.decode, one.prefill, one.batch) == (several.decode, several.prefill, None)
    assert several.batch is not None
    assert several.decode is not None
    assert several.int4_kept
    assert several.batch.int4 == several.decode.int4
    assert several.batch.cache_copies == ()
    # The builder keeps INT4 weights in another order for them, at most once more.
    assert several.engine_bytes - one.engine_bytes < 1.1 * several.int4_bytes + (1 << 20)
    (whole,) = open_chain(folder, limits)[0].cut(1)
    assert several.peak_memory_bytes < needed_bytes(whole, several.library, batch=4)


def test_one_native_file_is_built_with_a_cache_of_any_length(tmp_path: Path) -> None:
    folder = export(tmp_path, dialect="native", layers=1)
    # TensorRT does not parse a cache of unknown length, which the file has.
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    cache = next(value for value in graph.input if value.name == "past_key_values.0.key")
    assert cache.type.tensor_type.shape.dim[2].dim_param == "capacity"
    before = (folder / "model.onnx").read_bytes()
    for context in (64, 128):
        limits = BuildLimits(chunk=16, context_length=context, typical_past=32)
        assert built(folder, limits=limits).engine_bytes > 0
    assert (folder / "model.onnx").read_bytes() == before


def test_a_grid_with_offsets_builds_as_int4_too(tmp_path: Path) -> None:
    report = built(export(tmp_path, offset=Offset.FLOAT, **WIDE))
    assert report.int4_kept
    assert report.int4_bytes > 0


def test_a_float_graph_builds_and_is_not_called_int4(tmp_path: Path) -> None:
    report = built(export(tmp_path, offset=None))
    assert (report.int4_bytes, report.int4_kept) == (0, False)


@pytest.mark.parametrize("dialect", ["portable", "native"])
@pytest.mark.parametrize("recipe", [("--recipe", "none"), ("--recipe", "lsq", "--head-bits", "16")])
def test_a_float_head_of_its_own_is_built_and_held_once(
    tmp_path: Path, recipe: tuple[str, ...], dialect: Dialect
) -> None:
    """The graph transposes it; the builder must multiply by it as stored, not keep a transposed copy."""
    vocab = 16_384
    source, bundle = variant("llama", tmp_path / "hf", **WIDE | {"vocab": vocab}), tmp_path / "bundle"
    edgekit("export", source, "--target", "rtx", "--dialect", dialect, *recipe, "-o", bundle)
    report = json.loads(edgekit("verify", bundle, "--build", "--json").stdout)["build"]
    graph = onnx.load(bundle / "model.onnx", load_external_data=False).graph
    assert any(node.name == "/lm_head/Transpose" for node in graph.node)
    assert (report["int4_bytes"] > 0) == report["int4_kept"] == ("none" not in recipe)
    head = vocab * WIDE["hidden"] * 2
    assert report["graph_bytes"] > head
    # Each of the two profiles may keep the layers in an order of its own.
    layers = max(0, report["graph_bytes"] - 2 * head)
    assert report["engine_bytes"] < report["graph_bytes"] + layers + head / 2
    assert report["warnings"] == []


def test_an_int4_engine_is_less_than_half_as_large_as_the_fp16_engine_of_the_same_model(tmp_path: Path) -> None:
    for name in ("int4", "fp16"):
        (tmp_path / name).mkdir()
    int4 = built(export(tmp_path / "int4", **WIDE | {"layers": 2}))
    fp16 = built(export(tmp_path / "fp16", offset=None, **WIDE | {"layers": 2}))
    # Two layers of seven matrices, and the head.
    assert (kernels(int4)[0].int4, kernels(fp16)[0].int4) == (15, 0)
    assert int4.engine_bytes < fp16.engine_bytes / 2


def test_the_engine_is_saved_with_its_description(tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    folder.mkdir()
    report = built(export(tmp_path), compute_capability="8.9", folder=folder, graph_sha256="1" * 64)
    engine = read_engine_set(folder)
    assert (report.built_for, engine.built_for, engine.compute_capability) == ("SM89", "SM89", "8.9")
    assert (engine.dialect, engine.layout, engine.context_length, engine.graph_sha256) == ("portable", 3, 64, "1" * 64)
    assert [profile.tokens for profile in engine.profiles] == [1, 16]
    assert [segment.file for segment in engine.segments] == ["segment-00.engine"]
    assert engine.size == report.engine_bytes == (folder / "segment-00.engine").stat().st_size
    verify_files(folder, engine)


@pytest.mark.parametrize("dialect", ["portable", "native"])
def test_segments_are_built_one_after_another_and_their_kernels_counted_together(
    tmp_path: Path, dialect: Dialect
) -> None:
    source, folder = export(tmp_path, dialect=dialect), tmp_path / "engine"
    folder.mkdir()
    seen: list[BuildProgress] = []
    report = built(source, segments=4, folder=folder, progress=seen.append)
    engine = read_engine_set(folder)
    assert [(one.first_layer, one.last_layer) for one in engine.segments] == [
        (None, None),
        (0, 0),
        (1, 1),
        (None, None),
    ]
    assert sorted(path.name for path in folder.iterdir()) == ["engine.json", *(one.file for one in engine.segments)]
    for before, after in zip(engine.segments, engine.segments[1:], strict=False):
        assert after.boundary in before.outputs
        assert after.boundary in after.inputs
    verify_files(folder, engine)
    decode, prefill = kernels(report)
    assert (decode.int4, decode.expanded, prefill.int4, prefill.expanded) == (15, (), 15, ())
    assert decode.cache_copies == ()
    assert report.int4_kept
    assert report.engine_bytes == sum(one.engine_bytes for one in report.segments) == engine.size
    assert [one.segment for one in seen] == sorted(one.segment for one in seen)
    assert {one.segments for one in seen} == {4}
    assert [one.share for one in seen] == sorted(one.share for one in seen)
    assert (seen[0].share, seen[-1].share) == (0.0, 1.0)


def builders() -> Iterator[psutil.Process]:
    """The children of this process that build; those of other tests may come and go."""
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if "edgekit.runners.tensorrt.build_worker" in process.cmdline():
                yield process


def test_a_build_is_cancelled_by_an_exception_of_the_callers_and_leaves_no_child(tmp_path: Path) -> None:
    source = export(tmp_path)
    children = []

    class CancelledError(Exception):
        pass

    def cancel(progress: BuildProgress) -> None:
        found = list(builders())
        if found and progress.share > 0:
            children.extend(found)
            raise CancelledError

    with pytest.raises(CancelledError):
        built(source, progress=cancel)
    assert children
    assert not any(child.is_running() for child in children)


def test_a_device_too_old_for_the_library_is_refused_with_the_supported_ones(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match=r"does not build for compute capability 7\.2") as caught:
        built(export(tmp_path), compute_capability="7.2")
    assert "8.6" in str(caught.value.hint)


def test_a_gpu_without_int4_is_refused_for_that_and_not_for_a_missing_driver(tmp_path: Path) -> None:
    with pytest.raises(RunnerError, match=r"sm75, because the model contains HW-specific datatypes: int4") as caught:
        built(export(tmp_path, layers=1), compute_capability="7.5")
    assert "driver" not in caught.value.message
    assert "compute capability 8.0 or later" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ("8.6", "SM86"),
        *(
            pytest.param(*pair, marks=pytest.mark.slow)
            for pair in (("8.0", "SM80"), ("8.9", "SM89"), ("12.0", "SM120"), ("12.1", "SM121"))
        ),
    ],
)
def test_engines_are_built_for_every_gpu_that_the_library_knows(tmp_path: Path, capability: str, name: str) -> None:
    report = built(export(tmp_path, layers=1), compute_capability=capability)
    assert (report.built_for, report.int4_kept) == (name, True)


def test_an_operator_that_tensorrt_does_not_support_is_named_with_its_node(tmp_path: Path) -> None:
    folder = export(tmp_path)
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    node = next(node for node in model.graph.node if node.name == "/model/layers.1/mlp/act/Sigmoid")
    node.op_type, node.domain = "SiLU", "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(RunnerError, match=r"/model/layers\.1/mlp/act/Sigmoid.*SiLU"):
        built(folder)


def test_a_graph_for_another_runtime_is_refused(tmp_path: Path) -> None:
    folder = export(tmp_path, dialect="onnxruntime")
    with pytest.raises(BundleError, match="does not build the `onnxruntime` dialect"):
        built(folder)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        built(tmp_path)
    folder = export(tmp_path)
    (folder / "model.onnx.data").unlink()
    with pytest.raises(BundleError, match=r"model\.onnx\.data does not exist"):
        built(folder)
    (folder / "model.onnx").write_bytes(b"\xff\xff\xff")
    with pytest.raises(BundleError, match="not an ONNX file"):
        built(folder)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("os.abort()", r"crashed \(signal 6\)"),
        (
            "os.kill(os.getpid(), 9)",
            r"was killed, as the system does when memory is short; the build needs about 0\.\d GiB",
        ),
        ("raise ValueError('no such tactic')", "ended: ValueError: no such tactic"),
        ("print('hello'); sys.exit()", "ended: no reason given"),
    ],
)
def test_a_builder_that_crashes_is_an_error_and_does_not_end_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, message: str
) -> None:
    source = export(tmp_path)
    installed_library()
    (tmp_path / "crashing.py").write_text(f"import os, sys; {program}\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(child, "_WORKER", "crashing")
    with pytest.raises(RunnerError, match=message):
        built(source)


def test_a_build_that_takes_too_long_is_aborted(tmp_path: Path) -> None:
    installed_library()
    with pytest.raises(RunnerError, match=r"did not finish within 0\.01 s"):
        built(export(tmp_path), timeout_s=0.01)


def test_a_file_that_may_not_be_as_large_as_the_engine_is_an_error_that_names_the_limit(tmp_path: Path) -> None:
    source, folder = export(tmp_path), tmp_path / "engine"
    folder.mkdir()
    # Below the weights, which is found before the build; and above them, where the builder's writing is refused.
    limits = (10_000, 500_000)
    program = (
        "import pathlib, resource, sys\n"
        "from edgekit.errors import EdgekitError\n"
        "from edgekit.runners.tensorrt.build import build_engine, open_chain\n"
        "from edgekit.runners.tensorrt.shapes import BuildLimits\n"
        "source, folder = map(pathlib.Path, sys.argv[1:])\n"
        f"for limit in {limits}:\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))\n"
        "    try: build_engine(*open_chain(source, BuildLimits()), compute_capability='8.7', folder=folder)\n"
        "    except EdgekitError as error: print(error.code, error.message, error.hint, sep='; ')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, source, folder], capture_output=True, text=True, check=True)
    before, during = done.stdout.splitlines()
    assert before.startswith("build_disk; a file of the engine takes at least ")
    assert during.startswith(
        "build_disk; the engine cannot be written: File too large; a file may have 488 KiB at most"
    )
    for line in (before, during):
        assert "LimitFSIZE=infinity" in line
    assert not (folder / "engine.json").exists()


def test_the_command_line_exports_natively_for_a_newer_jetpack_and_verifies_by_building(tmp_path: Path) -> None:
    source, bundle = variant("qwen3", tmp_path / "hf", **WIDE), str(tmp_path / "bundle")
    edgekit("export", source, "--target", "orin-nano-8", "--jetpack", "7.2", "--dialect", "native", "-o", bundle)
    assert json.loads(edgekit("info", bundle, "--json").stdout)["artifact"] == {
        "kind": "onnx",
        "dialect": "native",
        "layout": 2,
    }
    report = json.loads(edgekit("verify", bundle, "--build", "--json").stdout)["build"]
    assert report["int4_kept"]
    assert report["compute_capability"] == "8.7"


def test_the_command_line_refuses_a_jetpack_that_the_target_has_not(tmp_path: Path) -> None:
    done = edgekit("export", tmp_path, "--target", "cpu", "--jetpack", "7.2", check=False)
    assert done.returncode == 2
    assert "target `cpu` has no JetPack" in done.stderr
    assert "Traceback" not in done.stderr
