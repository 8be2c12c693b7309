"""The kernels, compiled of the sources as they are."""

from __future__ import annotations

import platform
from dataclasses import replace

import pytest

from edgekit.runners.cpu.build import find_compiler, refresh
from edgekit.runners.cpu.library import Kernels, load

NAMES = ["dotprod", "plain"] if platform.machine() in {"aarch64", "arm64"} else ["avx512vnni", "avx2", "plain"]


@pytest.fixture(scope="session")
def best() -> Kernels:
    """The best kernels that this processor runs."""
    refresh(find_compiler())
    found = load({})
    assert isinstance(found, Kernels), found
    return found


@pytest.fixture(scope="session", params=NAMES)
def kernels(request: pytest.FixtureRequest, best: Kernels) -> Kernels:
    """All that this processor runs, one after the other."""
    if request.param not in best.variants:
        pytest.skip(f"this processor does not run the {request.param} kernels")
    return replace(best, variant=request.param)
