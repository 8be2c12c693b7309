from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from edgekit.errors import ConfigError
from edgekit.runners.cpu import build
from edgekit.runners.cpu.build import find_compiler, refresh
from edgekit.runners.cpu.library import VARIABLE, Absent, Kernels, load
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
    assert isinstance(found, Absent)
    return found.reason


def test_the_best_of_the_kernels_that_this_processor_runs_is_taken() -> None:
    found = kernels()
    assert found.variant == found.variants[0]
    assert found.variants[-1] == "plain"
    assert isinstance(found.library, ctypes.CDLL)


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="Linux lists the processor's features")
def test_the_kernels_are_those_that_the_kernel_lists_the_features_for() -> None:
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


def test_the_user_may_name_any_of_them() -> None:
    for name in kernels().variants:
        assert kernels(name).variant == name


def test_kernels_that_are_not_to_be_had_are_refused_with_those_that_are() -> None:
    foreign = "avx2" if find_compiler().machine in {"aarch64", "arm64"} else "dotprod"
    for name in ("avx", foreign):
        with pytest.raises(ConfigError, match=f"EDGEKIT_CPU_KERNELS is `{name}`") as caught:
            load({VARIABLE: name})
        assert caught.value.hint == f"here: {', '.join(kernels().variants)}, or off"


def test_they_can_be_switched_off(tmp_path: Path) -> None:
    assert load({VARIABLE: "off"}) == Absent("switched off by $EDGEKIT_CPU_KERNELS")
    assert load({VARIABLE: "off"}, tmp_path) == Absent("switched off by $EDGEKIT_CPU_KERNELS")


def test_where_there_are_none_it_is_said_and_naming_some_is_an_error(tmp_path: Path) -> None:
    assert reason(tmp_path) == "they are not compiled"
    with pytest.raises(ConfigError, match="is `plain`, and there are no kernels: they are not compiled"):
        load({VARIABLE: "plain"}, tmp_path)


def test_kernels_of_other_sources_are_not_called(tmp_path: Path) -> None:
    sources = write(tmp_path)
    refresh(find_compiler(), tmp_path)
    assert kernels(folder=tmp_path).variant == "plain"
    (sources / "kernels.h").write_text("/* another signature */\n", encoding="ascii")
    assert reason(tmp_path) == "they are not those of the sources beside them"
    refresh(find_compiler(), tmp_path)
    assert kernels(folder=tmp_path).variant == "plain"


def test_a_library_that_cannot_be_loaded_is_none(tmp_path: Path) -> None:
    write(tmp_path)
    refresh(find_compiler(), tmp_path)
    path = tmp_path / build.LIBRARY
    whole = path.read_bytes()
    path.write_bytes(b"not the magic" + whole[13:])
    assert reason(tmp_path).startswith("they cannot be loaded: ")
    path.write_bytes(b"")
    assert reason(tmp_path) == "they are not those of the sources beside them"


def test_a_library_without_our_functions_is_none(tmp_path: Path) -> None:
    write(tmp_path, dispatch="int other(void);\nint other(void) { return 1; }\n")
    refresh(find_compiler(), tmp_path)
    assert reason(tmp_path).startswith("they cannot be loaded: ")
    assert "ek_variants" in reason(tmp_path)


def test_a_processor_that_runs_none_of_them_has_none(tmp_path: Path) -> None:
    write(tmp_path, dispatch=DISPATCH.replace("return EK_VARIANTS(SPELL);", 'return "";'))
    refresh(find_compiler(), tmp_path)
    assert reason(tmp_path) == "this processor runs none of those that were compiled"


def test_the_shell_command_compiles_in_place_and_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    sources = write(tmp_path)
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    said = f"CPU kernels compiled: {', '.join(find_compiler().variants())}\n"
    for arguments, expected in ([], said), ([], ""), (["--force"], said), (["-o", str(tmp_path / "made.so")], said):
        assert build.main([*arguments, "--strict"]) == 0
        assert capfd.readouterr().err == expected
    assert build.is_made_of(tmp_path / "made.so", sources)
    write(tmp_path, kernels="#error ouch\n")
    assert build.main([]) == 1
    assert "ouch" in capfd.readouterr().err


def test_one_variant_that_does_not_compile_is_a_failure_where_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_plain = "#define IS_plain 1\n" + KERNELS + "#if !NAME(IS_, EK_VARIANT)\n#error ouch\n#endif\n"
    write(tmp_path, kernels=only_plain)
    monkeypatch.setattr(build, "FOLDER", tmp_path)
    assert build.main([]) == 0
    assert build.main(["--strict"]) == 1
