from __future__ import annotations

import json
import platform
import signal
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.bundle.bundle import open_bundle
from edgekit.bundle.manifest import MANIFEST_NAME, MemoryTable
from edgekit.cli.bench_report import Measured, print_block
from edgekit.device_report import device_facts, without_paths
from edgekit.generation.speed import Round, Workload, load_for_speed
from edgekit.jetson.device import find_jetson
from edgekit.jetson.watch import BoardWatch
from edgekit.machine import Gpu, Machine, probe
from edgekit.runners import Rejected
from tests.conftest import edgekit, edgekit_command
from tests.generation.bundles import tiny_bundle
from tests.jetson.tree import AGX, AGX_MODEL, NANO, write, write_board, write_nano

SHORT = ("-p", "32", "-n", "8", "-r", "2")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("name with blanks"), "onnx")


def rows(block: str) -> dict[str, str]:
    """The cells of the block's table."""
    lines = [line for line in block.splitlines() if line.startswith("| ") and line != "| | |"]
    return {name.strip(): text.strip() for name, text in (line.strip("|").split(" | ", 1) for line in lines)}


def test_the_figures_are_printed_and_the_rounds_are_on_stderr(bundle: Path) -> None:
    done = edgekit("bench", bundle, *SHORT, "--streams", "3")
    found = {line.split("  ")[0]: line for line in done.stdout.splitlines() if "  " in line}
    assert {"prompt", "decode", "3 streams", "first token", "loaded in", "peak memory"} <= found.keys()
    assert "without speculative decoding and prefix cache" in done.stdout
    assert "round 2 of 2: " in done.stderr


def test_json_has_every_round_and_the_medians(bundle: Path) -> None:
    data = json.loads(edgekit("bench", bundle, *SHORT, "--json").stdout)
    assert len(data["rounds"]) == 2
    rates = sorted(one["decode_tokens_per_s"] for one in data["rounds"])
    assert data["median"]["decode_tokens_per_s"] == pytest.approx(sum(rates) / 2)
    assert data["workload"] == {
        "prompt_tokens": 32,
        "decode_tokens": 8,
        "streams": 1,
        "speculation": False,
        "prefix_cache": False,
    }
    assert data["runner"].startswith("cpu")
    assert data["peak_memory_bytes"] > 1 << 20
    assert "device" not in data
    assert data["bandwidth"] == {"gb_s": None, "read_per_token_bytes": None, "fraction": None}


def test_the_block_of_this_machine_names_its_processor_and_no_place_or_account(bundle: Path) -> None:
    done = edgekit("bench", bundle, *SHORT, "--device", "--runner", "onnxruntime")
    found = rows(done.stdout)
    assert found["runner"] == "onnxruntime"
    assert found["target"].startswith("cpu (")
    assert {"cores", "memory", "CPU kernels", "system", "prompt", "decode", "loaded in", "bundle"} <= found.keys()
    assert "numpy " in found["libraries"]
    for private in (platform.node(), str(bundle), str(Path.home()), "with blanks", "/bundle"):
        assert private not in done.stdout


def test_the_machine_alone_is_described_without_a_bundle() -> None:
    found = rows(edgekit("bench", "--device").stdout)
    assert found["model"] == "none measured"
    assert "prompt" not in found
    missing = edgekit("bench", check=False)
    assert (missing.returncode, missing.stderr.splitlines()[0]) == (2, "error: no bundle to measure")


def test_a_bundle_that_cannot_be_measured_is_in_the_block_with_the_reason(bundle: Path) -> None:
    done = edgekit("bench", bundle, *SHORT, "--device", "--runner", "mlx", check=False)
    assert done.returncode == 2
    assert rows(done.stdout)["failed"].startswith("no runner `mlx` for this bundle")
    damaged = edgekit("bench", bundle / "nothing here", "--device", check=False)
    assert damaged.returncode == 1
    assert "with blanks" not in damaged.stdout
    assert rows(damaged.stdout)["failed"]
    assert edgekit("bench", bundle, "-p", "300", check=False).stderr.startswith(
        "error: 300 + 128 tokens do not fit the context of 256\n\nhint: give a shorter prompt"
    )


def test_ctrl_c_prints_what_was_measured(bundle: Path) -> None:
    command = edgekit_command("bench", bundle, "-p", "16", "-n", "4", "-r", "1000000")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "round 2 of" in line:
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "rounds of 1000000: it was interrupted" in out
    assert "tokens/s" in out


