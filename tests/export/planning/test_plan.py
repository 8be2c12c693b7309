"""The memory plan: figures from a configuration against what is written, and exports that cannot fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgekit.bundle.bundle import open_bundle
from edgekit.errors import BundleError, ConfigError, EdgekitError, ExportError, option, spell_options
from edgekit.export.architectures import describe
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.export.planning.plan import plan_model, with_max_memory
from edgekit.export.sources.open import open_checkpoint
from edgekit.memory import GIB
from edgekit.target import load_target
from tests.conftest import LARGE, SMALL, Export, edgekit
from tests.export.checkpoints.fuzzing import KINDS, write_seeds
from tests.export.checkpoints.packed_files import pack_checkpoint
from tests.export.sources import test_hub
from tests.models import tiny_checkpoint
from tests.variants import VARIANTS, variant

hub = test_hub.hub

QWEN_7B = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 3584,
    "intermediate_size": 18944, "max_position_embeddings": 32768, "max_window_layers": 28, "num_attention_heads": 28,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 131072, "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_sliding_window": False,
    "vocab_size": 152064,
}  # fmt: skip


@pytest.fixture
def qwen(tmp_path: Path) -> str:
    """The config.json of Qwen2.5-7B-Instruct, without any other file."""
    path = tmp_path / "Qwen2.5-7B-Instruct" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps(QWEN_7B))
    return str(path)


def data_bytes(bundle: Path) -> int:
    """Bytes of the files that hold an artifact's weights."""
    files = open_bundle(bundle).manifest.files
    return sum(file.size for file in files if file.path.endswith((".onnx.data", ".safetensors")))


def exported(checkpoint: Path, target: str, folder: Path, **options: Any) -> Path:
    given = ExportOptions(**options)
    return export_bundle(str(checkpoint), load_target(target), folder, given, lambda *_: None).path


