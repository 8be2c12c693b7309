"""The reader of `targets/*.yaml` accepts no nonsense: every field is checked, and an error says where and what."""

from __future__ import annotations

import copy
import dataclasses
import json
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import pytest

from edgekit.errors import ConfigError
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.export.recipes.recipe import FORMATS
from edgekit.profile import GROUP_SIZES, Profile, parse_profile, target_names, unreadable
from edgekit.target import load_target, load_targets
from edgekit.yaml_lines import field_types
from tests.models import tiny_checkpoint

FILE = "targets/my-board.yaml"
# Every key of the schema that a target of its kind has; `cpu_brand` and `gpu` are lists like `device_tree`.
FULL: dict[str, Any] = {
    "title": "My board",
    "compatible": "my-board",
    "facts": {
        "compute_capability": {"value": "8.7", "source": "a data sheet"},
        "int8_tops_sparse": {"value": 67, "source": "a data sheet"},
    },
    "variants": [
        {"title": "My board", "memory_gib": [8, 16], "bandwidth_gb_s": 102.0, "source": "a data sheet"},
        {"title": "My board Pro", "memory_gib": [16], "source": "a data sheet"},
    ],
    "reserve": {"gib": 2.0, "fraction": 0.1, "basis": "an estimate"},
    "export": {
        "artifact": "onnx",
        "dialect": "portable",
        "activation_dtype": "float16",
        "group_sizes": [128, 64, 32],
        "runners": ["tensorrt", "onnxruntime"],
    },
    "jetpacks": [
        {"since": "6.1", "tensorrt": "10.3", "dialects": ["portable"], "source": "release notes"},
        {"since": "7.2", "tensorrt": "10.16", "dialects": ["portable", "native"], "source": "release notes"},
    ],
    "recognise": {
        "device_tree": ["*my-board*"],
        "cpu_brand": ["My CPU"],
        "gpu": ["My GPU *"],
        "memory_gib": [6, 9],
    },
}  # fmt: skip
# What is wrong for each field; `test_no_field_is_forgotten` compares the keys with the schema.
WRONG: dict[str, list[object]] = {
    "title": ["  "],
    "compatible": ["my board", "My-Board", "a/b", "-a"],
    "facts.compute_capability.value": ["Ampere", "87", "8.7.1"],
    "facts.compute_capability.source": ["  "],
    "facts.int8_tops_sparse.value": [0, -1, "many"],
    "facts.int8_tops_sparse.source": ["  "],
    "variants[0].title": ["  "],
    "variants[0].memory_gib": [8, ["eight"], [0], [8.5], [5000], [], [8, 8], [16, 8]],
    "variants[0].bandwidth_gb_s": [0, "fast", 1e6],
    "variants[0].source": ["  "],
    "reserve.gib": [-1, 5000, "some"],
    "reserve.fraction": [-0.1, 1],
    "reserve.basis": ["  "],
    "export.artifact": ["gguf"],
    "export.dialect": ["fast", None],
    "export.activation_dtype": ["bfloat16", "float32"],
    "export.group_sizes": [100, [100], [16], [256], [], [32, 32]],
    "export.runners": [["vllm"], [], ["mlx"], ["tensorrt", "tensorrt"]],
    "jetpacks[0].since": ["seven", "7"],
    "jetpacks[0].tensorrt": ["ten"],
    "jetpacks[0].dialects": [["onnxruntime"], ["portable", "portable"]],
    "jetpacks[0].source": ["  "],
    "recognise.device_tree": ["*", ["*"], [" "], [""]],
    "recognise.cpu_brand": [["*"], ["??"]],
    "recognise.gpu": [["*"]],
    "recognise.memory_gib": [[48], [1, 2, 3], [9, 6], [-1, 9], ["a", "b"]],
}


def error_of(tree: object, file: str = FILE) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_profile(json.dumps(tree), file)
    assert caught.value.message.startswith(file)
    return caught.value


def changed(path: str, *value: object) -> dict[str, Any]:
    """`FULL` with another value at a path such as `variants[0].title`; without one, the key is left out."""
    tree = copy.deepcopy(FULL)
    *outer, last = re.findall(r"\w+", path)
    inner: Any = tree
    for key in outer:
        inner = inner[int(key) if key.isdigit() else key]
    if value:
        inner[last] = value[0]
    else:
        del inner[last]
    return tree


def paths_of(kind: Any, where: str = "") -> Iterator[tuple[str, bool]]:
    """The path of every field of the schema that is no mapping, and whether it is required."""
    for item in dataclasses.fields(kind):
        (inner,) = (part for part in _alternatives(field_types(kind)[item.name]) if part is not type(None))
        path = f"{where}.{item.name}".removeprefix(".")
        listed = get_args(inner)[0] if get_origin(inner) is tuple else None
        if dataclasses.is_dataclass(inner):
            yield from paths_of(inner, path)
        elif dataclasses.is_dataclass(listed):
            yield from paths_of(listed, f"{path}[0]")
        else:
            yield path, item.default is dataclasses.MISSING


def _alternatives(annotated: Any) -> tuple[Any, ...]:
    return get_args(annotated) if get_origin(annotated) in {Union, types.UnionType} else (annotated,)


