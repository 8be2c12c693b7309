"""Full exports of tiny random checkpoints, against the float32 reference and against mlx-lm's own models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models

from edgekit import export_model, load
from edgekit.bundle.bundle import Bundle, open_bundle, verify_bundle
from edgekit.errors import ConfigError, EdgekitError, ExportError, RequestError
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.export.recipes.recipe import recipe_for
from edgekit.runners import open_runner
from edgekit.runners.base import Chunk
from edgekit.target import load_target
from tests.conftest import edgekit
from tests.models import CHATML, TensorWeights, tiny_checkpoint, tiny_decoder, tiny_tensors
from tests.reference import forward

FloatArray = npt.NDArray[np.float32]
TOKENS = [int(token) for token in np.random.default_rng(3).integers(0, 400, 40)]
ModelType = Literal["qwen2", "llama"]


def exported(checkpoint: Path, target: str, folder: Path, **options: Any) -> Bundle:
    return export_bundle(str(checkpoint), load_target(target), folder, ExportOptions(**options), lambda *_: None)


def logits(bundle: Bundle) -> FloatArray:
    artifact = bundle.manifest.artifact
    # The CPU kernels would round the activations of a graph for TensorRT.
    computes = "onnxruntime" if artifact.dialect in {"portable", "native"} else "auto"
    runner = open_runner(bundle.path, artifact.kind, artifact.dialect, context_length=64, threads=1, runner=computes)
    try:
        return np.array(runner.run([Chunk(0, TOKENS, "all")])[0])
    finally:
        runner.close()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_the_reference_agrees_with_mlx_lm_on_the_checkpoint_itself(
    model_type: ModelType, tied: bool, tmp_path: Path
) -> None:
    # The reference reads the same description as our writers; mlx-lm reads config.json and wires the model itself.
    folder = tiny_checkpoint(tmp_path / "model", model_type=model_type, tied=tied)
    from edgekit.runners.mlx import MlxRunner

    runner = MlxRunner(folder, context_length=64)
    theirs = runner.run([Chunk(0, TOKENS, "all")])[0]
    ours = forward(tiny_decoder(folder), tiny_tensors(folder).__getitem__, TOKENS)
    assert np.abs(theirs - ours).max() < 2e-3


@pytest.mark.parametrize("target", ["cpu", "m2", "orin"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
def test_before_quantization_every_artifact_computes_the_checkpoints_logits(
    model_type: ModelType, tied: bool, target: str, tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", model_type=model_type, tied=tied)
    bundle = exported(checkpoint, target, tmp_path / "bundle", recipe="none")
    expected = forward(tiny_decoder(checkpoint), tiny_tensors(checkpoint).__getitem__, TOKENS)
    # cpu computes in float32; m2 and orin store and orin also computes in float16.
    limit = {"cpu": 2e-3, "m2": 2e-2, "orin": 5e-2}[target]
    assert np.abs(logits(bundle) - expected).max() < limit


@pytest.mark.parametrize("target", ["cpu", "m2", "orin"])
@pytest.mark.parametrize("tied", [True, False])
def test_after_quantization_every_artifact_computes_with_the_recipes_weights(
    tied: bool, target: str, tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", tied=tied)
    bundle = exported(checkpoint, target, tmp_path / "bundle", recipe="lsq")
    recipe = recipe_for(load_target(target), "lsq", None)
    decoder = tiny_decoder(checkpoint)
    weights = TensorWeights(tiny_tensors(checkpoint), lambda linear, w: recipe.apply(linear, w, "F32")[0])
    expected = forward(decoder, weights.stored(decoder).__getitem__, TOKENS)
    unquantized = forward(decoder, tiny_tensors(checkpoint).__getitem__, TOKENS)
    error = np.abs(logits(bundle) - expected).max()
    # Far from the unquantized model, so that a pass cannot come from skipped quantization.
    assert np.abs(unquantized - expected).max() > 0.5
    # cpu rounds activations to 8 bits per group; m2 and orin keep them in floating point.
    assert error < {"cpu": 0.3, "m2": 2e-2, "orin": 5e-2}[target]


def test_a_bundle_contains_the_files_of_its_manifest(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "Tiny-Instruct")
    bundle = exported(checkpoint, "cpu", tmp_path / "bundle")
    manifest = bundle.manifest
    assert verify_bundle(bundle) == []
    assert manifest.name == "tiny-instruct"
    assert manifest.architecture == "qwen2"
    assert manifest.parameters == sum(tensor.size for tensor in tiny_tensors(checkpoint).values())
    assert manifest.context_length == 256
    assert manifest.memory.kv_cache_per_token == 2 * 3 * 2 * 32 * 2
    sources = {file["name"]: file["size"] for file in manifest.source["files"]}
    assert sources["model.safetensors"] == (checkpoint / "model.safetensors").stat().st_size
    names = {entry.path for entry in manifest.files}
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "LICENSE"} <= names


def test_every_target_exports_and_only_its_own_kind_of_artifact(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", hidden=128, intermediate=256)
    for name in ("orin-nano-8", "m1", "rtx"):
        target = load_target(name)
        manifest = exported(checkpoint, name, tmp_path / name).manifest
        assert (manifest.artifact.kind, manifest.artifact.dialect) == (target.artifact, target.dialect or "")
        assert manifest.compatible == (target.compatible,)


def test_force_replaces_a_bundle_and_without_it_the_bundle_stays(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    exported(checkpoint, "cpu", tmp_path / "bundle", name="first")
    with pytest.raises(ConfigError, match="already exists"):
        exported(checkpoint, "cpu", tmp_path / "bundle", name="second")
    assert open_bundle(tmp_path / "bundle").manifest.name == "first"
    exported(checkpoint, "cpu", tmp_path / "bundle", name="second", force=True)
    assert open_bundle(tmp_path / "bundle").manifest.name == "second"
    assert sorted(item.name for item in tmp_path.iterdir()) == ["bundle", "model"]


def notes(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


def subfolder(folder: Path) -> None:
    (folder / "photos").mkdir()
    (folder / "photos" / "cat.jpg").write_text("mine")


def another_programs_manifest(folder: Path) -> None:
    """A web application has a `manifest.json` too."""
    for file in folder.iterdir():
        file.unlink()
    (folder / "manifest.json").write_text('{"name": "my site", "start_url": "/"}')
    (folder / "index.html").write_text("mine")


def link(folder: Path) -> None:
    folder.rename(folder.with_name("real"))
    folder.symlink_to("real")


@pytest.mark.parametrize("change", [notes, subfolder, another_programs_manifest, link])
def test_force_deletes_nothing_but_a_bundle(tmp_path: Path, change: Callable[[Path], None]) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    exported(checkpoint, "cpu", tmp_path / "bundle")
    change(tmp_path / "bundle")
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}
    with pytest.raises(ConfigError) as caught:
        exported(checkpoint, "cpu", tmp_path / "bundle", force=True)
    assert caught.value.hint
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


def test_what_appears_in_the_bundles_place_meanwhile_stays_and_the_bundle_is_kept_beside_it(tmp_path: Path) -> None:
    checkpoint, output = tiny_checkpoint(tmp_path / "model"), tmp_path / "bundle"

    def appear(*_: object) -> None:
        output.mkdir(exist_ok=True)
        (output / "letter.txt").write_text("mine")

    with pytest.raises(ExportError, match="already exists; the new bundle is ") as caught:
        export_bundle(str(checkpoint), load_target("cpu"), output, ExportOptions(), appear)
    assert (output / "letter.txt").read_text() == "mine"
    kept = Path(caught.value.message.partition("the new bundle is ")[2])
    assert verify_bundle(open_bundle(kept)) == []
    assert sorted(item.name for item in tmp_path.iterdir()) == sorted(["bundle", kept.name, "model"])


def test_a_failed_replacement_leaves_the_old_bundle(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    exported(checkpoint, "cpu", tmp_path / "bundle", name="first")
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(ExportError):
        exported(checkpoint, "cpu", tmp_path / "bundle", name="second", force=True)
    bundle = open_bundle(tmp_path / "bundle")
    assert bundle.manifest.name == "first"
    assert verify_bundle(bundle) == []
    assert sorted(item.name for item in tmp_path.iterdir()) == ["bundle", "model"]


def edit(checkpoint: Path, **tensors: FloatArray | None) -> None:
    """Replace tensors of a checkpoint; None removes one. Dots in names are written as two underscores."""
    path = checkpoint / "model.safetensors"
    present: dict[str, Any] = dict(load_file(path))
    for name, value in tensors.items():
        if value is None:
            del present[name.replace("__", ".")]
        else:
            present[name.replace("__", ".")] = value
    save_file(present, path)


def test_a_checkpoint_whose_tensors_do_not_fit_its_configuration_is_refused(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    edit(checkpoint, model__norm__weight=None)
    with pytest.raises(ExportError, match=r"no tensor `model\.norm\.weight`"):
        exported(checkpoint, "cpu", tmp_path / "bundle")
    edit(checkpoint, model__norm__weight=np.ones(64, np.float32))
    with pytest.raises(ExportError, match=r"has shape \(64,\)"):
        exported(checkpoint, "cpu", tmp_path / "bundle")
    edit(checkpoint, model__norm__weight=np.ones(128, np.float32), model__layers__0__self_attn__q_norm=np.ones(8, "f4"))
    with pytest.raises(ExportError, match=r"does not use: .*q_norm"):
        exported(checkpoint, "cpu", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope_scaling", {"rope_type": "dynamic", "factor": 4.0}),
        ("rope_scaling", {"rope_type": "yarn"}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0, "alpha": 2.0}),
        ("rope_parameters", {"rope_type": "llama3", "rope_theta": 5e4}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 5e5}),
        ("use_sliding_window", "yes"),
        ("logit_scale", 2.0),
        ("hidden_act", "gelu"),
        ("num_key_value_heads", 3),
        ("hidden_size", "128"),
    ],
)
def test_an_unsupported_configuration_is_refused(key: str, value: object, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(EdgekitError, match=r"config\.json"):
        exported(checkpoint, "cpu", tmp_path / "bundle")


def test_the_context_is_what_the_options_say_and_yarn_stretches_it(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    for options, length, kind in (
        ({}, 256, "default"),
        ({"context_length": 100}, 100, "default"),
        ({"yarn": 4.0}, 1024, "yarn"),
        ({"yarn": 4.0, "context_length": 600}, 600, "yarn"),
    ):
        bundle = exported(checkpoint, "m2", tmp_path / f"{kind}-{length}", **options)
        config = json.loads((bundle.path / "config.json").read_text())
        assert bundle.manifest.context_length == length
        assert config["rope_parameters"]["rope_type"] == kind
    with pytest.raises(ExportError, match="context is 256 tokens"):
        exported(checkpoint, "m2", tmp_path / "long", context_length=257)


def test_a_head_that_is_missing_may_be_the_embedding(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", tied=False)
    edit(checkpoint, lm_head__weight=None)
    with pytest.raises(ExportError, match=r"no tensor `lm_head\.weight`") as refused:
        exported(checkpoint, "cpu", tmp_path / "bundle")
    assert "tie_word_embeddings" in (refused.value.hint or "")


def test_a_head_beside_a_tied_embedding_must_be_it(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", tied=True, vocab=5000)
    weights = load_file(checkpoint / "model.safetensors")
    table = weights["model.embed_tokens.weight"]
    save_file(weights | {"lm_head.weight": table.copy()}, checkpoint / "model.safetensors")
    exported(checkpoint, "cpu", tmp_path / "same", recipe="rtn")
    other = table.copy()
    other[-1, -1] += 1
    for head in (other, table[:-1]):
        save_file(weights | {"lm_head.weight": head.copy()}, checkpoint / "model.safetensors")
        with pytest.raises(ExportError, match=r"the output head to the embedding, but `lm_head\.weight` is another"):
            exported(checkpoint, "cpu", tmp_path / "other", recipe="rtn")
    del weights["model.embed_tokens.weight"]
    save_file(weights | {"lm_head.weight": table.copy()}, checkpoint / "model.safetensors")
    with pytest.raises(ExportError, match=r"no tensor `model\.embed_tokens\.weight`"):
        exported(checkpoint, "cpu", tmp_path / "other", recipe="rtn")


@pytest.mark.parametrize(
    ("file", "contents", "says"),
    [
        ("chat_template.jinja", "{% if %}", "cannot answer a chat: the chat template is not valid"),
        ("generation_config.json", '{"eos_token_id": 512}', None),
        ("config.json", None, "no answer would end: the end token is 512, but the model has 512 tokens"),
    ],
)
def test_a_checkpoint_that_cannot_be_chatted_with_is_refused_before_any_work(
    file: str, contents: str | None, says: str | None, tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    if contents is None:
        config = json.loads((checkpoint / file).read_text())
        (checkpoint / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
        # Without the end tokens of known chat formats, which would end an answer.
        tokens = (checkpoint / "tokenizer.json").read_text()
        tokens = tokens.replace("<|im_end|>", "<|b|>").replace("<|endoftext|>", "<|c|>")
        (checkpoint / "tokenizer.json").write_text(tokens)
        contents = json.dumps(config | {"eos_token_id": 512})
    (checkpoint / file).write_text(contents)
    stages: list[str] = []

    def report(stage: str, *_: object) -> None:
        stages.append(stage)

    if says is None:  # the tokenizer has one that the model knows
        export_bundle(str(checkpoint), load_target("cpu"), tmp_path / "bundle", ExportOptions(), report)
        return
    with pytest.raises(ExportError, match=says):
        export_bundle(str(checkpoint), load_target("cpu"), tmp_path / "bundle", ExportOptions(), report)
    assert "quantize and write" not in stages


def test_a_checkpoint_without_a_chat_template_continues_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    (checkpoint / "tokenizer_config.json").write_text("{}")
    exported(checkpoint, "cpu", tmp_path / "bundle")
    assert "give a template in a file at export" in caplog.text
    with load(tmp_path / "bundle") as model:
        assert model.complete("the capital", max_tokens=3).usage.completion_tokens
        with pytest.raises(RequestError, match="has no chat template") as caught:
            model.chat("the capital", max_tokens=3)
    assert "/v1/completions" in str(caught.value.hint)
    assert not (tmp_path / "bundle" / "chat_template.jinja").exists()


def test_a_chat_template_in_a_file_takes_the_place_of_the_checkpoints(tmp_path: Path) -> None:
    checkpoint, template = tiny_checkpoint(tmp_path / "model"), tmp_path / "mine.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}<|im_start|>{% endfor %}")
    edgekit("export", checkpoint, "--target", "cpu", "-o", tmp_path / "bundle", "--chat-template", template)
    assert (tmp_path / "bundle" / "chat_template.jinja").read_text() == template.read_text()
    assert 1 in open_bundle(tmp_path / "bundle").manifest.eos_token_ids
    template.write_bytes(b"\xff")
    with pytest.raises(ExportError, match="is not UTF-8"):
        export_model(checkpoint, "cpu", tmp_path / "other", chat_template=template)


@pytest.mark.parametrize(
    "stored",
    [
        lambda name: f"_orig_mod.{name}",
        lambda name: name.replace("model.layers.", "model._orig_mod.layers."),
        lambda name: f"base_model.model.{name}",
        lambda name: f"module.base_model.model._orig_mod.{name}",
        lambda name: name.removeprefix("model."),
    ],
)
def test_names_that_tools_around_a_model_gave_its_tensors_are_understood(
    stored: Callable[[str], str], tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    exported(checkpoint, "cpu", tmp_path / "plain")
    weights = load_file(checkpoint / "model.safetensors")
    save_file({stored(name): values for name, values in weights.items()}, checkpoint / "model.safetensors")
    exported(checkpoint, "cpu", tmp_path / "named")
    files = [open_bundle(tmp_path / name).manifest.files for name in ("plain", "named")]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("_orig_mod.lm_head.weight", "two tensors for `lm_head.weight`"),
        ("base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight", "LoRA adapter that is not merged"),
        ("model.layers.0.self_attn.q_proj.base_layer.weight", "LoRA adapter that is not merged"),
    ],
)
def test_names_that_hide_a_second_tensor_are_refused(name: str, message: str, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    weights = load_file(checkpoint / "model.safetensors")
    save_file(weights | {name: weights["lm_head.weight"].copy()}, checkpoint / "model.safetensors")
    with pytest.raises(ExportError, match=message):
        exported(checkpoint, "cpu", tmp_path / "bundle")


def test_a_tokenizer_that_knows_more_than_the_model_is_refused_where_it_matters(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    path = checkpoint / "tokenizer.json"
    backend = Tokenizer.from_file(str(path))
    backend.add_tokens([AddedToken(f"<|extra_{number}|>", special=True) for number in range(512)])
    number = backend.token_to_id("<|extra_511|>")
    assert number is not None
    assert number >= 512
    backend.save(str(path))
    template = checkpoint / "chat_template.jinja"
    # In no chat: nothing to refuse.
    exported(checkpoint, "cpu", tmp_path / "sound", recipe="rtn")
    for source, special in (
        ("<|extra_511|>" + CHATML, {}),
        ("{{ bos_token }}" + CHATML, {"bos_token": "<|extra_511|>"}),
    ):
        template.write_text(source, encoding="utf-8")
        settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
        (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings | special))
        with pytest.raises(
            ExportError, match=rf"writes `<\|extra_511\|>`, token {number}, but the model has 512 tokens"
        ):
            exported(checkpoint, "cpu", tmp_path / "torn", recipe="rtn")
    template.unlink()
    vocabulary = {chr(0x4E00 + number): number for number in range(513)}
    Tokenizer(models.WordLevel(vocabulary, unk_token=chr(0x4E00))).save(str(path))
    with pytest.raises(ExportError, match="a token 512, but the model has 512 tokens: it is another model's"):
        exported(checkpoint, "cpu", tmp_path / "other", recipe="rtn")
    path.write_text("{}")
    with pytest.raises(ExportError, match=r"tokenizer\.json is not a tokenizer"):
        exported(checkpoint, "cpu", tmp_path / "none", recipe="rtn")


@pytest.mark.parametrize("recipe", ["rtn", "lsq"])
def test_a_nan_weight_is_reported_with_its_matrix(recipe: str, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    save_file(weights, checkpoint / "model.safetensors")
    with pytest.raises(ExportError, match=r"`model\.layers\.1\.mlp\.up_proj\.weight`: a weight is NaN"):
        exported(checkpoint, "cpu", tmp_path / "bundle", recipe=recipe)