@pytest.mark.parametrize("recipe", ["lsq", "none"])
@pytest.mark.parametrize("target", ["cpu", "m2", "orin"])
@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_predicted_for_an_architecture_is_what_is_written(
    name: str, target: str, recipe: str, tmp_path: Path
) -> None:
    checkpoint = variant(name, tmp_path / name)
    try:
        predicted = plan_model(str(checkpoint), load_target(target), ExportOptions(recipe=recipe))
    except ExportError as refused:
        # Some architectures have layers that a backend cannot compute.
        assert refused.code == "unsupported_configuration"  # noqa: PT017  the rest of the test is the other case
        with pytest.raises(ExportError) as caught:
            exported(checkpoint, target, tmp_path / "bundle", recipe=recipe)
        assert caught.value.message == refused.message  # noqa: PT017
        return
    bundle = exported(checkpoint, target, tmp_path / "bundle", recipe=recipe)
    written = plan_model(str(bundle), load_target(target))
    constants = written.sizes.vectors - predicted.sizes.vectors
    assert 0 <= constants < 600
    for part in ("stored", "read_per_token"):
        assert getattr(predicted.sizes, part) == getattr(written.sizes, part) - constants
    runner = predicted.runner
    assert predicted.sizes.resident(runner) == written.sizes.resident(runner) - constants
    # A large part of a tiny file is padding and header.
    assert abs(predicted.sizes.stored - data_bytes(bundle)) < 34_000
    assert predicted.plan.footprint.kv_cache(100) == written.plan.footprint.kv_cache(100)


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint of every form that the readers know; `gptq-reordered` used `desc_act`."""
    folder = tmp_path_factory.mktemp("forms")
    write_seeds(folder)
    reordered = variant("qwen2-yarn", folder / "gptq-reordered", layers=1)
    pack_checkpoint(reordered, "gptq", desc_act=True)
    tensors = load_file(reordered / "model.safetensors")
    for name in (name for name in tensors if name.endswith("g_idx")):
        tensors[name] = np.random.default_rng(0).permutation(tensors[name])
    save_file(tensors, reordered / "model.safetensors")
    return folder


@pytest.mark.parametrize("target", ["cpu", "m2", "orin"])
@pytest.mark.parametrize("form", [*KINDS, "gptq-reordered"])
def test_a_plan_and_an_export_of_every_form_of_checkpoint_agree(
    form: str, target: str, forms: Path, tmp_path: Path
) -> None:
    ggufs = sorted((forms / form).glob("*.gguf"))
    checkpoint = ggufs[0] if ggufs else forms / form
    try:
        predicted = plan_model(str(checkpoint), load_target(target))
    except EdgekitError as refused:
        with pytest.raises(EdgekitError) as caught:
            exported(checkpoint, target, tmp_path / "bundle")
        assert (caught.value.message, caught.value.hint) == (refused.message, refused.hint)  # noqa: PT017
        return
    written = plan_model(str(exported(checkpoint, target, tmp_path / "bundle")), load_target(target))
    assert 0 <= written.sizes.stored - predicted.sizes.stored < 600
    assert predicted.runner == written.runner
    assert any("desc_act" in note for note in predicted.notes) is (form == "gptq-reordered")
    assert any("LongRoPE" in note for note in predicted.notes) is ("longrope" in checkpoint_rope(checkpoint))
    if form.startswith("gptq"):
        alone = tmp_path / "alone.json"
        alone.write_text((checkpoint / "config.json").read_text())
        assert plan_model(str(alone), load_target(target)).sizes.stored == predicted.sizes.stored


def checkpoint_rope(checkpoint: Path) -> str:
    with closing(open_checkpoint(checkpoint)) as opened:
        return describe(opened.config).rope.kind


@pytest.mark.parametrize("name", VARIANTS)
def test_in_floating_point_a_configuration_alone_gives_every_element_of_every_tensor(name: str, tmp_path: Path) -> None:
    checkpoint = variant(name, tmp_path / name)
    decoder = describe(json.loads((checkpoint / "config.json").read_text()))
    elements = sum(prod(shape) for shape in decoder.tensor_shapes().values())
    target = load_target("m2")
    # Within a window that mlx-lm's module does not compute.
    options = ExportOptions(recipe="none", context_length=12)
    assert plan_model(str(checkpoint / "config.json"), target, options).sizes.stored == 2 * elements


@pytest.mark.parametrize("target", ["cpu", "m2", "orin"])
@pytest.mark.parametrize(("tied", "bits"), [(True, (None, 16)), (True, (8, None)), (False, (16, 8)), (False, (8, 4))])
def test_the_bits_of_head_and_embedding_are_planned_for(
    tied: bool, bits: tuple[int | None, int | None], target: str, tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", tied=tied, vocab=4096)
    chosen: dict[str, Any] = {"recipe": "rtn", "head_bits": bits[0], "embedding_bits": bits[1]}
    predicted = plan_model(str(checkpoint), load_target(target), ExportOptions(**chosen))
    written = plan_model(str(exported(checkpoint, target, tmp_path / "bundle", **chosen)), load_target(target))
    assert predicted.sizes.stored == pytest.approx(written.sizes.stored, abs=600)
    assert predicted.runner == written.runner
    done = edgekit(
        "plan", checkpoint, "-t", target, "--recipe", "rtn", "--json", "--embedding-bits", str(bits[1] or bits[0] or 4),
        *(() if tied else ("--head-bits", str(bits[0] or 4))), check=False,
    )  # fmt: skip
    assert json.loads(done.stdout)["artifact_bytes"] == predicted.sizes.stored


@pytest.mark.parametrize("target", ["cpu", "m2", "orin"])
def test_a_size_to_fit_is_planned_for(target: str, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", hidden=512, intermediate=1024, vocab=4096, layers=2)
    plain = plan_model(str(checkpoint), load_target(target), ExportOptions(recipe="rtn"))
    size = plain.sizes.stored + (600 << 10)
    mixed = ExportOptions(recipe="rtn", fit_bytes=size)
    planned = plan_model(str(checkpoint), load_target(target), mixed)
    assert planned.sizes.stored == size
    assert planned.plan.needed > plain.plan.needed
    assert planned.runner == plain.runner
    bundle = exported(checkpoint, target, tmp_path / "bundle", recipe="rtn", fit_bytes=size)
    # Bits are chosen per matrix; the largest matrix takes 512 KiB more.
    assert size - (560 << 10) < data_bytes(bundle) <= size
    everything = plan_model(str(checkpoint), load_target(target), ExportOptions(recipe="rtn", fit_bytes=1 << 40))
    assert everything.sizes.stored < 2 * plain.sizes.stored
    done = edgekit("plan", checkpoint, "-t", target, "--recipe", "rtn", "--fit", f"{size}", "--json")
    assert json.loads(done.stdout)["artifact_bytes"] == size


@pytest.mark.parametrize("target", ["cpu", "m2", "orin"])
def test_a_real_model_is_predicted_within_a_hundredth(target: str, export: Export) -> None:
    bundle = export(target)
    predicted = plan_model(SMALL, load_target(target)).sizes.stored
    assert predicted == pytest.approx(data_bytes(bundle), rel=0.01)
    assert plan_model(str(bundle), load_target(target)).sizes.stored == pytest.approx(data_bytes(bundle), rel=0.01)


@pytest.mark.parametrize("target", ["cpu", "m2", "orin"])
def test_a_larger_tiny_model_is_predicted_within_a_hundredth(target: str, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", hidden=512, intermediate=1024, vocab=4096, layers=2)
    predicted = plan_model(str(checkpoint / "config.json"), load_target(target), ExportOptions(recipe="rtn"))
    bundle = exported(checkpoint, target, tmp_path / "bundle", recipe="rtn")
    assert predicted.sizes.stored == pytest.approx(data_bytes(bundle), rel=0.01)


@pytest.mark.parametrize("target", ["cpu", "m2", "orin"])
def test_the_catalogues_facts_are_near_what_the_file_gives(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = plan_model(SMALL, load_target(target))
    assert known.basis == "the checkpoint's own tensors"
    monkeypatch.setenv("EDGEKIT_CACHE", str(tmp_path))
    estimated = plan_model(SMALL, load_target(target))
    assert estimated.basis.startswith("the catalogue's facts")
    assert estimated.sizes.stored == pytest.approx(known.sizes.stored, rel=0.03)


@pytest.mark.parametrize(
    ("target", "expected"), [("orin", 56), ("orin-nx-16", 28), ("orin-nano-8", 28), ("m1", 17), ("m2", 25)]
)
def test_the_ceiling_of_qwen_7b(target: str, expected: int, qwen: str) -> None:
    planned = plan_model(qwen, load_target(target))
    ceiling = planned.ceiling(0)
    assert ceiling is not None
    assert round(ceiling) == expected
    if target == "orin":
        assert planned.sizes.read_per_token == pytest.approx(3.65e9, rel=0.005)
        assert planned.plan.footprint.kv_cache(1) == 57_344


def test_without_a_context_the_longest_that_fits_is_planned_for(qwen: str) -> None:
    small, large = plan_model(qwen, load_target("orin-nano-8")), plan_model(qwen, load_target("orin"))
    assert (small.plan.fits, large.plan.fits) == (True, True)
    assert large.plan.context == large.plan.max_context == 32768
    assert 4096 <= small.plan.context < 32768
    assert small.plan.context == small.plan.longest_context()
    one_more = plan_model(qwen, load_target("orin-nano-8"), ExportOptions(context_length=small.plan.context + 256))
    assert one_more.plan.fits is False


def test_advice_is_computed_and_holds(qwen: str) -> None:
    target = load_target("orin-nano-8")
    planned = plan_model(qwen, target, ExportOptions(context_length=32768), parallel=2)
    assert planned.plan.fits is False
    advice = [spell_options(line, lambda name, value: f"{name} {value}") for line in planned.advice]
    context = next(int(line.split()[1]) for line in advice if line.startswith("context_length"))
    assert plan_model(qwen, target, ExportOptions(context_length=context), parallel=2).plan.fits
    device, left = next((line.split()[1], line.split()[3]) for line in advice if line.startswith("fits"))
    roomier = plan_model(qwen, load_target(device), ExportOptions(context_length=32768), parallel=2)
    assert roomier.plan.left is not None
    assert f"{roomier.plan.left / GIB:.2f}" == left

    floats = plan_model(qwen, target, ExportOptions(recipe="none", context_length=4096))
    advice = [spell_options(line, lambda name, value: f"{name} {value}") for line in floats.advice]
    recipe, saved = next((line.split()[1], line.split()[3]) for line in advice if line.startswith("recipe"))
    smaller = plan_model(qwen, target, ExportOptions(recipe=recipe, context_length=4096))
    assert f"{(floats.plan.needed - smaller.plan.needed) / GIB:.2f}" == saved


def test_a_device_that_is_made_larger_is_named_with_its_size(qwen: str) -> None:
    planned = plan_model(qwen, load_target("m2"), ExportOptions(context_length=32768))
    assert any(option("memory_gib", 16) in line for line in planned.advice)


def test_a_quantized_checkpoints_configuration_gives_its_own_grid(tmp_path: Path) -> None:
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}
    plain, packed = tmp_path / "plain.json", tmp_path / "packed.json"
    plain.write_text(json.dumps(QWEN_7B))
    packed.write_text(json.dumps({**QWEN_7B, "quantization_config": settings}))
    target = load_target("orin")
    kept = plan_model(str(packed), target).sizes.layers
    fitted = plan_model(str(plain), target).sizes.layers
    assert sum(one.total for one in kept) == sum(one.total for one in fitted)


def test_a_layer_that_sees_a_window_keeps_no_more_on_apple_silicon(tmp_path: Path) -> None:
    checkpoint = variant("gemma3_text", tmp_path / "model")
    one_layer = 2 * 2 * 1 * 64
    mlx = plan_model(str(checkpoint), load_target("m2")).plan.footprint
    assert mlx.kv_cache(200) == one_layer * (200 + 3 * 12)
    assert plan_model(str(checkpoint), load_target("orin")).plan.footprint.kv_cache(200) == one_layer * 4 * 200


def test_a_bundle_for_another_device_is_refused(tmp_path: Path) -> None:
    bundle = exported(tiny_checkpoint(tmp_path / "model"), "m2", tmp_path / "bundle")
    with pytest.raises(BundleError, match="made for apple-silicon"):
        plan_model(str(bundle), load_target("orin"))
    with pytest.raises(ConfigError, match="256 tokens"):
        plan_model(str(bundle), load_target("m2"), ExportOptions(context_length=512))


def test_an_export_that_cannot_fit_is_refused_before_any_work(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    larger = {**QWEN_7B, "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "head_dim": 128}
    (folder / "config.json").write_text(json.dumps({**larger, "num_key_value_heads": 8, "intermediate_size": 29568}))
    # No weights are there: a refusal can rest on the configuration alone, and anything later fails otherwise.
    with pytest.raises(ExportError, match=r"does not fit NVIDIA Jetson Orin Nano 8 GB: it needs \d+") as refused:
        exported(folder, "orin-nano-8", tmp_path / "bundle")
    assert refused.value.code == "does_not_fit"
    assert refused.value.hint is not None
    assert "`allow_oversize=True`" in refused.value.hint
    assert "fits orin with" in refused.value.hint
    with pytest.raises(EdgekitError) as later:
        exported(folder, "orin-nano-8", tmp_path / "bundle", allow_oversize=True)
    assert later.value.code != "does_not_fit"


def test_without_stated_memory_only_models_too_large_for_every_size_are_refused(qwen: str) -> None:
    assert with_max_memory(load_target("m2")).memory_gib == 192
    assert with_max_memory(load_target("cpu")).memory_gib is None
    folder = str(Path(qwen).parent)
    for target, stated, refused in (("m2", None, False), ("m2", 8, True), ("cpu", None, False), ("cpu", 4, True)):
        options = ExportOptions(context_length=32768, memory_gib=stated)
        device = load_target(target, memory_gib=stated)
        with pytest.raises(EdgekitError) as error:
            export_bundle(folder, device, Path(folder) / "bundle", options, lambda *_: None)
        assert (error.value.code == "does_not_fit") is refused


def test_an_export_whose_full_context_does_not_fit_reports_how_much_does(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(
        tmp_path / "model", model_type="qwen3", heads=32, kv_heads=32, head_dim=128, max_position=1 << 17, layers=1
    )
    arguments = ("export", checkpoint, "--target", "cpu", "--recipe", "rtn")
    done = edgekit(*arguments, "--memory-gib", "2", "-o", tmp_path / "small")
    assert "cpu has memory for" in done.stderr
    assert "of its 131,072 tokens" in done.stderr
    assert "has memory for" not in edgekit(*arguments, "--memory-gib", "64", "-o", tmp_path / "large").stderr


HUB_PLAN = """
import sys
from edgekit.cli import main
sys.argv = ["edgekit", "plan", *sys.argv[1:]]
main()
"""


def plan_of_hub(endpoint: str, home: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", HUB_PLAN, *arguments],
        env={**clean, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_for_a_hub_id_only_the_small_files_are_downloaded(hub: str, tmp_path: Path) -> None:
    arguments = ("org/Tiny", "--target", "orin-nano-8", "--json")
    done = plan_of_hub(hub, tmp_path / "home", *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["basis"] == f"config.json of org/Tiny@{test_hub.COMMIT[:8]}"
    # Of the weights only the header is, by its range.
    assert {name for name in test_hub.downloaded() if "safetensors" in name} == {"model.safetensors"}
    assert test_hub.weight_bytes() == 1 << 18 < (tmp_path / "Tiny" / "model.safetensors").stat().st_size
    offline = plan_of_hub("http://127.0.0.1:9", tmp_path / "home", *arguments, HF_HUB_OFFLINE="1")
    assert offline.stdout == done.stdout
    absent = plan_of_hub("http://127.0.0.1:9", tmp_path / "empty", *arguments, HF_HUB_OFFLINE="1")
    assert absent.returncode == 1
    assert "org/Tiny cannot be downloaded" in absent.stderr


def test_the_command_shows_a_table_and_exits_with_1_where_it_does_not_fit(qwen: str) -> None:
    fits = edgekit("plan", qwen, "--target", "orin")
    assert "56 tokens/s" in fits.stdout
    assert "204.8 GB/s / 3.65 GB read per token" in fits.stdout
    assert "longest context" in fits.stdout
    large = edgekit("plan", qwen, "--target", "orin-nano-8", "--context", "32768", "--parallel", "2", check=False)
    assert large.returncode == 1
    assert "does not fit" in large.stdout
    assert "--context" in large.stdout
    assert "Traceback" not in large.stderr


def test_the_configurations_name_of_the_runner_is_understood_for_either_library(qwen: str) -> None:
    for target, runner in (("orin", "tensorrt"), ("rtx", "tensorrt_rtx")):
        planned = edgekit("plan", qwen, "--target", target, "--runner", "tensorrt", "--json", check=False)
        assert json.loads(planned.stdout)["runner"] == runner


def test_where_the_memory_is_not_known_the_command_asks_for_it(qwen: str) -> None:
    unknown = edgekit("plan", qwen, "--target", "cpu")
    assert "--memory-gib" in unknown.stderr
    assert "left" not in unknown.stdout
    known = edgekit("plan", qwen, "--target", "cpu", "--memory-gib", "16", "--json")
    figures = json.loads(known.stdout)
    assert figures["fits"] is True
    assert figures["bytes"]["left"] == 16 * GIB - figures["bytes"]["reserve"] - figures["bytes"]["needed"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--context", "99999"), "context is 32768 tokens"),
        (("--parallel", "0"), "--parallel must be between 1 and 64, not 0"),
        (("--parallel", "65"), "--parallel must be between 1 and 64, not 65"),
        (("--recipe", "magic"), "unknown recipe"),
        (("--runner", "tensorrt_rtx"), "has no runner `tensorrt_rtx` for this artifact"),
        (("--head-bits", "5"), "--head-bits 5 is not supported"),
        (("--fit", "8GB"), "--fit chooses bits, and so does --recipe auto"),
        (("--fit", "1GB", "--recipe", "lsq"), "MiB at 4 bits, which exceeds the 953.7 MiB of --fit"),
        (("--fit", "much"), "is not a size such as 900MiB"),
        (("--memory-gib", "nan"), "nan GiB"),
        (("-t", "cpu", "--memory-gib", "nan"), "nan GiB is not a valid memory size"),
        (("-t", "cpu", "--memory-gib", "inf"), "inf GiB is not a valid memory size"),
    ],
)
def test_an_invalid_option_is_reported_in_one_line(arguments: tuple[str, ...], message: str, qwen: str) -> None:
    done = edgekit("plan", qwen, "--target", "orin", *arguments, check=False)
    assert done.returncode in {1, 2}
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("target", ["cpu", "m2", "orin"])
def test_a_mixed_gguf_file_is_predicted_within_a_hundredth(target: str, export: Export) -> None:
    bundle = export(target, LARGE)
    assert plan_model(LARGE, load_target(target)).sizes.stored == pytest.approx(data_bytes(bundle), rel=0.01)
