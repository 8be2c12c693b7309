"""A user's mistake is one line and a hint, with exit status 1 or 2, and never a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit import profile
from edgekit.cli import foreign_options, main
from edgekit.cli.serve import serve
from edgekit.config import GenerationConfig, HttpConfig
from edgekit.yaml_lines import field_types
from tests.conftest import Export, edgekit
from tests.models import tiny_checkpoint

SECTIONS = {"http": HttpConfig, "generation": GenerationConfig}


def refused(*arguments: str | Path, status: int) -> str:
    """Run edgekit, check the format of its error message, and return it."""
    done = edgekit(*arguments, check=False)
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert lines[0].startswith("error: ")
    assert lines[1] == ""
    assert lines[2].startswith("hint: ")
    assert len(lines) == 3, done.stderr
    return done.stderr


def test_the_error_for_an_unknown_target_lists_the_known_ones(tmp_path: Path) -> None:
    error = refused("export", "smollm2-135m-instruct", "--target", "xavier", "-o", tmp_path / "out", status=2)
    assert "unknown target `xavier`" in error
    assert "orin-nano-8" in error


def test_the_error_for_an_unknown_model_suggests_the_nearest(tmp_path: Path) -> None:
    error = refused("export", "smollm2-135m-instrct", "--target", "cpu", "-o", tmp_path / "out", status=1)
    assert "smollm2-135m-instruct" in error


def test_the_error_for_an_unknown_recipe_suggests_the_nearest(tmp_path: Path) -> None:
    error = refused("export", "x", "--target", "cpu", "--recipe", "lqs", "-o", tmp_path / "out", status=2)
    assert "did you mean `lsq`?" in error


def test_an_unsupported_architecture_is_named_with_the_known_ones(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "qwenn2"}))
    error = refused("export", folder, "--target", "cpu", "-o", tmp_path / "out", status=1)
    assert "unsupported architecture `qwenn2`" in error
    assert "did you mean `qwen2`?" in error
    assert "llama" in error
    assert not (tmp_path / "out").exists()


def test_a_truncated_safetensors_file_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    error = refused("export", folder, "--target", "cpu", "-o", tmp_path / "out", status=1)
    assert "model.safetensors" in error
    assert [item.name for item in tmp_path.iterdir()] == ["model"]


def test_a_truncated_gguf_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    error = refused("export", path, "--target", "cpu", "-o", tmp_path / "out", status=1)
    assert "model.gguf" in error


def test_an_unknown_configuration_key_is_named_with_its_line_and_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "edgekit.yaml"
    path.write_text("http:\n  port: 0\nmqtt:\n  hots: localhost\n")
    error = refused("serve", tmp_path, "--config", path, status=2)
    assert "edgekit.yaml:4" in error
    assert "`host`" in error


def test_a_folder_that_is_not_a_bundle_is_refused(tmp_path: Path) -> None:
    assert "is not a bundle" in refused("run", tmp_path, "hi", status=1)
    assert "there is no bundle" in refused("info", tmp_path / "nothing", status=1)


def test_serving_without_a_bundle_is_refused() -> None:
    assert "no bundle to serve" in refused("serve", status=2)


def test_an_output_folder_with_other_files_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    error = refused("export", "smollm2-135m-instruct", "--target", "cpu", "-o", tmp_path, status=2)
    assert "already exists" in error
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
def test_the_error_for_a_missing_library_has_the_command_that_installs_it(
    module: str, arguments: tuple[str, ...], extra: str, export: Export, tmp_path: Path
) -> None:
    words = [word.format(bundle=export("cpu"), new=tmp_path / "new") for word in arguments]
    # As on a machine without it: the import fails as if the module did not exist.
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
    # Our own kernels do not need onnxruntime.
    env = {**os.environ, "EDGEKIT_CPU_KERNELS": "off"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=env)
    assert done.returncode == 1, done.stderr
    assert f"pip install 'edgekit-llm[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_error_for_an_unknown_option_points_to_the_help() -> None:
    assert "edgekit export --help" in refused("export", "x", "--targt", "cpu", status=2)


@pytest.mark.parametrize("verb", ["run", "eval"])
def test_threads_out_of_range_are_refused_before_anything_is_loaded(verb: str, tmp_path: Path) -> None:
    for count in ("0", "5000"):
        assert f"{count} is not in the range 1<=x<=1024" in refused(verb, tmp_path, "--threads", count, status=2)


def test_ask_without_a_daemon_is_refused() -> None:
    assert "127.0.0.1:9" in refused("ask", "--http", "http://127.0.0.1:9", "hi", status=1)


def test_the_status_of_a_service_that_is_not_installed_is_shown_and_fails(tmp_path: Path) -> None:
    done = edgekit("service", "status", "--root", tmp_path, check=False)
    assert "not installed" in done.stdout
    assert done.returncode == 1


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("targets", "orin"), ("models", "--json")])
def test_commands_that_only_show_something_succeed(arguments: tuple[str, ...]) -> None:
    done = edgekit(*arguments)
    assert done.stdout
    assert done.stderr == ""


@pytest.fixture
def broken(targets_folder: Path) -> str:
    """A target whose file has a mistake, beside edgekit's own; the beginning of its error."""
    (targets_folder / "broken.yaml").write_text("title: Broken\ngroups: [100]\n")
    return "targets/broken.yaml:2: unknown key `groups`"