def test_no_field_is_forgotten() -> None:
    assert parse_profile(json.dumps(FULL), FILE).title == "My board"
    assert sorted(path for path, _ in paths_of(Profile)) == sorted(WRONG)


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, values in WRONG.items() for value in values])
def test_a_wrong_value_is_refused_with_its_place_in_the_file(path: str, value: object) -> None:
    assert f"`{path}" in error_of(changed(path, value)).message


@pytest.mark.parametrize("path", WRONG)
@pytest.mark.parametrize("value", ["", {}, [[]]], ids=repr)
def test_no_field_takes_nothing_or_a_value_of_another_kind(path: str, value: object) -> None:
    assert f"`{path}" in error_of(changed(path, value)).message


@pytest.mark.parametrize("path", [path for path, required in paths_of(Profile) if required])
def test_a_missing_field_is_named_with_its_place_in_the_file(path: str) -> None:
    assert error_of(changed(path)).message == f"{FILE}: `{path}` is missing"


@pytest.mark.parametrize("path", ["facts", "variants[0]", "reserve", "export", "jetpacks[1]", "recognise"])
def test_a_misspelt_key_is_named_with_its_place_in_the_file(path: str) -> None:
    assert f"`basiss` in `{path}`" in error_of(changed(f"{path}.basiss", "x")).message


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("export.dialect", ..., "`export.dialect` is for artifact `onnx`, which needs it"),
        ("export.artifact", "mlx", "`export.dialect` is for artifact `onnx`, which needs it; `mlx` has none"),
        ("export.dialect", "onnxruntime", "`export.activation_dtype` must be float32 for dialect `onnxruntime`"),
        ("export.runners", ["tensorrt", "mlx"], "`export.runners`: `mlx` does not run dialect `portable`"),
        ("export.runners", ["onnxruntime"], "`jetpacks` is for targets with the runner `tensorrt`"),
        ("jetpacks[1].dialects", ["native"], "`jetpacks[1].dialects` must begin with `export.dialect`"),
        ("jetpacks[0].dialects", [], "`jetpacks[0].dialects` must not be empty"),
        ("jetpacks[1].since", "6.1", "`jetpacks` must be ascending by `since`"),
        ("jetpacks[1].since", "5.9", "`jetpacks` must be ascending by `since`"),
        ("variants", ..., "`variants` is missing"),
        ("variants", [], "`variants` is missing"),
        ("variants[1].title", "My board", "two of `variants` have the same `title`"),
        ("variants[1].bandwidth_gb_s", 51.2, "`variants[1].bandwidth_gb_s` is less than that of an earlier one"),
        ("reserve.gib", 7.5, "`reserve` takes all of the 8 GiB of `variants[0]`"),
        ("recognise", {}, "`recognise` has no pattern"),
        ("recognise", {"memory_gib": [6, 9]}, "`recognise` has no pattern"),
    ],
)
def test_fields_that_contradict_each_other_are_refused_with_what_to_do(path: str, value: object, message: str) -> None:
    error = error_of(changed(path) if value is ... else changed(path, value))
    assert message in error.message
    assert error.hint


@pytest.mark.parametrize("name", ["My Board", "my_board", "my board", "orin.nano", "-orin"])
def test_a_file_name_that_is_no_name_for_a_target_is_refused(name: str) -> None:
    assert "rename the file" in (error_of(FULL, f"targets/{name}.yaml").hint or "")


def test_only_the_fallback_may_have_any_memory_and_recognise_nothing() -> None:
    tree = changed("variants")
    tree["recognise"] = {}
    assert parse_profile(json.dumps(tree), "targets/cpu.yaml").variants == ()


@pytest.mark.parametrize("target", ["cpu", "m2", "orin"])
@pytest.mark.parametrize("size", GROUP_SIZES)
def test_every_group_size_that_a_profile_may_have_is_written(target: str, size: int, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", intermediate=256)
    options = ExportOptions(recipe="rtn", group_size=size)
    bundle = export_bundle(str(checkpoint), load_target(target), tmp_path / "bundle", options, lambda *_: None)
    assert bundle.manifest.recipe["summary"] == f"rtn 4-bit, group {size}"


def test_no_artifact_has_other_group_sizes() -> None:
    assert {limits.group_sizes for limits in FORMATS.values()} == {GROUP_SIZES}


UNREADABLE: dict[str, Callable[[Path], object]] = {
    "no YAML": lambda path: path.write_text("title: [\n"),
    "empty": lambda path: path.write_text(""),
    "an unknown key": lambda path: path.write_text("titel: x\n"),
    "not UTF-8": lambda path: path.write_bytes(b"title: \xff\n"),
    "a folder": lambda path: path.mkdir(),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
}


@pytest.mark.parametrize("damage", UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_cannot_be_read_is_named_and_the_others_are_read(
    damage: Callable[[Path], object], targets_folder: Path
) -> None:
    damage(targets_folder / "broken.yaml")
    assert "broken" in target_names()
    (error,) = unreadable()
    assert error.message.startswith("targets/broken.yaml")
    with pytest.raises(ConfigError, match=r"targets/broken\.yaml"):
        load_target("broken")
    assert [target.name for target in load_targets()] == [name for name in target_names() if name != "broken"]


def test_hidden_files_of_an_editor_are_no_targets(targets_folder: Path) -> None:
    before = target_names()
    (targets_folder / ".#orin.yaml").symlink_to("someone@somewhere:1")
    (targets_folder / "orin.yaml~").touch()
    target_names.cache_clear()
    assert target_names() == before
