from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.errors import ConfigError
from edgekit.machine import GIB, Gpu, Machine, available_gib, parse_nvidia_smi, probe
from edgekit.target import load_target, parse_profile, recognise, targets

FOLDER = Path(__file__).parent.parent / "targets"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def test_the_targets_are_the_files_of_the_folder() -> None:
    assert list(targets()) == NAMES
    assert {"orin", "orin-32", "orin-nx-16", "orin-nx-8", "orin-nano-8", "m1", "m2", "rtx", "cpu"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_is_sound_and_says_where_its_figures_come_from(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.title
    assert target.group_size == target.group_sizes[0]
    assert target.compatible in target.accepts
    assert "cpu" in target.accepts
    assert target.sources[0][0] == "reserve_gib"
    assert json.loads(json.dumps(target.describe()))["name"] == name
    if target.memory_gib is not None:
        assert 0 <= target.reserve_gib < target.memory_gib / 2
    for figure in ("bandwidth_gb_s", "compute_capability", "int8_tops_sparse"):
        assert (getattr(target, figure) is not None) == (figure in dict(target.sources))


def test_devices_of_one_family_share_a_compatible_string() -> None:
    assert {load_target(name).compatible for name in NAMES if name.startswith("orin")} == {"jetson-orin"}
    assert load_target("m1").compatible == load_target("m2").compatible == "apple-silicon"


def test_an_unknown_target_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        load_target("xavier")
    assert caught.value.message == "unknown target `xavier`"
    assert caught.value.hint == "known targets: " + ", ".join(NAMES)
    assert (caught.value.exit_status, caught.value.code) == (2, "unknown_target")
    with pytest.raises(ConfigError, match="unknown target") as caught:
        load_target("../targets/cpu")
    with pytest.raises(ConfigError) as caught:
        load_target("orin-nano")
    assert (caught.value.hint or "").startswith("did you mean `orin-nano-8`?")


def test_a_memory_size_picks_the_slowest_chip_sold_with_it() -> None:
    small, big = load_target("m2"), load_target("m2", 64)
    assert (small.title, small.memory_gib, small.bandwidth_gb_s) == ("Apple M2", 8, 100.0)
    assert (big.title, big.memory_gib, big.bandwidth_gb_s) == ("Apple M2 Max", 64, 400.0)
    assert load_target("m2", 16).title == "Apple M2"
    assert big.reserve_gib > small.reserve_gib
    assert load_target("cpu", 4).memory_gib == 4


@pytest.mark.parametrize(("name", "memory_gib"), [("m2", 12), ("orin", 32), ("cpu", 1), ("cpu", -4)])
def test_a_memory_size_the_device_is_not_made_with_is_refused(name: str, memory_gib: float) -> None:
    with pytest.raises(ConfigError, match=f"{memory_gib} GiB") as caught:
        load_target(name, memory_gib)
    assert caught.value.hint


def test_the_group_size_falls_back_to_one_that_divides() -> None:
    orin = load_target("orin")
    assert [orin.group_size_for(n) for n in (3584, 576, 96, 100)] == [128, 64, 32, None]


def test_the_jetpack_of_a_jetson_chooses_the_dialect() -> None:
    assert (load_target("orin").jetpack, load_target("orin").dialect) == (None, "portable")
    for name in NAMES:
        if name.startswith("orin"):
            old, new = load_target(name, jetpack="6.2"), load_target(name, jetpack="7.2")
            assert (old.tensorrt, old.dialect) == ("10.3", "portable")
            assert (new.tensorrt, new.dialect) == ("10.16", "native")
            assert "JetPack 7.2" in dict(new.sources)["tensorrt"]
            assert new.compatible == old.compatible
    assert load_target("orin", jetpack="7").dialect == load_target("orin", jetpack="7.10.1").dialect == "native"
    assert load_target("orin", jetpack="6").dialect == "portable"


@pytest.mark.parametrize(
    ("name", "version", "message"),
    [
        ("orin", "5.1.2", "no JetPack 5.1.2"),
        ("orin", "7.1", "no JetPack 7.1"),
        ("orin", "8", "no JetPack 8"),
        ("orin", "seven", "not a JetPack version"),
        ("cpu", "6.2", "`cpu` has no JetPack"),
        ("rtx", "7.2", "`rtx` has no JetPack"),
    ],
)
def test_a_jetpack_that_the_device_has_not_is_refused(name: str, version: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_target(name, jetpack=version)
    assert caught.value.hint


GOOD = (FOLDER / "orin.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("title:", "titel:", "unknown key `titel`"),
        ("basis:", "baisis:", "unknown key `baisis` in `reserve`"),
        ("artifact: onnx", "artifact: mlx", "a `dialect` goes with artifact `onnx`"),
        ("  dialect: portable\n", "", "a `dialect` goes with artifact `onnx`"),
        ("dialect: portable", "dialect: fast", "`export.dialect` must be one of"),
        ("[128, 64, 32]", "[]", "must each name at least one"),
        ("[128, 64, 32]", "[8]", "must be between 16 and 1024"),
        ("runners: [tensorrt", "runners: [tensorrtx", "must be one of tensorrt"),
        ("memory_gib: [48, 64]", "memory_gib: [48]", "must be the lowest and the highest"),
        ('since: "7.2"', "since: seven", "must be a version such as 7.2"),
        ("dialect: portable", "dialect: native", "must be that of the first of `jetpacks`"),
        ("compatible: jetson-orin\n", "", "`compatible` is missing"),
    ],
)
def test_a_profile_with_a_mistake_is_refused(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        parse_profile(GOOD.replace(old, new, 1), "targets/orin.yaml")
    assert message in caught.value.message
    assert "targets/orin.yaml" in caught.value.message


def jetson(model: str, *compatible: str, memory_gib: float) -> Machine:
    return Machine("Linux", "aarch64", memory_gib, (model, *compatible, "nvidia,tegra234"))


# What the device trees of NVIDIA's boards say, and the memory their kernels count.
@pytest.mark.parametrize(
    ("machine", "name"),
    [
        (jetson("NVIDIA Jetson AGX Orin Developer Kit", "nvidia,p3737-0000+p3701-0005", memory_gib=61.4), "orin"),
        # The developer kit's tree names p3701-0000 whichever module is on it.
        (jetson("NVIDIA Jetson AGX Orin Developer Kit", "nvidia,p3737-0000+p3701-0000", memory_gib=61.4), "orin"),
        (jetson("NVIDIA Jetson AGX Orin Developer Kit", "nvidia,p3737-0000+p3701-0000", memory_gib=29.8), "orin-32"),
        (jetson("NVIDIA Jetson AGX Orin", "nvidia,p3737-0000+p3701-0004", memory_gib=30.0), "orin-32"),
        (jetson("NVIDIA Orin NX Developer Kit", "nvidia,p3509-0000+p3767-0000", memory_gib=15.3), "orin-nx-16"),
        (jetson("A vendor's carrier board", "nvidia,p3768-0000+p3767-0000-super", memory_gib=15.3), "orin-nx-16"),
        (jetson("NVIDIA Jetson Orin NX Engineering Kit", "nvidia,p3768-0000+p3767-0001", memory_gib=7.4), "orin-nx-8"),
        (jetson("A vendor's carrier board", "nvidia,p3768-0000+p3767-0000", memory_gib=7.4), "orin-nx-8"),
        (
            jetson(
                "NVIDIA Jetson Orin Nano Developer Kit Super", "nvidia,p3768-0000+p3767-0005-super", memory_gib=7.44
            ),
            "orin-nano-8",
        ),
        (jetson("A vendor's carrier board", "nvidia,p3768-0000+p3767-0003", memory_gib=6.3), "orin-nano-8"),
        (jetson("NVIDIA Jetson Orin Nano 4GB", "nvidia,p3768-0000+p3767-0004", memory_gib=3.4), "cpu"),
        (Machine("Linux", "aarch64", 62.0, ("NVIDIA Jetson AGX Xavier", "nvidia,p2972-0000")), "cpu"),
        (Machine("Linux", "aarch64", 7.8, ("Raspberry Pi 5 Model B Rev 1.0", "raspberrypi,5-model-b")), "cpu"),
        (Machine("Darwin", "arm64", 8.0, cpu_brand="Apple M1"), "m1"),
        (Machine("Darwin", "arm64", 64.0, cpu_brand="Apple M1 Max"), "m1"),
        (Machine("Darwin", "arm64", 24.0, cpu_brand="Apple M2"), "m2"),
        (Machine("Darwin", "arm64", 32.0, cpu_brand="Apple M4 Pro"), "m2"),
        (Machine("Darwin", "x86_64", 16.0, cpu_brand="Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz"), "cpu"),
        # Asahi Linux: MLX needs macOS.
        (Machine("Linux", "aarch64", 16.0, cpu_brand="Apple M1"), "cpu"),
        (Machine("Linux", "x86_64", 31.0, gpus=(Gpu("NVIDIA GeForce RTX 3060", 12.0, "8.6"),)), "rtx"),
        (Machine("Linux", "x86_64", 31.0, gpus=(Gpu("NVIDIA RTX A2000 12GB", 12.0, "8.6"),)), "rtx"),
        (Machine("Linux", "x86_64", 31.0, gpus=(Gpu("NVIDIA GeForce GTX 1080", 8.0, "6.1"),)), "cpu"),
        (Machine("Linux", "x86_64", 31.0, cpu_brand="AMD Ryzen 5"), "cpu"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_machine_is_recognised_by_what_it_says_of_itself(machine: Machine, name: str) -> None:
    assert recognise(machine).name == name


def test_the_recognised_target_has_the_machines_own_memory_and_bandwidth() -> None:
    mac = recognise(Machine("Darwin", "arm64", 32.0, cpu_brand="Apple M1 Max"))
    assert (mac.title, mac.memory_gib, mac.bandwidth_gb_s) == ("Apple M1 Max", 32, 400.0)
    young = recognise(Machine("Darwin", "arm64", 36.0, cpu_brand="Apple M4 Max"))
    assert (young.title, young.memory_gib, young.bandwidth_gb_s) == ("Apple M4 Max", 36, 100.0)
    card = recognise(Machine("Linux", "x86_64", 62.0, gpus=(Gpu("NVIDIA GeForce RTX 4090", 23.99, "8.9"),)))
    assert (card.title, card.memory_gib, card.bandwidth_gb_s, card.compute_capability) == (
        "NVIDIA GeForce RTX 4090", 24, None, "8.9",
    )  # fmt: skip
    assert recognise(Machine("Linux", "x86_64", 7.66)).memory_gib == 7.7


def test_the_device_tree_and_the_memory_are_read_as_the_kernel_writes_them(tmp_path: Path) -> None:
    tree = tmp_path / "proc/device-tree"
    tree.mkdir(parents=True)
    (tree / "model").write_bytes(b"NVIDIA Jetson Orin NX Developer Kit\0")
    (tree / "compatible").write_bytes(b"nvidia,p3768-0000+p3767-0000\0nvidia,p3767-0000\0nvidia,tegra234\0")
    (tmp_path / "proc/meminfo").write_text("MemTotal:       16055860 kB\nMemFree: 1 kB\nMemAvailable:   8388608 kB\n")
    machine = probe(tmp_path)
    assert machine.device_tree[0] == "NVIDIA Jetson Orin NX Developer Kit"
    assert machine.device_tree[-1] == "nvidia,tegra234"
    assert machine.memory_gib == pytest.approx(16055860 * 1024 / GIB)
    assert available_gib(tmp_path) == 8.0
    assert recognise(machine).name == "orin-nx-16"


def test_a_machine_that_says_nothing_is_still_probed(tmp_path: Path) -> None:
    machine = probe(tmp_path)
    assert machine.memory_gib > 0
    assert machine.device_tree == ()
    assert available_gib(tmp_path) is None


def test_nvidia_smi_is_read_with_and_without_figures() -> None:
    output = "NVIDIA GeForce RTX 3060, 12288, 8.6\nOrin (nvgpu), [N/A], [N/A]\nOld card, 2048, [N/A]\nnoise\n"
    assert parse_nvidia_smi(output) == (
        Gpu("NVIDIA GeForce RTX 3060", 12.0, "8.6"),
        Gpu("Old card", 2.0, None),
    )