def test_a_broken_target_file_is_named_and_the_other_targets_are_listed(broken: str) -> None:
    for arguments in (("targets",), ("targets", "--json"), ("targets", "orin")):
        done = edgekit(*arguments)
        assert "orin" in done.stdout
        assert done.stderr.startswith(f"warning: {broken}")
    names = [entry["name"] for entry in json.loads(edgekit("targets", "--json").stdout)]
    assert "orin-nano-8" in names
    assert "broken" not in names


def test_only_a_command_that_needs_the_broken_target_fails(broken: str, tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    config = checkpoint / "config.json"
    # Too large, so that larger devices are searched.
    wide = json.loads(config.read_text()) | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
    (tmp_path / "wide").mkdir()
    (tmp_path / "wide" / "config.json").write_text(json.dumps(wide))
    assert json.loads(edgekit("plan", config, "-t", "orin", "--json").stdout)["fits"] is True
    done = edgekit("plan", tmp_path / "wide" / "config.json", "-t", "orin-nano-8", "--json", check=False)
    assert json.loads(done.stdout)["fits"] is False
    edgekit("export", checkpoint, "-t", "cpu", "-o", tmp_path / "out")
    done = edgekit("doctor", "--json", check=False)
    (check,) = [check for check in json.loads(done.stdout)["checks"] if check["name"] == "targets"]
    assert (check["state"], check["detail"]) == ("warn", broken)
    for arguments in (("targets", "broken"), ("plan", config, "-t", "broken"), ("export", checkpoint, "-t", "broken")):
        done = edgekit(*arguments, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {broken}")


def test_a_bundle_for_a_target_that_cannot_be_read_is_refused_with_the_reason(
    targets_folder: Path, tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    edgekit("export", checkpoint, "-t", "rtx", "-o", tmp_path / "out")
    (targets_folder / "rtx.yaml").write_text("titel: RTX\n")
    profile.read_profile.cache_clear()
    error = refused("verify", tmp_path / "out", "--build", status=1)
    assert "no known target is compatible with nvidia-rtx" in error
    assert "targets/rtx.yaml:1: unknown key `titel`" in error


def test_two_targets_that_claim_one_device_are_reported_where_targets_are_listed(targets_folder: Path) -> None:
    shutil.copy(targets_folder / "orin-nano-8.yaml", targets_folder / "my-board.yaml")
    done = edgekit("targets", "my-board")
    assert "warning: targets/my-board.yaml and targets/orin-nano-8.yaml both recognise a device" in done.stderr
    assert "`memory_gib`" in done.stderr


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        (["-m", "x"], "`-m`: the bundle is the argument"),
        (["-c", "4096"], "`-c`: use --context-length"),
        (["--max-model-len=4096"], "`--max-model-len`: use --context-length"),
        (["--api-key", "x"], "`--api-key`: make a key with `edgekit key add NAME`"),
        (["-np", "4"], "`-np`: set generation.parallel"),
        (["-ngl", "99"], "`-ngl`: leave it out"),
        (["-hf", "org/model"], "`-hf`: the bundle is the argument"),
        (["-z"], "edgekit serve --help"),
        (["--served-model-name", "x"], "`--served-model-name`: use --alias"),
        (["--frobnicate"], "edgekit serve --help"),
    ],
)
def test_an_option_of_another_server_is_refused_with_ours_as_a_hint(
    options: list[str], hint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["edgekit", "serve", "smollm2", *options])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert f"hint: {hint}" in capsys.readouterr().err


def test_every_hint_about_another_servers_option_names_options_and_settings_that_exist() -> None:
    flags = {flag for parameter in serve.params for flag in parameter.opts}
    settings = {f"{section}.{name}" for section in ("http", "generation") for name in field_types(SECTIONS[section])}
    assert not flags & set(foreign_options._HINTS)
    for foreign, hint in foreign_options._HINTS.items():
        assert set(re.findall(r"--[a-z-]+", hint)) <= flags, foreign
        assert set(re.findall(r"\b(?:http|generation)\.\w+", hint)) <= settings, foreign
