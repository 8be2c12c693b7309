"""Quality figures against those computed directly, and how they are stored and displayed."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import save_file

from edgekit.bundle.bundle import Bundle, open_bundle, store_quality, verify_bundle
from edgekit.bundle.quality import Quality
from edgekit.errors import BundleError, ConfigError, EdgekitError, ExportError
from edgekit.export.architectures import describe
from edgekit.export.evaluation.evaluate import EvaluationOptions, evaluate
from edgekit.export.evaluation.readers import open_artifact
from edgekit.export.evaluation.report import html_report
from edgekit.export.forward import CheckpointTensors, LayerRunner
from edgekit.export.forward.kl import Divergence
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.export.progress import silent
from edgekit.export.recipes.token_windows import Text, cut_windows, read_text
from edgekit.export.sources.open import open_checkpoint
from edgekit.target import load_target
from tests.conftest import edgekit
from tests.export.checkpoints.gguf.files import write_gguf
from tests.models import tiny_checkpoint, tiny_tensors
from tests.ort_version import native_runs
from tests.reference import forward
from tests.variants import variant

FloatArray = npt.NDArray[np.float32]
WORDS = "the capital of France is Paris and what is the sum of even numbers in a list user assistant system "
OPTIONS = EvaluationOptions(window=48, windows=3)


def prose(folder: Path) -> Path:
    order = np.random.default_rng(8).permutation(WORDS.split() * 30)
    path = folder / "prose.txt"
    path.write_text(" ".join(order.tolist()), encoding="utf-8")
    return path


def exported(checkpoint: Path, target: str, folder: Path, recipe: str) -> Bundle:
    return export_bundle(str(checkpoint), load_target(target), folder, ExportOptions(recipe=recipe), silent)


def measured(bundle: Bundle, checkpoint: Path, text: Path, options: EvaluationOptions = OPTIONS) -> Quality:
    return evaluate(bundle, open_checkpoint(checkpoint), read_text(text), options, silent)


@pytest.mark.parametrize("target", ["cpu", "m2", "orin"])
@pytest.mark.parametrize("name", ["qwen2", "gemma3_text"])
def test_a_bundle_that_is_not_quantized_is_its_checkpoint(name: str, target: str, tmp_path: Path) -> None:
    checkpoint = variant(name, tmp_path / "model")
    bundle = exported(checkpoint, target, tmp_path / "bundle", "none")
    quality = measured(bundle, checkpoint, prose(tmp_path))
    # m2 and orin store half precision.
    assert quality.weights.kl_mean < (1e-9 if target == "cpu" else 1e-5)
    assert quality.weights.top1 == 1.0 if target == "cpu" else quality.weights.top1 > 0.98
    assert max(quality.layers) < (1e-6 if target == "cpu" else 1e-3)
    assert max(quality.matrices.values()) < (1e-9 if target == "cpu" else 1e-3)
    assert quality.weights.perplexity == pytest.approx(quality.perplexity, rel=1e-3)


@pytest.mark.parametrize("name", ["qwen2", "qwen2-tied", "llama-biased"])
def test_the_figures_are_those_of_whole_logits(name: str, tmp_path: Path) -> None:
    checkpoint = variant(name, tmp_path / "model")
    bundle = exported(checkpoint, "cpu", tmp_path / "bundle", "rtn")
    quality = measured(bundle, checkpoint, text := prose(tmp_path))
    decoder = describe(json.loads((checkpoint / "config.json").read_text()))
    tensors, found = tiny_tensors(checkpoint), open_artifact(bundle, decoder)
    other = {linear.weight: found.matrix(linear) for linear in (decoder.embedding, *decoder.linears())}
    ids = cut_windows((checkpoint / "tokenizer.json").read_bytes(), read_text(text), length=48, count=3).ids
    kl: list[float] = []
    agree: list[bool] = []
    losses: dict[str, list[float]] = {"a": [], "b": []}
    for window in ids.tolist():
        sides = {
            "a": forward(decoder, tensors.__getitem__, window),
            "b": forward(decoder, (tensors | other).__getitem__, window),
        }
        logs = {}
        for side, logits in sides.items():
            doubles = logits[:-1].astype(np.float64)
            logs[side] = doubles - np.log(np.exp(doubles).sum(axis=1, keepdims=True))
            losses[side] += (-logs[side][np.arange(47), window[1:]]).tolist()
        kl += (np.exp(logs["a"]) * (logs["a"] - logs["b"])).sum(axis=1).tolist()
        agree += (logs["a"].argmax(axis=1) == logs["b"].argmax(axis=1)).tolist()
    assert quality.tokens == len(kl) == 3 * 47
    assert quality.perplexity == pytest.approx(np.exp(np.mean(losses["a"])), rel=1e-4)
    assert quality.weights.perplexity == pytest.approx(np.exp(np.mean(losses["b"])), rel=1e-4)
    assert quality.weights.kl_mean == pytest.approx(np.mean(kl), rel=1e-3)
    assert quality.weights.kl_p99 == pytest.approx(np.percentile(kl, 99), rel=1e-3)
    assert quality.weights.top1 == pytest.approx(np.mean(agree))
    # Random weights suffer; a figure of zero would be no evidence.
    assert quality.weights.kl_mean > 0.01
    up = decoder.layers[1].up
    error = np.linalg.norm(other[up.weight] - tensors[up.weight]) / np.linalg.norm(tensors[up.weight])
    assert quality.matrices[up.weight] == pytest.approx(error, rel=1e-4)
    assert len(quality.matrices) == 7 * len(decoder.layers) + (1 if decoder.tied else 2)
    assert len(quality.layers) == len(decoder.layers)
    assert 0.01 < quality.layers[0] < 1


@pytest.mark.parametrize("target", ["cpu", "m2", "orin"])
@pytest.mark.parametrize("name", ["phi3-partial", "qwen3", "llama-biased"])
def test_a_bundles_own_runner_has_the_error_that_its_weights_have(name: str, target: str, tmp_path: Path) -> None:
    # The runner computes with the artifact, the figures with what was read back from it: they share only the bytes.
    checkpoint = variant(name, tmp_path / "model")
    bundle = exported(checkpoint, target, tmp_path / "bundle", "lsq")
    quality = measured(bundle, checkpoint, prose(tmp_path), replace(OPTIONS, runner="auto"))
    assert quality.runner is not None
    assert quality.weights.kl_mean > 0.02
    # cpu rounds activations to 8 bits per group; the others compute in half precision at worst.
    assert quality.runner.kl_mean == pytest.approx(quality.weights.kl_mean, rel=0.05 if target == "cpu" else 0.005)
    assert quality.runner.perplexity == pytest.approx(quality.weights.perplexity, rel=0.05)


@pytest.mark.parametrize(
    ("target", "dialect"), [("cpu", None), ("orin", None), pytest.param("rtx", "native", marks=native_runs)]
)
def test_an_untied_output_head_in_floating_point_is_what_runs(target: str, dialect: str | None, tmp_path: Path) -> None:
    checkpoint = variant("llama", tmp_path / "model")
    profile, text = load_target(target, dialect=dialect), prose(tmp_path)
    bundles = {
        name: export_bundle(str(checkpoint), profile, tmp_path / name, options, silent)
        for name, options in (
            ("floats", ExportOptions(recipe="none")),
            ("head", ExportOptions(recipe="lsq", head_bits=16)),
        )
    }
    floats, head = (measured(bundle, checkpoint, text, replace(OPTIONS, runner="auto")) for bundle in bundles.values())
    assert floats.runner is not None
    assert head.runner is not None
    assert max(floats.weights.kl_mean, floats.runner.kl_mean) < 1e-4
    assert head.matrices["lm_head.weight"] < 1e-3
    assert head.matrices["model.embed_tokens.weight"] > 0.01
    assert head.weights.kl_mean > 0.02
    assert head.runner.kl_mean == pytest.approx(head.weights.kl_mean, rel=0.05 if target == "cpu" else 0.005)


def test_the_order_and_size_of_blocks_do_not_matter() -> None:
    rng = np.random.default_rng(0)
    # Far apart, so that the largest logit moves from block to block.
    a = (8 * rng.standard_normal((50, 300))).astype(np.float32)
    b = a + rng.standard_normal(a.shape).astype(np.float32)
    targets = rng.integers(0, 300, 50)
    full, parts = Divergence(targets), Divergence(targets)
    full.add(slice(0, 50), 0, a, b)
    for first in (200, 0, 100):
        for rows in (slice(0, 20), slice(20, 50)):
            parts.add(rows, first, a[rows, first : first + 100], b[rows, first : first + 100])
    logs = [x.astype(np.float64) - np.log(np.exp(x.astype(np.float64)).sum(axis=1, keepdims=True)) for x in (a, b)]
    expected = (np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1)
    assert np.allclose(full.kl(), expected, rtol=1e-4, atol=1e-6)
    assert np.allclose(parts.kl(), expected, rtol=1e-4, atol=1e-6)
    assert parts.figures().top1 == full.figures().top1 == np.mean(a.argmax(axis=1) == b.argmax(axis=1))
    assert parts.perplexity() == pytest.approx(np.exp(-logs[0][np.arange(50), targets].mean()), rel=1e-6)


def test_a_better_fit_has_a_smaller_error_and_the_runners_error_is_measured_separately(tmp_path: Path) -> None:
    checkpoint = variant("qwen2", tmp_path / "model")
    text = prose(tmp_path)
    lsq = measured(exported(checkpoint, "cpu", tmp_path / "lsq", "lsq"), checkpoint, text)
    options = replace(OPTIONS, runner="auto")
    rtn = measured(exported(checkpoint, "cpu", tmp_path / "rtn", "rtn"), checkpoint, text, options)
    plain = measured(exported(checkpoint, "cpu", tmp_path / "none", "none"), checkpoint, text, options)
    assert plain.weights.kl_mean < lsq.weights.kl_mean
    assert max(lsq.matrices.values()) < max(rtn.matrices.values())
    assert plain.runner is not None
    assert rtn.runner is not None
    assert plain.runner.kl_mean < 1e-6
    # Activations are rounded to 8 bits.
    assert rtn.runner.kl_mean == pytest.approx(rtn.weights.kl_mean, rel=0.5)
    assert rtn.runner.kl_mean != pytest.approx(rtn.weights.kl_mean, rel=1e-6)


def test_a_quantized_checkpoint_is_reported_as_dequantized(tmp_path: Path) -> None:
    path = write_gguf(variant("qwen2", tmp_path / "model"), tmp_path / "model.gguf", encoding="Q4_1")
    bundle = export_bundle(str(path), load_target("cpu"), tmp_path / "bundle", ExportOptions(), silent)
    quality = measured(bundle, path, prose(tmp_path))
    assert quality.against_stored == "Q4_1, dequantized"
    assert quality.weights.kl_mean < 1e-6


def test_logits_of_the_full_vocabulary_are_never_in_memory(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", vocab=60_000, hidden=64, heads=2, kv_heads=1, layers=1)
    bundle = exported(checkpoint, "cpu", tmp_path / "bundle", "none")
    text = prose(tmp_path)
    tracemalloc.start()
    try:
        quality = measured(bundle, checkpoint, text, EvaluationOptions(window=256, windows=2))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # One side's logits alone would take 122 MB; reading a small file of unknown size takes 67 MB for a moment.
    assert quality.tokens * 60_000 * 4 > 120e6
    assert peak < 80e6


def test_only_one_layer_is_in_memory(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", hidden=256, intermediate=2048, layers=8)
    decoder = describe(json.loads((checkpoint / "config.json").read_text()))
    tensors, layers = CheckpointTensors(open_checkpoint(checkpoint)), LayerRunner(decoder)
    hidden = layers.embed(tensors, np.arange(32).reshape(1, 32))
    layers.run(decoder.layers[0], tensors, hidden)
    one = 4 * sum(linear.in_features * linear.out_features for linear in decoder.layers[0].linears())
    tracemalloc.start()
    try:
        for layer in decoder.layers:
            layers.run(layer, tensors, hidden, out=hidden)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert one < peak < 1.5 * one


def test_a_layer_whose_norms_a_recipe_changed_shows_no_error_of_its_matrices(tmp_path: Path) -> None:
    # AWQ moves factors from the inputs of matrices into the norm before them: the layer computes what it did.
    checkpoint = variant("qwen2", tmp_path / "model")
    scaled = tmp_path / "scaled"
    shutil.copytree(checkpoint, scaled)
    tensors, first = tiny_tensors(checkpoint), "model.layers.1"
    factors = np.random.default_rng(4).uniform(0.5, 2, 128).astype(np.float32)
    tensors[f"{first}.post_attention_layernorm.weight"] *= factors
    for part in ("gate", "up"):
        tensors[f"{first}.mlp.{part}_proj.weight"] /= factors
    save_file(tensors, scaled / "model.safetensors", metadata={"format": "pt"})
    quality = measured(exported(scaled, "cpu", tmp_path / "bundle", "none"), checkpoint, prose(tmp_path))
    assert quality.weights.kl_mean < 1e-6
    assert max(quality.layers) < 1e-5
    assert {name.split(".")[2] for name in quality.matrices if "layers" in name} == {"0", "2"}


def test_another_model_is_refused(tmp_path: Path) -> None:
    bundle = exported(variant("qwen2", tmp_path / "model"), "cpu", tmp_path / "bundle", "rtn")
    other = tiny_checkpoint(tmp_path / "other", intermediate=256)
    with pytest.raises(ExportError, match="a different model from the bundle's") as caught:
        measured(bundle, other, prose(tmp_path))
    assert "exported from" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("contents", "message"),
    [(None, "cannot read the text"), (b"\xff\xfe\x00", "not UTF-8"), (b"A word.", "has only")],
)
def test_a_text_that_cannot_be_measured_on_is_refused(contents: bytes | None, message: str, tmp_path: Path) -> None:
    checkpoint = variant("qwen2", tmp_path / "model")
    path = tmp_path / "text.txt"
    if contents is not None:
        path.write_bytes(contents)
    with pytest.raises(ConfigError, match=message):
        cut_windows((checkpoint / "tokenizer.json").read_bytes(), read_text(path), length=64, count=2)


def test_a_window_starts_with_the_tokenizers_prefix(tmp_path: Path) -> None:
    checkpoint = variant("qwen2", tmp_path)
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    text = Text("t", "0" * 64, WORDS * 20 + "<|im_start|>")
    plain = cut_windows(json.dumps(tokenizer).encode(), text, length=32, count=4)
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    }
    prefixed = cut_windows(json.dumps(tokenizer).encode(), text, length=32, count=4)
    assert (plain.prefix_length, prefixed.prefix_length) == (0, 1)
    assert plain.ids.shape == prefixed.ids.shape == (4, 32)
    assert (prefixed.ids[:, 0] == 1).all()
    assert np.array_equal(prefixed.ids[0, 1:], plain.ids[0, :31])
    # Text that looks like a special token stays text.
    assert not (plain.ids == 1).any()
    long = cut_windows(json.dumps(tokenizer).encode(), text, length=10_000, count=4)
    assert long.ids.shape[0] == 1
    assert (long.ids == 1).sum() == 1


def test_figures_are_stored_and_the_bundle_stays_valid(tmp_path: Path) -> None:
    checkpoint = variant("qwen2", tmp_path / "model")
    bundle = exported(checkpoint, "cpu", tmp_path / "bundle", "rtn")
    quality = measured(bundle, checkpoint, prose(tmp_path))
    store_quality(bundle, replace(quality, extra={"of_a_newer_version": 1}))
    again = open_bundle(bundle.path)
    assert verify_bundle(again) == []
    assert again.manifest.files == bundle.manifest.files
    read = Quality.from_dict(again.manifest.quality)
    assert read == replace(quality, extra={"of_a_newer_version": 1})
    with pytest.raises(BundleError, match="quality figures are damaged"):
        Quality.from_dict({**quality.to_dict(), "weights": {"perplexity": "none"}})


def test_the_report_warns_that_a_text_used_for_calibration_flatters_the_bundle(tmp_path: Path) -> None:
    checkpoint = variant("qwen2", tmp_path / "model")
    bundle, text = exported(checkpoint, "cpu", tmp_path / "bundle", "rtn"), prose(tmp_path)
    recipe = {**bundle.manifest.recipe, "calibration": {"sha256": read_text(text).sha256}}
    bundle = Bundle(bundle.path, replace(bundle.manifest, recipe=recipe))
    assert measured(bundle, checkpoint, text).calibrated
    text.write_text(text.read_text() + " more", encoding="utf-8")
    quality = measured(bundle, checkpoint, text)
    assert not quality.calibrated
    assert "flatter" in html_report(bundle.manifest, replace(quality, calibrated=True))


class Page(HTMLParser):
    """Checks that every element is closed properly, and collects the visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.text = ""
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        self.open.append(tag)
        self.addresses += [str(value) for name, value in attrs if name in {"src", "href"}]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_from_the_command_line_to_the_table_and_the_report(tmp_path: Path) -> None:
    checkpoint, text = variant("qwen2", tmp_path / "model"), prose(tmp_path)
    exported(checkpoint, "cpu", tmp_path / "bundle", "lsq")
    page = tmp_path / "quality.html"
    arguments = ("eval", tmp_path / "bundle", "--against", checkpoint, "--text", text, "--window", "48")
    result = edgekit(*arguments, "--windows", "3", "--save", "--report", page)
    quality = Quality.from_dict(open_bundle(tmp_path / "bundle").manifest.quality)
    figures = [f"{quality.perplexity:.3f}", f"{quality.weights.perplexity:.3f}", f"{quality.weights.kl_mean:.5f}"]
    figures += [f"{quality.weights.kl_p99:.4f}", f"{quality.weights.top1:.2%}"]
    shown = edgekit("info", tmp_path / "bundle").stdout
    for figure in figures:
        assert figure in result.stdout
        assert figure in shown
    assert "141 tokens of prose.txt" in shown
    assert json.loads(edgekit(*arguments, "--windows", "3", "--json").stdout) == quality.to_dict()
    read = Page()
    read.feed(page.read_text(encoding="utf-8"))
    assert read.open == []
    assert all(figure in read.text for figure in (*figures, quality.text_sha256, "layer 2, down_proj"))
    assert (read.count["svg"], read.count["rect"]) == (2, 3 + 3 * 7)
    assert read.addresses == []
    assert "http" not in page.read_text(encoding="utf-8")


