"""What is checked before a bundle is loaded: every byte once per change, and the target."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import edgekit
from edgekit.bundle.bundle import open_bundle
from edgekit.bundle.check import check_bundle, check_compatible, check_files
from edgekit.config import DaemonConfig, GenerationConfig, HttpConfig
from edgekit.daemon.app import Daemon
from edgekit.errors import BundleError, IncompatibleBundleError
from edgekit.generation.startup import open_model
from edgekit.machine import Gpu, Machine, state_folder
from edgekit.target import load_target, load_targets
from tests.conftest import edgekit as command
from tests.generation.bundles import tiny_bundle


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("bundle"), "onnx")


@pytest.fixture
def bundle(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "bundle")
    return tmp_path / "bundle"


def hashed(bundle: Path, stamps: Path) -> list[int]:
    """Check, and return the total bytes that were hashed, if any."""
    totals: set[int] = set()
    check_files(open_bundle(bundle), stamps, lambda _, total: totals.add(total))
    return list(totals)


def names(bundle: Path) -> list[str]:
    return [entry.path for entry in open_bundle(bundle).manifest.files]


def flip(path: Path) -> None:
    """Flip a bit and put the old times back, as a damaged copy has them."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(status.st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_an_unchanged_bundle_is_hashed_once(bundle: Path, tmp_path: Path) -> None:
    total = sum(entry.size for entry in open_bundle(bundle).manifest.files)
    assert hashed(bundle, tmp_path / "state" / "stamps") == [total]
    assert hashed(bundle, tmp_path / "state" / "stamps") == []
    # Under another path it is another bundle.
    bundle.rename(tmp_path / "moved")
    assert hashed(tmp_path / "moved", tmp_path / "state" / "stamps") == [total]


@pytest.mark.parametrize("stamped", [False, True])
def test_a_flipped_bit_in_any_file_is_found_and_the_file_named(bundle: Path, tmp_path: Path, stamped: bool) -> None:
    for name in names(bundle):
        copy = tmp_path / "copy"
        shutil.copytree(bundle, copy)
        if stamped:
            assert hashed(copy, tmp_path / "stamps")
        flip(copy / name)
        for _ in range(2):
            with pytest.raises(BundleError, match=f"is damaged: {name} was changed"):
                hashed(copy, tmp_path / "stamps")
        shutil.rmtree(copy)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def link(path: Path) -> None:
    path.rename(path.with_name(".elsewhere"))
    path.symlink_to(".elsewhere")


@pytest.mark.parametrize(
    ("damage", "message"),
    [(truncate, "bytes instead of"), (Path.unlink, "is missing"), (link, "is not a regular file")],
)
@pytest.mark.parametrize("stamped", [False, True])
def test_other_damage_is_found_without_hashing(
    bundle: Path, tmp_path: Path, damage: Callable[[Path], None], message: str, stamped: bool
) -> None:
    if stamped:
        hashed(bundle, tmp_path / "stamps")
    damage(bundle / "tokenizer.json")
    with pytest.raises(BundleError, match=rf"tokenizer\.json .*{message}"):
        check_files(open_bundle(bundle), tmp_path / "stamps", lambda *_: pytest.fail("hashed"))


def test_only_what_changed_is_hashed_again(bundle: Path, tmp_path: Path) -> None:
    hashed(bundle, tmp_path / "stamps")
    path = bundle / "tokenizer.json"
    path.write_bytes(path.read_bytes())
    assert hashed(bundle, tmp_path / "stamps") == [path.stat().st_size]


@pytest.mark.parametrize("name", ["extra.safetensors", "added_tokens.json"])
def test_a_file_that_a_loader_may_open_and_the_manifest_does_not_name_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).write_text("{}")
    with pytest.raises(BundleError, match=f"{name} is not part of the bundle"):
        open_model(open_bundle(bundle), GenerationConfig(threads=1))


def test_a_note_beside_the_bundle_is_no_damage(bundle: Path, tmp_path: Path) -> None:
    (bundle / "NOTES.md").write_text("mine")
    (bundle / ".DS_Store").write_bytes(b"x")
    assert hashed(bundle, tmp_path / "stamps")
    assert hashed(bundle, tmp_path / "stamps") == []


@pytest.mark.parametrize("text", ["", "{", "[]", '{"%s": 1}', '{"%s": {"tokenizer.json": 7}}', "\x00"])
def test_damaged_stamps_count_as_none(bundle: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "stamps").write_text(text.replace("%s", str(bundle)))
    assert hashed(bundle, tmp_path / "stamps")
    assert hashed(bundle, tmp_path / "stamps") == []


