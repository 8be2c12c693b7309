"""Every device is recognised as one target, and targets that claim the same device are named with what to change."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.machine import Gpu, Machine
from edgekit.recognition import check_targets, collisions, matches, recognise


def jetson(model: str, *compatible: str, memory_gib: float) -> Machine:
    return Machine("Linux", "aarch64", memory_gib, (model, *compatible, "nvidia,tegra234"))


# Device trees of NVIDIA's boards, and the memory that their kernels count.
@pytest.mark.parametrize(
    ("machine", "name"),
    [
        (jetson("NVIDIA Jetson AGX Orin Developer Kit", "nvidia,p3737-0000+p3701-0005", memory_gib=61.4), "orin"),
        # The developer kit's tree names p3701-0000 for every module.
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
        (jetson("NVIDIA Jetson Orin Nano 4GB", "nvidia,p3768-0000+p3767-0004", memory_gib=3.4), "orin-nano-4"),
        (jetson("A vendor's carrier", "nvidia,p3768-0000+p3767-0004-super", memory_gib=3.3), "orin-nano-4"),
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
def test_a_machine_is_recognised_by_its_device_tree_cpu_gpu_and_memory(machine: Machine, name: str) -> None:
    claims = "; ".join(
        f"targets/{match.target}.yaml matches `{match.text}` by `{match.pattern}`" for match in matches(machine)
    )
    assert recognise(machine).name == name, (
        f"{machine} is the device of targets/{name}.yaml, but {claims or 'no target matches it'}. Let `recognise` of "
        f"the others match fewer devices: by longer patterns, or by a `memory_gib` range without {machine.memory_gib:g}"
    )


def test_the_recognised_target_has_the_machines_own_memory_and_bandwidth() -> None:
    mac = recognise(Machine("Darwin", "arm64", 32.0, cpu_brand="Apple M1 Max"))
    assert (mac.title, mac.memory_gib, mac.bandwidth_gb_s) == ("Apple M1 Max", 32, 400.0)
    newer = recognise(Machine("Darwin", "arm64", 36.0, cpu_brand="Apple M4 Max"))
    assert (newer.title, newer.memory_gib, newer.bandwidth_gb_s) == ("Apple M4 Max", 36, 100.0)
    card = recognise(Machine("Linux", "x86_64", 62.0, gpus=(Gpu("NVIDIA GeForce RTX 4090", 23.99, "8.9"),)))
    assert (card.title, card.memory_gib, card.bandwidth_gb_s, card.compute_capability) == (
        "NVIDIA GeForce RTX 4090", 24, None, "8.9",
    )  # fmt: skip
    assert recognise(Machine("Linux", "x86_64", 7.66)).memory_gib == 7.7


def test_a_board_that_is_sold_with_several_sizes_has_the_one_above_what_the_kernel_counts(
    targets_folder: Path,
) -> None:
    text = (targets_folder / "orin-nano-8.yaml").read_text()
    text = text.replace("memory_gib: [8]", "memory_gib: [8, 12, 16]").replace("[6, 9]", "[6, 17]")
    (targets_folder / "orin-nano-8.yaml").write_text(text)
    for counted, sold in ((7.4, 8), (11.2, 12), (15.3, 16), (16.5, 16)):
        machine = jetson("A vendor's carrier board", "nvidia,p3768-0000+p3767-0003", memory_gib=counted)
        assert (recognise(machine).name, recognise(machine).memory_gib) == ("orin-nano-8", sold)


def test_a_target_may_be_recognised_in_several_ways(targets_folder: Path) -> None:
    text = (targets_folder / "rtx.yaml").read_text()
    (targets_folder / "rtx.yaml").write_text(text.replace("  gpu:", '  device_tree: ["*my-rtx-board*"]\n  gpu:'))
    board = recognise(jetson("A my-rtx-board", memory_gib=12.0))
    assert (board.name, board.memory_gib) == ("rtx", 12)
    card = Machine("Linux", "x86_64", 62.0, gpus=(Gpu("NVIDIA GeForce RTX 4090", 23.99, "8.9"),))
    assert recognise(card).title == "NVIDIA GeForce RTX 4090"


def test_a_target_with_a_mistake_is_not_recognised_and_the_others_are(targets_folder: Path) -> None:
    (targets_folder / "m1.yaml").write_text("titel: Apple M1\n")
    assert recognise(Machine("Darwin", "arm64", 8.0, cpu_brand="Apple M2")).name == "m2"
    assert recognise(Machine("Linux", "x86_64", 8.0)).name == "cpu"


def copied(folder: Path, source: str, name: str, *changes: tuple[str, str]) -> None:
    text = (folder / f"{source}.yaml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / f"{name}.yaml").write_text(text)


NANO = '["*p3767-0003*", "*p3767-0005*", "*Orin Nano*"]'


@pytest.mark.parametrize(
    ("source", "changes", "other", "device"),
    [
        # Copied as it is.
        ("orin-nano-8", [], "orin-nano-8", "device tree is `p3767-0003`, with 9 GiB"),
        ("m2", [], "m2", "CPU brand is `Apple M2`, with 8 GiB"),
        ("rtx", [], "rtx", "GPU is `NVIDIA  RTX `, with 8 GiB"),
        # One pattern is left, or the ranges still overlap.
        ("orin-nano-8", [(NANO, '["*my-board*", "*p3767-0005*"]')], "orin-nano-8", "device tree is `p3767-0005`"),
        ("orin-nano-8", [("memory_gib: [6, 9]", "memory_gib: [9, 12]")], "orin-nano-8", "with 9 GiB"),
        ("orin-nano-8", [("  memory_gib: [6, 9]\n", "")], "orin-nano-8", "with 9 GiB"),
        ("orin", [("memory_gib: [48, 64]", "memory_gib: [30, 40]")], "orin-32", "with 33 GiB"),
        # Other patterns for the same devices.
        ("orin-nano-8", [(NANO, '["*Orin N?no*"]')], "orin-nano-8", "`NVIDIA Jetson Orin Nano 8 GB`"),
        ("orin-nano-8", [(NANO, '["*Orin [MN]ano*"]')], "orin-nano-8", "`NVIDIA Jetson Orin Nano 8 GB`"),
        ("m2", [('["Apple M2", "Apple M2 *", "Apple M*"]', '["Apple M? Max*"]')], "m2", "CPU brand is `Apple M2 Max`"),
        # It takes a card that another one lists, though neither's shortest match is the other's.
        ("rtx", [('["NVIDIA * RTX *", "NVIDIA RTX *"]', '["NVIDIA GeForce*"]')], "rtx", "NVIDIA GeForce RTX 3060`"),
    ],
)  # fmt: skip
def test_targets_that_claim_one_device_are_named_with_the_device_and_what_to_change(
    source: str, changes: list[tuple[str, str]], other: str, device: str, targets_folder: Path
) -> None:
    copied(targets_folder, source, "my-board", *changes)
    found = [error for error in collisions() if f"targets/{other}.yaml" in error.message]
    assert len(found) == 1, list(collisions())
    assert "targets/my-board.yaml" in found[0].message
    assert device in found[0].message
    assert "write a longer" in (found[0].hint or "")
    assert "`memory_gib`" in (found[0].hint or "")


@pytest.mark.parametrize(
    ("source", "changes"),
    [
        ("orin-nano-8", [(NANO, '["*my-board*"]')]),
        ("orin-nano-8", [("memory_gib: [6, 9]", "memory_gib: [9.5, 12]")]),
        ("rtx", [('["NVIDIA * RTX *", "NVIDIA RTX *"]', '["NVIDIA GeForce RTX 4090"]')]),
        ("m2", [('["Apple M2", "Apple M2 *", "Apple M*"]', '["Apple M3*"]'), ("Apple M2", "Apple M3")]),
    ],
)
def test_a_narrower_target_beside_a_wide_one_is_no_collision(
    source: str, changes: list[tuple[str, str]], targets_folder: Path
) -> None:
    copied(targets_folder, source, "my-board", *changes)
    assert check_targets() == ()


def test_targets_that_share_bundles_must_be_exported_alike(targets_folder: Path) -> None:
    patterns = ("recognise: {}", 'recognise: {device_tree: ["*my-board*"]}')
    variants = ("compatible: cpu", "compatible: jetson-orin\nvariants: [{title: x, memory_gib: [8], source: y}]")
    copied(targets_folder, "cpu", "my-board", patterns, variants)
    (error, *rest) = collisions()
    assert len(rest) == 5  # one for each Orin
    assert "targets/my-board.yaml and targets/orin.yaml are both `compatible: jetson-orin`" in error.message
    assert "onnx onnxruntime and onnx portable" in error.message
    assert "change `compatible`" in (error.hint or "")
