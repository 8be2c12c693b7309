from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekit.errors import ConfigError
from edgekit.profile import target_names
from edgekit.recognition import check_targets
from edgekit.target import load_target

FOLDER = Path(__file__).parent.parent / "targets"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def test_the_targets_are_the_files_of_the_folder() -> None:
    assert list(target_names()) == NAMES
    assert {
        "orin",
        "orin-32",
        "orin-nx-16",
        "orin-nx-8",
        "orin-nano-8",
        "orin-nano-4",
        "m1",
        "m2",
        "rtx",
        "cpu",
    } <= set(NAMES)


def test_every_file_can_be_read_and_no_two_targets_claim_one_device() -> None:
    complaints = [f"{error.message}\nhint: {error.hint}" for error in check_targets()]
    assert not complaints, "\n".join(complaints)


@pytest.mark.parametrize("name", NAMES)
def test_every_profile_is_valid_and_names_the_sources_of_its_figures(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.title
    assert target.group_size == target.group_sizes[0]
    assert target.compatible in target.accepts
    assert "cpu" in target.accepts
    assert target.sources[0][0] == "reserve_gib"
    assert json.loads(json.dumps(target.describe()))["name"] == name
    if target.memory_gib is not None:
        reserve = f"`reserve` of targets/{name}.yaml keeps half of the memory, or more, for the system"
        assert 0 <= target.reserve_gib < target.memory_gib / 2, reserve
    for figure in ("bandwidth_gb_s", "compute_capability", "int8_tops_sparse"):
        assert (getattr(target, figure) is not None) == (figure in dict(target.sources))


def test_devices_of_one_family_share_a_compatible_string() -> None:
    assert {name: load_target(name).compatible for name in NAMES if name.startswith("orin")} == dict.fromkeys(
        (name for name in NAMES if name.startswith("orin")), "jetson-orin"
    )
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
    assert (caught.value.hint or "").startswith("did you mean `orin-nano-")


def test_a_memory_size_picks_the_slowest_chip_sold_with_it() -> None:
    small, big = load_target("m2"), load_target("m2", 64)
    assert (small.title, small.memory_gib, small.bandwidth_gb_s) == ("Apple M2", 8, 100.0)
    assert (big.title, big.memory_gib, big.bandwidth_gb_s) == ("Apple M2 Max", 64, 400.0)
    assert load_target("m2", 16).title == "Apple M2"
    assert big.reserve_gib > small.reserve_gib
    assert load_target("cpu", 4).memory_gib == 4


@pytest.mark.parametrize(("name", "memory_gib"), [("m2", 12), ("orin", 32), ("cpu", 1), ("cpu", -4)])
def test_a_memory_size_that_the_device_is_not_sold_with_is_refused(name: str, memory_gib: float) -> None:
    with pytest.raises(ConfigError, match=f"{memory_gib} GiB") as caught:
        load_target(name, memory_gib)
    assert caught.value.hint


def test_the_group_size_falls_back_to_one_that_divides() -> None:
    orin = load_target("orin")
    assert [orin.group_size_for(n) for n in (3584, 576, 96, 100)] == [128, 64, 32, None]


def test_a_jetson_gets_the_portable_dialect_whatever_its_jetpack_and_native_where_that_is_asked_for() -> None:
    assert (load_target("orin").jetpack, load_target("orin").dialect) == (None, "portable")
    for name in NAMES:
        if name.startswith("orin"):
            old, new = load_target(name, jetpack="6.2"), load_target(name, jetpack="7.2")
            assert (old.tensorrt, old.dialect) == ("10.3", "portable")
            assert (new.tensorrt, new.dialect) == ("10.16", "portable")
            assert load_target(name, jetpack="7.2", dialect="native").dialect == "native"
            assert "JetPack 7.2" in dict(new.sources)["tensorrt"]
            assert new.compatible == old.compatible
    for version in ("7", "7.10.1"):
        assert load_target("orin", jetpack=version).dialects == ("portable", "native")
    assert load_target("orin", jetpack="6").dialects == load_target("orin").dialects == ("portable",)
    assert load_target("rtx", dialect="native").dialect == "native"
    assert load_target("orin", dialect="portable") == load_target("orin")


@pytest.mark.parametrize(
    ("name", "jetpack", "dialect", "message", "hint"),
    [
        ("orin", None, "native", "`native` is not built by the TensorRT of older JetPacks", "jetpack"),
        ("orin", "6.2", "native", "`native` is not built by the TensorRT of JetPack 6.2", "jetpack"),
        ("orin", "7.2", "onnxruntime", "`orin` has no dialect `onnxruntime`", "portable or native"),
        ("cpu", None, "portable", "`cpu` has no dialect `portable`", "leave out"),
        ("m2", None, "native", "`m2` has no dialect `native`", "leave out"),
    ],
)
def test_a_dialect_that_the_device_does_not_build_is_refused(
    name: str, jetpack: str | None, dialect: str, message: str, hint: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_target(name, jetpack=jetpack, dialect=dialect)
    assert hint in (caught.value.hint or "")


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
def test_a_jetpack_that_the_device_does_not_have_is_refused(name: str, version: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_target(name, jetpack=version)
    assert caught.value.hint


def test_the_jetsons_are_listed_without_one_that_cannot_be_read(targets_folder: Path) -> None:
    (targets_folder / "orin-32.yaml").write_text("nothing: here\n")
    with pytest.raises(ConfigError) as caught:
        load_target("cpu", jetpack="7.2")
    assert (caught.value.hint or "").endswith("orin, orin-nano-4, orin-nano-8, orin-nx-16, orin-nx-8")


def test_a_figure_that_is_not_there_has_no_source() -> None:
    assert "bandwidth_gb_s" in dict(load_target("rtx", 12).sources)
    assert "bandwidth_gb_s" not in dict(load_target("rtx", 16).sources)
