"""Bundles whose JSON files were changed at random: each is loaded or refused, whatever they contain."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import edgekit
from edgekit.bundle.bundle import open_bundle, verify_bundle
from edgekit.errors import EdgekitError
from edgekit.export.planning.plan import plan_model
from edgekit.target import load_target
from tests.export.checkpoints.fuzzing import document_changed, seeded
from tests.models import tiny_checkpoint

FILES = ("manifest.json", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    checkpoint = tiny_checkpoint(folder / "checkpoint", layers=1)
    return edgekit.export_model(checkpoint, "cpu", folder / "bundle").path


def use(bundle: Path) -> None:
    """Read a bundle in every way that users do."""
    verify_bundle(open_bundle(bundle))
    with edgekit.load(bundle) as model:
        model.count_tokens([{"role": "user", "content": "Hello"}])


def plan(bundle: Path) -> None:
    plan_model(str(bundle), load_target("cpu"))


@pytest.mark.parametrize("inputs", [range(300), pytest.param(range(300, 2000), marks=pytest.mark.slow)])
def test_a_changed_bundle_is_used_or_refused(inputs: range, bundle: Path) -> None:
    contents = {name: (bundle / name).read_bytes() for name in FILES}
    outcomes: Counter[str] = Counter()
    for number in inputs:
        rng = seeded(f"b{number}")
        name = rng.choice(FILES)
        (bundle / name).write_bytes(document_changed(rng, contents[name]))
        try:
            for action in (use, plan):
                outcomes[attempt(action, bundle)] += 1
        except Exception as error:
            raise AssertionError(f"input {number}, {name}: neither used nor refused") from error
        finally:
            (bundle / name).write_bytes(contents[name])
    # Neither may be rare, or the changes are too gross or too gentle to test anything.
    total = sum(outcomes.values())
    assert total * 0.1 < outcomes["used"] < total * 0.9, outcomes


def attempt(action: Callable[[Path], None], bundle: Path) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the libraries' own, about odd tokenizers
            action(bundle)
    except EdgekitError as error:
        if error.code == "internal_error" or not error.message.isprintable():
            raise AssertionError(error.message) from error
        return "refused"
    return "used"
