"""Fixtures with the kernels, compiled from the current sources."""

from __future__ import annotations

import platform
from dataclasses import replace

import pytest

from edgekit.runners.cpu.build import find_compiler, refresh
from edgekit.runners.cpu.library import Kernels, load

NAMES = ["dotprod", "plain"] if platform.machine() in {"aarch64", "arm64"} else ["avx512vnni", "avx2", "plain"]


@pytest.fixture(scope="session")
def best() -> Kernels:
    """The best variant that this processor supports."""
    refresh(find_compiler())
    found = load({})
    assert isinstance(found, Kernels), found
    return found


@pytest.fixture(scope="session", params=NAMES)
def kernels(request: pytest.FixtureRequest, best: Kernels) -> Kernels:
    """Each variant that this processor supports."""
    if request.param not in best.variants:
        pytest.skip(f"this processor does not support the {request.param} kernels")
    return replace(best, variant=request.param)
