"""Opens a GPU through `cuda-bindings`, and calls the CUDA driver API.

Importing this module needs neither the library nor a driver; `open_device` does, and says which is missing.
"""

from __future__ import annotations

import ctypes
from typing import Any

from edgekit.errors import RunnerError, broken_library, first_line, missing_extra

__all__ = ["Device", "check_driver", "open_device"]

_DRIVER = "libcuda.so.1"
_HINTS = {
    "CUDA_ERROR_NO_DEVICE": "a container needs the NVIDIA runtime: docker run --runtime nvidia …",
    "CUDA_ERROR_OUT_OF_MEMORY": "use fewer sequence slots, a shorter context or a smaller prefill chunk",
    "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH": "restart after an update of the driver",
    "CUDA_ERROR_NO_BINARY_FOR_GPU": "edgekit's kernels are compiled for compute capability 8.0 and later",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION": "update the NVIDIA driver: it is older than CUDA 12.6",
}


class Device:
    """A GPU whose primary context is retained: the context that TensorRT uses too.

    Args:
        api: `cuda.bindings.driver`, or what has its functions.
        ordinal: Number of the GPU.

    Attributes:
        api: As given; call its functions through `call`.
        name: `Orin`, `NVIDIA GeForce RTX 4090`.
        compute_capability: `(8, 7)`.
        integrated: The GPU computes in the system's memory, as on a Jetson.

    Raises:
        RunnerError: There is no such GPU, or no driver.
    """

    def __init__(self, api: Any, ordinal: int = 0) -> None:
        self.api = api
        try:
            self.call("cuInit", 0)
        except RuntimeError as error:  # cuda-bindings found no libcuda
            raise _no_driver(error) from error
        self._handle = self.call("cuDeviceGet", ordinal)
        attribute = api.CUdevice_attribute

        def read(name: str) -> int:
            return int(
                self.call("cuDeviceGetAttribute", getattr(attribute, f"CU_DEVICE_ATTRIBUTE_{name}"), self._handle)
            )

        name = self.call("cuDeviceGetName", 128, self._handle)
        self.name = bytes(name).split(b"\0")[0].decode(errors="replace")
        self.compute_capability = (read("COMPUTE_CAPABILITY_MAJOR"), read("COMPUTE_CAPABILITY_MINOR"))
        self.integrated = bool(read("INTEGRATED"))
        self._context = self.call("cuDevicePrimaryCtxRetain", self._handle)
        self.activate()

    def call(self, name: str, *arguments: Any) -> Any:
        """Call a function of the driver API, and return what it returns behind the status: None, a value or a tuple.

        Raises:
            RunnerError: The status is an error; the message has CUDA's name of it.
        """
        status, *values = getattr(self.api, name)(*arguments)
        if int(status) != 0:
            error = getattr(status, "name", str(status))
            raise RunnerError(f"{name} failed: {error}", hint=_HINTS.get(error))
        return values[0] if len(values) == 1 else tuple(values) or None

    def activate(self) -> None:
        """Make the context current in the calling thread: necessary in each thread, and cheap."""
        self.call("cuCtxSetCurrent", self._context)

    def free_bytes(self) -> int:
        """Return the free memory; on a Jetson, the system's, page cache not included."""
        return int(self.call("cuMemGetInfo")[0])

    def close(self) -> None:
        """Release the context; whatever was allocated in it must be freed before."""
        self.call("cuDevicePrimaryCtxRelease", self._handle)


def open_device(ordinal: int = 0) -> Device:
    """Open a GPU.

    Raises:
        EdgekitError: `missing_extra`, if `cuda-bindings` is not installed.
        RunnerError: There is no driver, or no such GPU.
    """
    return Device(_bindings(), ordinal)


def check_driver() -> None:
    """Find the driver, without starting it or opening a GPU.

    Raises:
        RunnerError: There is no driver.
        EdgekitError: `missing_extra`: there is one, and `cuda-bindings` is not installed.
    """
    try:
        ctypes.CDLL(_DRIVER)
    except OSError as error:
        # No library helps a machine without it.
        raise _no_driver(error) from error
    try:
        _bindings().cuDriverGetVersion()
    except RuntimeError as error:
        raise _no_driver(error) from error


def _bindings() -> Any:
    try:
        from cuda.bindings import driver
    except ModuleNotFoundError as error:
        raise missing_extra("cuda-bindings", "tensorrt") from error
    except ImportError as error:
        raise broken_library("cuda-bindings", error) from error
    return driver


def _no_driver(error: Exception) -> RunnerError:
    return RunnerError(
        f"this machine has no NVIDIA driver: {first_line(error)}",
        hint="on a Jetson it comes with JetPack; in a container, use the NVIDIA runtime",
    )
