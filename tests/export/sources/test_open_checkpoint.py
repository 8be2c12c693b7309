from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from edgekit.errors import ConfigError, ExportError
from edgekit.export.checkpoints.gguf.checkpoint import GgufCheckpoint
from edgekit.export.checkpoints.hf_folder import FolderCheckpoint
from edgekit.export.sources.open import open_checkpoint
from tests.export.checkpoints.gguf.files import write_gguf
from tests.models import tiny_checkpoint


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "tiny", layers=1)


def test_a_folder_a_gguf_file_and_a_folder_with_one_gguf_file_are_told_apart(folder: Path, tmp_path: Path) -> None:
    with closing(open_checkpoint(folder)) as checkpoint:
        assert isinstance(checkpoint, FolderCheckpoint)
    (tmp_path / "only").mkdir()
    path = write_gguf(folder, tmp_path / "only" / "m.gguf")
    for ref in (path, str(path), path.parent):
        with closing(open_checkpoint(ref)) as checkpoint:
            assert isinstance(checkpoint, GgufCheckpoint)


def test_a_folder_with_a_split_gguf_model_is_that_model_and_one_with_two_models_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "only").mkdir()
    write_gguf(folder, tmp_path / "only" / "m.gguf", parts=3)
    with closing(open_checkpoint(tmp_path / "only")) as checkpoint:
        assert isinstance(checkpoint, GgufCheckpoint)
        assert len(checkpoint.source()) == 3
    write_gguf(folder, tmp_path / "only" / "other.gguf")
    with pytest.raises(ExportError, match="several GGUF models"):
        open_checkpoint(tmp_path / "only")


def test_a_file_named_like_a_model_of_the_catalogue_needs_its_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    shutil.copytree(folder, "smollm2-135m-instruct")
    with closing(open_checkpoint("./smollm2-135m-instruct")) as checkpoint:
        assert isinstance(checkpoint, FolderCheckpoint)


@pytest.mark.parametrize(
    ("ref", "message", "hint"),
    [
        ("smolm2-135m-instruct", "unknown model `smolm2-135m-instruct`", "did you mean `smollm2-135m-instruct`?"),
        ("zzz", "unknown model `zzz`", "hub id"),
        ("./absent", "no file or folder ./absent", "hub id"),
        ("absent.gguf", "no file or folder absent.gguf", ".gguf"),
        ("", "unknown model ``", "hub id"),
    ],
)
def test_an_unknown_model_is_refused_with_the_nearest_name(
    ref: str, message: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError) as caught:
        open_checkpoint(ref)
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_a_file_of_another_kind_is_refused(folder: Path) -> None:
    with pytest.raises(ExportError, match="only part") as caught:
        open_checkpoint(folder / "model.safetensors")
    assert str(folder) in str(caught.value.hint)
    with pytest.raises(ExportError, match="is not a checkpoint"):
        open_checkpoint(folder / "config.json")


def test_a_revision_is_refused_where_there_are_none(folder: Path) -> None:
    with pytest.raises(ConfigError, match="has no revisions"):
        open_checkpoint(folder, revision="main")
    with pytest.raises(ConfigError, match="pinned"):
        open_checkpoint("smollm2-135m-instruct", revision="main")
