"""A user's mistake is one line and a hint, with exit status 1 or 2, and never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Export, edgekit
from tests.models import tiny_checkpoint


def refused(*arguments: str | Path, status: int) -> str:
    """Run edgekit, check the form of its complaint, and return it."""
    done = edgekit(*arguments, check=False)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert lines[1] == ""
    assert lines[2].startswith("hint: ")
    assert len(lines) == 3, done.stderr
    return done.stderr


def test_an_unknown_target_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    said = refused("export", "smollm2-135m-instruct", "--target", "xavier", "-o", tmp_path / "out", status=2)
    assert "unknown target `xavier`" in said
    assert "orin-nano-8" in said


def test_an_unknown_model_is_answered_with_the_nearest(tmp_path: Path) -> None:
    said = refused("export", "smollm2-135m-instrct", "--target", "cpu", "-o", tmp_path / "out", status=1)
    assert "smollm2-135m-instruct" in said


def test_an_unknown_recipe_is_answered_with_the_nearest(tmp_path: Path) -> None:
    said = refused("export", "x", "--target", "cpu", "--recipe", "lqs", "-o", tmp_path / "out", status=2)
    assert "did you mean `lsq`?" in said


def test_an_unsupported_architecture_is_named_with_the_known_ones(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "qwenn2"}))
    said = refused("export", folder, "--target", "cpu", "-o", tmp_path / "out", status=1)
    assert "unsupported architecture `qwenn2`" in said
    assert "did you mean `qwen2`?" in said
    assert "llama" in said
    assert not (tmp_path / "out").exists()


def test_a_truncated_safetensors_file_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    said = refused("export", folder, "--target", "cpu", "-o", tmp_path / "out", status=1)
    assert "model.safetensors" in said
    assert [item.name for item in tmp_path.iterdir()] == ["model"]


def test_a_truncated_gguf_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    said = refused("export", path, "--target", "cpu", "-o", tmp_path / "out", status=1)
    assert "model.gguf" in said


def test_a_wrong_configuration_key_is_named_with_its_line_and_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "edgekit.yaml"
    path.write_text("http:\n  port: 0\nmqtt:\n  hots: localhost\n")
    said = refused("serve", tmp_path, "--config", path, status=2)
    assert "edgekit.yaml:4" in said
    assert "`host`" in said


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    assert "is not a bundle" in refused("run", tmp_path, "hi", status=1)
    assert "there is no bundle" in refused("info", tmp_path / "nothing", status=1)


def test_serving_without_a_bundle_is_refused() -> None:
    assert "no bundle to serve" in refused("serve", status=2)


def test_an_output_folder_that_is_taken_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    said = refused("export", "smollm2-135m-instruct", "--target", "cpu", "-o", tmp_path, status=2)
    assert "already exists" in said
    done = edgekit("export", "smollm2-135m-instruct", "--target", "cpu", "-o", tmp_path, "--force", check=False)
    assert done.returncode == 2
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_flipped_bit_in_a_bundle_is_found_and_the_file_named(export: Export, tmp_path: Path) -> None:
    source = export("cpu")
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = bytearray((tmp_path / "model.onnx.data").read_bytes())
    data[len(data) // 2] ^= 4
    (tmp_path / "model.onnx.data").write_bytes(data)
    done = edgekit("verify", tmp_path, check=False)
    assert done.returncode == 1
    assert "model.onnx.data was changed" in done.stderr


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("onnxruntime", ("run", "{bundle}", "hi"), "onnxruntime"),
        ("onnx", ("export", "smollm2-135m-instruct", "--target", "cpu", "-o", "{new}"), "export"),
        ("starlette", ("serve", "{bundle}"), "daemon"),
    ],
)
def test_a_missing_library_is_answered_with_the_command_that_installs_it(
    module: str, arguments: tuple[str, ...], extra: str, export: Export, tmp_path: Path
) -> None:
    words = [word.format(bundle=export("cpu"), new=tmp_path / "new") for word in arguments]
    # As on a machine that lacks it: the import fails as if there were no such module.
    program = f"""
import sys
class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {module!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Lacking())
sys.argv = ["edgekit", *{words!r}]
from edgekit.cli import main
main()
"""
    # The kernels of our own do without onnxruntime.
    env = {**os.environ, "EDGEKIT_CPU_KERNELS": "off"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
    assert done.returncode == 1, done.stderr
    assert f"pip install 'edgekit[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_option_is_answered_with_where_to_look() -> None:
    assert "edgekit export --help" in refused("export", "x", "--targt", "cpu", status=2)


def test_ask_says_when_no_daemon_listens() -> None:
    assert "127.0.0.1:9" in refused("ask", "--http", "http://127.0.0.1:9", "hi", status=1)


def test_the_status_of_a_service_that_is_not_there_is_shown_and_fails(tmp_path: Path) -> None:
    done = edgekit("service", "status", "--root", tmp_path, check=False)
    assert "not installed" in done.stdout
    assert done.returncode == 1


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("targets", "orin"), ("models", "--json")])
def test_what_only_shows_something_succeeds(arguments: tuple[str, ...]) -> None:
    done = edgekit(*arguments)
    assert done.stdout
    assert done.stderr == ""
