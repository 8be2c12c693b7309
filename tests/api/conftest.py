"""A tiny bundle, and a model loaded from it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import edgekit
from tests.generation.bundles import tiny_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle(tmp_path_factory.mktemp("api"), "onnx")


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[edgekit.Model]:
    with edgekit.load(bundle, parallel=2) as model:
        yield model
