"""The double has the real library's functions, parameters, constants and order of results."""

from __future__ import annotations

import inspect
from enum import IntEnum
from typing import Any

import pytest

from edgekit.errors import EdgekitError, RunnerError
from edgekit.runners.cuda import driver
from edgekit.runners.cuda.driver import check_driver, open_device
from tests.runners.cuda import driver_double
from tests.runners.cuda.driver_double import DriverDouble

FUNCTIONS = sorted(name for name in vars(DriverDouble) if name.startswith("cu"))
ENUMERATIONS = [kind for kind in vars(driver_double).values() if isinstance(kind, type) and issubclass(kind, IntEnum)]


@pytest.fixture(scope="module")
def real() -> Any:
    return pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_takes_the_parameters_of_the_real_one(real: Any, name: str) -> None:
    # Cython writes the signature into the first line: `cuMemFree(dptr)`, `cuMemAlloc(size_t bytesize)`.
    first = getattr(real, name).__doc__.strip().splitlines()[0]
    inside = first.partition("(")[2].rpartition(")")[0]
    wanted = [parameter.split(":")[0].split()[-1].strip("*") for parameter in inside.split(",") if parameter.strip()]
    got = [parameter for parameter in inspect.signature(getattr(DriverDouble, name)).parameters if parameter != "self"]
    assert got == wanted


@pytest.mark.parametrize("kind", [kind for kind in ENUMERATIONS if kind is not IntEnum], ids=lambda kind: kind.__name__)
def test_constants_have_the_real_values(real: Any, kind: type[IntEnum]) -> None:
    for member in kind:
        assert int(getattr(getattr(real, kind.__name__), member.name)) == member.value


def test_a_two_dimensional_copy_has_the_real_fields(real: Any) -> None:
    copy = real.CUDA_MEMCPY2D()
    for field, value in vars(driver_double.CUDA_MEMCPY2D()).items():
        assert hasattr(type(copy), field)
        if not field.endswith("Type"):
            setattr(copy, field, real.CUdeviceptr(8) if field.endswith("Device") else 8)
            assert int(getattr(copy, field)) == 8
        else:
            setattr(copy, field, getattr(real.CUmemorytype, value.name))


@pytest.mark.gpu
def test_a_gpu_opens(real: Any) -> None:  # noqa: ARG001
    device = open_device()
    assert device.name
    assert device.free_bytes() > 0
    device.close()


def test_without_a_driver_the_error_says_so(real: Any) -> None:
    try:
        status = real.cuInit(0)[0]
    except RuntimeError:
        for call in (open_device, check_driver):
            with pytest.raises(RunnerError, match="this machine has no NVIDIA driver"):
                call()
    else:
        check_driver()
        if int(status) == 0:
            pytest.skip("this machine has a GPU")
        with pytest.raises(RunnerError, match="cuInit failed: CUDA_ERROR"):
            open_device()


def test_without_the_library_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)
    # Any library stands for the driver: that of a machine which has one.
    monkeypatch.setattr(driver, "_DRIVER", None)
    for call in (open_device, check_driver):
        with pytest.raises(EdgekitError) as caught:
            call()
        assert caught.value.code == "missing_extra"
        assert "edgekit-llm[tensorrt]" in str(caught.value.hint)
    # On one without it the library would not help.
    monkeypatch.setattr(driver, "_DRIVER", "libcuda-that-is-not-there.so.1")
    with pytest.raises(RunnerError, match="this machine has no NVIDIA driver: libcuda-that-is-not-there"):
        check_driver()
