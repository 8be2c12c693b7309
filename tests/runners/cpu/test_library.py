from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from edgekit.errors import ConfigError
from edgekit.runners.cpu import build
from edgekit.runners.cpu.build import find_compiler, refresh
from edgekit.runners.cpu.library import VARIABLE, Kernels, Unavailable, load
from tests.runners.cpu.small_kernels import DISPATCH, KERNELS, write


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    refresh(find_compiler())


def kernels(name: str = "", folder: Path | None = None) -> Kernels:
    found = load({VARIABLE: name}, folder)
    assert isinstance(found, Kernels), found
    return found


def reason(folder: Path, name: str = "") -> str:
    found = load({VARIABLE: name}, folder)
    assert isinstance(found, Unavailable)
    return found.reason


def test_the_best_variant_that_this_processor_supports_is_selected() -> None:
    found = kernels()
    assert found.variant == found.variants[0]
    assert found.variants[-1] == "plain"
    assert isinstance(found.library, ctypes.CDLL)


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="reads /proc/cpuinfo")
def test_the_variants_are_those_whose_features_linux_reports() -> None:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    features = set(next(line for line in lines if line.startswith(("flags", "Features"))).partition(":")[2].split())
    needs = {
        "avx512vnni": {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx2", "fma", "f16c"},
        "avx2": {"avx2", "fma", "f16c"},
        "dotprod": {"asimddp", "asimdhp"},
        "plain": set(),
    }
    expected = tuple(name for name in find_compiler().variants() if needs[name] <= features)
    assert kernels().variants == expected


def test_the_user_may_select_any_variant() -> None:
    for name in kernels().variants:
        assert kernels(name).variant == name


def test_an_unavailable_variant_is_rejected_with_the_available_ones() -> None:
    foreign = "avx2" if find_compiler().machine in {"aarch64", "arm64"} else "dotprod"
    for name in ("avx", foreign):
        with pytest.raises(ConfigError, match=f"EDGEKIT_CPU_KERNELS is `{name}`") as caught:
            load({VARIABLE: name})
        assert caught.value.hint == f"available: {', '.join(kernels().variants)}, or off"


def test_the_kernels_can_be_switched_off(tmp_path: Path) -> None:
    assert load({VARIABLE: "off"}) == Unavailable("switched off by $EDGEKIT_CPU_KERNELS")
    assert load({VARIABLE: "off"}, tmp_path) == Unavailable("switched off by $EDGEKIT_CPU_KERNELS")


def test_missing_kernels_are_reported_and_selecting_a_variant_is_an_error(tmp_path: Path) -> None:
    assert reason(tmp_path) == "they are not compiled"
    with pytest.raises(ConfigError, match="is `plain`, but there are no CPU kernels: they are not compiled"):
        load({VARIABLE: "plain"}, tmp_path)


def test_kernels_compiled_from_other_sources_are_not_loaded(tmp_path: Path) -> None:
    sources = write(tmp_path)
    refresh(find_compiler(), tmp_path)
    assert kernels(folder=tmp_path).variant == "plain"
    (sources / "kernels.h").write_text("/* another signature */\n", encoding="ascii")
    assert reason(tmp_path) == "they were compiled from other sources"
    refresh(find_compiler(), tmp_path)
    assert kernels(folder=tmp_path).variant == "plain"


def test_a_library_that_cannot_be_loaded_is_unavailable(tmp_path: Path) -> None:
    write(tmp_path)
    refresh(find_compiler(), tmp_path)
    path = tmp_path / build.LIBRARY
    full = path.read_bytes()
    path.write_bytes(b"not the magic" + full[13:])
    assert reason(tmp_path).startswith("they cannot be loaded: ")
    path.write_bytes(b"")
    assert reason(tmp_path) == "they were compiled from other sources"


def test_a_library_without_our_functions_is_unavailable(tmp_path: Path) -> None:
    write(tmp_path, dispatch="int other(void);\nint other(void) { return 1; }\n")
    refresh(find_compiler(), tmp_path)
    assert reason(tmp_path).startswith("they cannot be loaded: ")
    assert "ek_variants" in reason(tmp_path)


def test_a_processor_that_supports_no_variant_has_no_kernels(tmp_path: Path) -> None:
    write(tmp_path, dispatch=DISPATCH.replace("return EK_VARIANTS(SPELL);", 'return "";'))
    refresh(find_compiler(), tmp_path)
    assert reason(tmp_path) == "this processor supports none of the compiled variants"


def test_the_shell_command_compiles_in_place_and_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sources = write(tmp_path)
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    report = f"CPU kernels compiled: {', '.join(find_compiler().variants())}\n"
    for arguments, expected in (
        ([], report),
        ([], ""),
        (["--force"], report),
        (["-o", str(tmp_path / "made.so")], report),
    ):
        assert build.main([*arguments, "--strict"]) == 0
        assert capfd.readouterr().err == expected
    assert build.is_built_from(tmp_path / "made.so", sources)
    write(tmp_path, kernels="#error ouch\n")
    assert build.main([]) == 1
    assert "ouch" in capfd.readouterr().err


def test_a_variant_that_does_not_compile_is_a_failure_with_strict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_plain = "#define IS_plain 1\n" + KERNELS + "#if !NAME(IS_, EK_VARIANT)\n#error ouch\n#endif\n"
    write(tmp_path, kernels=only_plain)
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    assert build.main([]) == 0
    assert build.main(["--strict"]) == 1