def test_where_no_stamp_can_be_kept_the_bundle_is_verified_each_time(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert hashed(bundle, tmp_path / "file" / "stamps")
    assert hashed(bundle, tmp_path / "file" / "stamps")


def test_stamps_of_few_bundles_are_kept(bundle: Path, tmp_path: Path) -> None:
    for number in range(40):
        copy = tmp_path / f"{number}"
        shutil.copytree(bundle, copy)
        hashed(copy, tmp_path / "stamps")
    kept = json.loads((tmp_path / "stamps").read_text())
    assert list(kept) == [str((tmp_path / f"{number}").resolve()) for number in range(8, 40)]
    assert hashed(tmp_path / "39", tmp_path / "stamps") == []


def test_a_draft_bundle_is_verified_too(bundle: Path, sound: Path) -> None:
    flip(bundle / "model.onnx.data")
    with pytest.raises(BundleError, match=r"model\.onnx\.data was changed"):
        open_model(open_bundle(sound), GenerationConfig(threads=1, draft_bundle=bundle))


def load_error(folder: Path) -> str:
    with pytest.raises(BundleError) as caught:
        edgekit.load(folder)
    return caught.value.message


def ways() -> dict[str, Callable[[Path], object]]:
    return {
        "serve": lambda folder: command("serve", folder, "--port", "0", check=False).stderr,
        "run": lambda folder: command("run", folder, "Hello", check=False).stderr,
        "load": load_error,
    }


@pytest.mark.parametrize("way", ways())
def test_a_flipped_bit_in_the_weights_is_refused_however_the_bundle_is_loaded(bundle: Path, way: str) -> None:
    flip(bundle / "model.onnx.data")
    assert "is damaged: model.onnx.data was changed" in str(ways()[way](bundle))


def retarget(bundle: Path, *compatible: str) -> None:
    manifest = replace(open_bundle(bundle).manifest, compatible=compatible)
    (bundle / "manifest.json").write_text(manifest.to_json(), encoding="utf-8")


NAMES = [target.name for target in load_targets()]
OTHERS = sorted({load_target(name).compatible for name in NAMES} - {"cpu"})
PC = Machine("Linux", "x86_64", 31.0, cpu_brand="AMD Ryzen 5")


@pytest.mark.parametrize("compatible", OTHERS)
@pytest.mark.parametrize("way", ways())
def test_a_bundle_for_another_target_is_refused_with_a_hint_however_it_is_loaded(
    bundle: Path, compatible: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.bundle.check.probe", lambda: PC)
    retarget(bundle, compatible)
    assert f"was made for {compatible}; this machine is `cpu`" in str(ways()[way](bundle))


def test_it_is_loaded_nevertheless_if_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgekit.bundle.check.probe", lambda: PC)
    retarget(bundle, "jetson-orin")
    with pytest.raises(IncompatibleBundleError) as caught:
        edgekit.load(bundle)
    assert "`ignore_compatible=True`, or `ignore_compatible: true` under" in str(caught.value.hint)
    for way in ("run", "serve"):
        assert "--ignore-compatible, or `ignore_compatible: true` under" in str(ways()[way](bundle))
    edgekit.load(bundle, ignore_compatible=True).close()
    assert command("run", bundle, "Hello", "--max-tokens", "4", "--ignore-compatible").returncode == 0
    daemon = Daemon(
        DaemonConfig(
            bundle=bundle,
            http=HttpConfig(port=0),
            generation=GenerationConfig(threads=1, ignore_compatible=True),
        )
    )
    daemon.start()
    daemon.stop()


@pytest.mark.parametrize("name", NAMES)
def test_every_target_runs_its_own_bundles_and_those_for_the_cpu(bundle: Path, name: str) -> None:
    machines = {
        "jetson-orin": Machine("Linux", "aarch64", 61.4, ("NVIDIA Jetson AGX Orin", "nvidia,tegra234")),
        "apple-silicon": Machine("Darwin", "arm64", 24.0, cpu_brand="Apple M2"),
        "nvidia-rtx": Machine("Linux", "x86_64", 31.0, gpus=(Gpu("NVIDIA GeForce RTX 3060", 12.0, "8.6"),)),
        "cpu": PC,
    }
    compatible = load_target(name).compatible
    check_compatible(open_bundle(bundle), machines[compatible])
    retarget(bundle, compatible)
    check_compatible(open_bundle(bundle), machines[compatible])
    others = [machine for other, machine in machines.items() if other != compatible]
    for machine in others if compatible != "cpu" else []:
        with pytest.raises(IncompatibleBundleError):
            check_compatible(open_bundle(bundle), machine)


def test_stamps_are_in_the_state_folder(monkeypatch: pytest.MonkeyPatch, bundle: Path, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEKIT_STATE", str(tmp_path / "s"))
    check_bundle(open_bundle(bundle))
    assert (tmp_path / "s" / "verified-bundles.json").is_file()
    monkeypatch.delenv("EDGEKIT_STATE")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/edgekit:/var/lib/other")
    assert state_folder() == Path("/var/lib/edgekit")
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setenv("XDG_STATE_HOME", "/x")
    assert state_folder() == Path("/x/edgekit")