def test_export_measures_and_stores_when_asked(tmp_path: Path) -> None:
    checkpoint, text = variant("qwen2", tmp_path / "model"), prose(tmp_path)
    edgekit("export", checkpoint, "--target", "cpu", "--recipe", "lsq", "-o", tmp_path / "bundle", "--eval", text)
    bundle = open_bundle(tmp_path / "bundle")
    quality = Quality.from_dict(bundle.manifest.quality)
    assert quality.text == "prose.txt"
    assert 0 < quality.weights.kl_mean < 1
    assert verify_bundle(bundle) == []
    edgekit("info", tmp_path / "bundle", "--report", tmp_path / "quality.html")
    assert f"{quality.weights.kl_mean:.5f}" in (tmp_path / "quality.html").read_text(encoding="utf-8")
    missing = edgekit("export", checkpoint, "-t", "cpu", "-o", tmp_path / "x", "--eval", tmp_path / "no", check=False)
    assert missing.returncode == 2
    assert "cannot read the text" in missing.stderr
    assert not (tmp_path / "x").exists()


def test_a_bundle_that_was_not_measured_has_no_report(tmp_path: Path) -> None:
    bundle = exported(variant("qwen2", tmp_path / "model"), "cpu", tmp_path / "bundle", "rtn")
    result = edgekit("info", bundle.path, "--report", tmp_path / "quality.html", check=False)
    assert result.returncode == 1
    assert "was not measured" in result.stderr
    assert "--against CHECKPOINT" in result.stderr
    assert not (tmp_path / "quality.html").exists()


def test_a_report_path_that_cannot_be_written_is_a_users_mistake(tmp_path: Path) -> None:
    from edgekit.export.evaluation.report import write_report

    checkpoint = variant("qwen2", tmp_path / "model")
    bundle = exported(checkpoint, "cpu", tmp_path / "bundle", "rtn")
    quality = measured(bundle, checkpoint, prose(tmp_path))
    with pytest.raises(EdgekitError, match="cannot write the report"):
        write_report(tmp_path / "none" / "report.html", bundle.manifest, quality)
