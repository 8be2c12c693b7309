from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from edgekit.bundle.bundle import foreign_entries, hash_folder, open_bundle, store_quality, verify_bundle
from edgekit.bundle.manifest import Artifact, FileEntry, Manifest, MemoryTable, layout_of
from edgekit.bundle.quality import Figures, Quality
from edgekit.errors import BundleError, IncompatibleBundleError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").write_bytes(b"graph" * 100)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "manifest.json").write_text(_manifest(hash_folder(tmp_path)).to_json())
    return tmp_path


def _manifest(files: tuple[FileEntry, ...] = (), **changes: object) -> Manifest:
    values: dict[str, object] = {
        "name": "tiny",
        "created": "2026-01-01T00:00:00Z",
        "edgekit": "0.1.0",
        "source": {"id": "tiny", "files": []},
        "architecture": "llama",
        "parameters": 10,
        "artifact": Artifact("onnx", "onnxruntime"),
        "recipe": {"method": "lsq"},
        "context_length": 64,
        "memory": MemoryTable(100, 8),
        "eos_token_ids": (2,),
        "licence": "Apache-2.0",
        "compatible": ("cpu",),
        "files": files,
    }
    return Manifest(**{**values, **changes})  # type: ignore[arg-type]


def test_a_sound_bundle_has_no_problems(folder: Path) -> None:
    assert verify_bundle(open_bundle(folder)) == []


def test_a_manifest_survives_a_round_trip(folder: Path) -> None:
    manifest = open_bundle(folder).manifest
    assert Manifest.from_json(manifest.to_json().encode()) == manifest
    assert [entry.path for entry in manifest.files] == ["model.onnx", "tokenizer.json"]


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_every_flipped_bit_of_a_file_is_found_and_named(folder: Path, name: str) -> None:
    original = (folder / name).read_bytes()
    for position in range(0, len(original) * 8, 37):
        damaged = bytearray(original)
        damaged[position // 8] ^= 1 << position % 8
        (folder / name).write_bytes(damaged)
        problems = verify_bundle(open_bundle(folder))
        assert [(problem.path, problem.what) for problem in problems] == [(name, "hash")]


def test_every_flipped_bit_of_the_manifest_is_found(folder: Path) -> None:
    original = (folder / "manifest.json").read_bytes()
    for position in range(len(original) * 8):
        damaged = bytearray(original)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(BundleError, match=r"manifest\.json"):
            Manifest.from_json(bytes(damaged))


def test_missing_truncated_and_unlisted_files_are_named(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "model.onnx").write_bytes(b"graph")
    (folder / "stray.bin").write_bytes(b"")
    problems = verify_bundle(open_bundle(folder))
    assert {(problem.path, problem.what) for problem in problems} == {
        ("tokenizer.json", "missing"),
        ("model.onnx", "size"),
        ("stray.bin", "unlisted"),
    }


def test_a_link_in_place_of_a_file_is_not_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "tokenizer.json"
    elsewhere.write_text("{}")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").symlink_to(elsewhere)
    assert [problem.what for problem in verify_bundle(open_bundle(folder))] == ["not a file"]


def test_fields_of_a_newer_writer_are_kept() -> None:
    manifest = Manifest.from_json(_manifest(extra={"colour": {"blue": 1}}).to_json().encode())
    assert manifest.extra == {"colour": {"blue": 1}}
    assert json.loads(manifest.to_json())["colour"] == {"blue": 1}


def test_a_newer_schema_is_refused_as_incompatible() -> None:
    with pytest.raises(IncompatibleBundleError, match="schema is 2"):
        Manifest.from_json(_manifest(schema=2).to_json().encode())


@pytest.mark.parametrize("dialect", ["portable", "native"])
def test_a_graph_of_another_layout_is_refused(dialect: str) -> None:
    current = layout_of(dialect)
    Manifest.from_json(_manifest(artifact=Artifact("onnx", dialect, current)).to_json().encode())
    for layout, hint in ((current - 1, "export the model again"), (current + 1, "update edgekit")):
        with pytest.raises(IncompatibleBundleError, match=f"layout {layout}") as caught:
            Manifest.from_json(_manifest(artifact=Artifact("onnx", dialect, layout)).to_json().encode())
        assert caught.value.hint == hint
    # Bundles had no such field before there was a second layout.
    older = _manifest(artifact=Artifact("onnx", dialect, 1)).to_json().replace(',\n    "layout": 1', "")
    assert "layout" not in older
    digest = older[len('{\n  "digest": "') :][:64]
    older = older.replace(digest, "0" * 64)
    older = older.replace("0" * 64, hashlib.sha256(older.encode()).hexdigest(), 1)
    with pytest.raises(IncompatibleBundleError, match="layout 1"):
        Manifest.from_json(older.encode())


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", "a\\b", "./x", "manifest.json", "a//b"])
def test_a_path_that_leaves_the_bundle_is_refused(path: str) -> None:
    with pytest.raises(BundleError):
        FileEntry(path, 1, "0" * 64)


def test_a_folder_without_a_manifest_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        open_bundle(tmp_path)
    with pytest.raises(BundleError, match="there is no bundle"):
        open_bundle(tmp_path / "nothing")


def test_storing_quality_writes_through_no_link(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    precious = tmp_path_factory.mktemp("elsewhere") / "precious"
    precious.write_text("mine")
    (folder / ".manifest.json.partial").symlink_to(precious)
    stored = store_quality(
        open_bundle(folder), Quality("t", "0", "m", "float", 8, 1, 7, 2.0, Figures(2.0, 0.1, 0.2, 0.9))
    )
    assert open_bundle(folder).manifest == stored.manifest
    assert precious.read_text() == "mine"
    assert sorted(path.name for path in folder.iterdir()) == [
        ".manifest.json.partial",
        "manifest.json",
        "model.onnx",
        "tokenizer.json",
    ]


def test_everything_in_the_folder_that_is_not_the_bundles_is_named(folder: Path) -> None:
    assert foreign_entries(open_bundle(folder)) == []
    (folder / "notes.txt").write_text("mine")
    (folder / "empty").mkdir()
    (folder / "photos").symlink_to(folder)
    (folder / "gone").symlink_to("nowhere")
    assert foreign_entries(open_bundle(folder)) == ["empty", "gone", "notes.txt", "photos"]
