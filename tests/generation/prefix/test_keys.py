from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from edgekit.bundle.bundle import open_bundle
from edgekit.generation.prefix.keys import block_keys, model_fingerprint, root_key
from edgekit.runners.base import Runner
from edgekit.runners.cpu.build import find_compiler, refresh
from edgekit.runners.cpu.library import Kernels, load
from edgekit.runners.cpu.onnx_reader.match_model import describe
from edgekit.runners.cpu.runner import CpuRunner
from edgekit.runners.onnxruntime import OnnxRuntimeRunner
from tests.generation.bundles import tiny_bundle
from tests.generation.prefix.rows import RowRunner

TOKENS = st.lists(st.integers(0, 3) | st.integers(0, 2**32 - 1), max_size=12)


@given(TOKENS, TOKENS)
def test_two_prompts_share_exactly_the_keys_of_their_common_prefix(one: list[int], two: list[int]) -> None:
    first, second = (block_keys(b"root", tokens, 2) for tokens in (one, two))
    assert (len(first), len(second)) == (len(one) // 2, len(two) // 2)
    for number, (left, right) in enumerate(zip(first, second, strict=False)):
        assert (left == right) == (one[: 2 * number + 2] == two[: 2 * number + 2])
    for (i, left), (j, right) in product(enumerate(first), enumerate(second)):
        assert left != right or i == j


def test_tenants_models_and_block_sizes_share_no_key() -> None:
    roots = [root_key(*parts) for parts in product(("a", 'a", 2, "', ""), (2, 4), ("", "a", '", 2, "a'))]
    assert len(set(roots)) == len(roots)


def test_a_fingerprint_is_the_same_for_the_same_bundle_and_runner_only(tmp_path: Path) -> None:
    manifest = open_bundle(tiny_bundle(tmp_path, "onnx")).manifest
    runner = RowRunner()
    assert model_fingerprint(manifest, runner) == model_fingerprint(manifest, RowRunner())

    class OtherRunner(RowRunner):
        pass

    assert model_fingerprint(manifest, OtherRunner()) != model_fingerprint(manifest, runner)
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor: 0\nFeatures\t: fp asimd\nprocessor: 1\nFeatures\t: fp asimd\n")
    assert "fp asimd" in model_fingerprint(manifest, runner, tmp_path)
    assert "onnxruntime" in model_fingerprint(manifest, runner)


def test_kernels_of_another_instruction_set_library_or_runner_share_no_cache(tmp_path: Path) -> None:
    refresh(find_compiler())
    bundle = open_bundle(tiny_bundle(tmp_path, "onnx", bits=4))
    description, kernels = describe(bundle.path), load()
    assert isinstance(kernels, Kernels)
    assert "plain" in kernels.variants
    choices = [replace(kernels, variant=variant) for variant in kernels.variants]
    choices.append(replace(kernels, digest="of another compiler's"))
    runners: list[Runner] = [CpuRunner(description, choice, threads=1) for choice in choices]
    runners.append(OnnxRuntimeRunner(bundle.path, threads=1))
    found = [model_fingerprint(bundle.manifest, runner) for runner in runners]
    assert len(set(found)) == len(runners) >= 3
    again = CpuRunner(description, kernels, context_length=64, sequence_slots=2, threads=2)
    assert model_fingerprint(bundle.manifest, again) == found[0]
    for runner in (again, *runners):
        runner.close()