def jetson_block(tree: Path, bundle: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The block of a Jetson's files and of figures that are made up."""
    jetson = find_jetson(tree)
    assert jetson is not None
    watch = BoardWatch(jetson)
    watch.stop()
    opened = open_bundle(bundle)
    loaded = load_for_speed(opened)
    loaded.model.close()
    reason = f"the engine in {bundle} is not one of /home/someone/.cache/edgekit/engines/1234, see https://x.test/a/b"
    loaded = replace(
        loaded, model=replace(loaded.model, info=replace(loaded.model.info, rejected=(Rejected("tensorrt", reason),)))
    )
    measured = Measured(
        Workload(512, 128),
        1,
        manifest=replace(opened.manifest, memory=MemoryTable(100, 8, read_per_token=1_000_000_000)),
        loaded=loaded,
        rounds=[Round(500.0, 25.0, 0.5, None, 0.1, 0.75)],
        conditions=watch.conditions(),
        peak_memory_bytes=1 << 30,
        taken_bytes=2 << 30,
    )
    capsys.readouterr()
    print_block(measured, folder=bundle, root=tree)
    return rows(capsys.readouterr().out)


def test_the_block_of_a_jetson_has_its_board_and_what_its_sensors_read(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(write_nano(tmp_path), "proc/meminfo", "MemTotal: 7800000 kB\nMemAvailable: 5000000 kB\n")
    write(tmp_path, "proc/device-tree/serial-number", "1421224012345\0")
    write(tmp_path, "etc/hostname", "secret-host")
    found = jetson_block(tmp_path, bundle, capsys)
    assert found["board"].startswith("NVIDIA Jetson Orin Nano")
    assert found["jetpack"] == "JetPack 6.2.1 (L4T 36.4.7)"
    assert found["power mode"] == "25W; the fastest is MAXN_SUPER"
    assert found["temperature"] == "52 °C at most, 52 °C at the start"
    assert found["GPU clock"] == "918 of 1020 MHz at most"
    assert found["power"] == "6.0 W at most"
    assert found["throttling"] == "none meanwhile"
    assert found["energy"] == "0.75 J per decoded token, 0.1 J per prompt token"
    # 25 tokens/s of 1 GB, and the KV cache, of 102 GB/s.
    assert found["bandwidth"].startswith("25% of 102 GB/s (1 GB a token)")
    assert "2.00 GiB of the GPU's memory" in found["peak memory"]
    assert found["not on tensorrt"] == "the engine in … is not one of …/1234, see https://x.test/a/b"
    text = "".join(found.values())
    assert "14212240" not in text
    assert "secret-host" not in text


def test_a_nano_without_the_super_device_tree_is_told_what_the_figure_means(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(write_nano(tmp_path), "proc/meminfo", "MemTotal: 7800000 kB\n")
    write_board(tmp_path, compatible=NANO.replace("-super", ""))
    assert "with a `-super` device tree only" in jetson_block(tmp_path, bundle, capsys)["bandwidth"]


def test_an_agx_without_sensors_has_no_rows_for_them(
    tmp_path: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_board(tmp_path, AGX_MODEL, AGX)
    write(tmp_path, "proc/meminfo", "MemTotal: 64000000 kB\n")
    found = jetson_block(tmp_path, bundle, capsys)
    assert found["throttling"] == "unknown"
    assert "temperature" not in found
    assert found["target"].startswith("orin (")


def test_every_core_must_have_an_instruction_set(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", "processor : 0\nFeatures : fp asimd asimddp i8mm\n\nFeatures : fp asimd asimddp\n")
    assert device_facts(probe(tmp_path), tmp_path).facts["instructions"] == "asimd, asimddp"
    card = Machine("Linux", "x86_64", 16.0, gpus=(Gpu("NVIDIA GeForce RTX 3060", 12.0, None),))
    facts = device_facts(card, tmp_path).facts
    assert facts["GPU"] == "NVIDIA GeForce RTX 3060, 12.0 GiB, compute capability unknown"
    assert facts["driver"] == "unknown"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("cannot load /home/ann/models/x/model.onnx: bad", "cannot load …/model.onnx: bad"),
        ("`~/secret/x` and '/a/b'", "`…/x` and '…/b'"),
        ("12 tokens/s, 3/4, https://a.test/b/c", "12 tokens/s, 3/4, https://a.test/b/c"),
        ("libx.so.1: cannot open", "libx.so.1: cannot open"),
        ("(/sys/fs/cgroup/a/memory.max)", "(…/memory.max)"),
    ],
)
def test_paths_are_shortened_to_their_last_part(text: str, shown: str) -> None:
    assert without_paths(text) == shown


def test_the_name_of_a_bundle_is_left_out_and_not_a_part_of_another_word() -> None:
    text = "rtx was made for nvidia-rtx (`rtx`); rtx/model.onnx"
    assert without_paths(text, "rtx") == "… was made for nvidia-rtx (`…`); …/model.onnx"
    assert without_paths("/my models/a-b is bad", "/my models/a") == "…-b is bad"


def test_a_bundle_says_what_a_token_reads_and_an_older_one_does_not(bundle: Path, tmp_path: Path) -> None:
    manifest = open_bundle(bundle).manifest
    assert manifest.memory.read_per_token is None
    text = json.loads((bundle / MANIFEST_NAME).read_text(encoding="utf-8"))
    del text["memory"]["read_per_token"]
    assert "read_per_token" not in text["memory"]
    written = replace(manifest, memory=replace(manifest.memory, read_per_token=7))
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / MANIFEST_NAME).write_text(written.to_json(), encoding="utf-8")
    assert open_bundle(folder).manifest.memory.read_per_token == 7
