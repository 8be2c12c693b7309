from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import RunnerError
from edgekit.memory import GIB
from edgekit.runners.tensorrt import build_memory
from edgekit.runners.tensorrt.build import open_chain
from edgekit.runners.tensorrt.build_memory import BuildCost, choose_segments, needed_bytes
from edgekit.runners.tensorrt.segments import Chain
from edgekit.runners.tensorrt.shapes import BuildLimits
from tests.runners.tensorrt.graphs import write_graph


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    monkeypatch.setitem(build_memory.COSTS, "tensorrt_rtx", BuildCost(0, 0, 1.0, 1.0, 0.0, 0.0, "the test"))
    return open_chain(write_graph(tmp_path, layers=6), BuildLimits())[0]


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_as_few_segments_are_chosen_as_fit_into_memory(chain: Chain, count: int) -> None:
    free = max(part.graph_bytes for part in chain.cut(count))
    chosen = choose_segments(chain, "tensorrt_rtx", free)
    assert chosen <= count
    assert max(part.graph_bytes for part in chain.cut(chosen)) <= free
    assert all(max(part.graph_bytes for part in chain.cut(fewer)) > free for fewer in range(1, chosen))


def test_a_model_whose_single_layers_do_not_fit_is_refused_with_figures(chain: Chain) -> None:
    with pytest.raises(RunnerError, match=r"takes 0\.0 GiB of memory even if cut into single layers; 0\.0 GiB"):
        choose_segments(chain, "tensorrt_rtx", 1000)


def test_unknown_memory_leaves_the_engine_whole(chain: Chain) -> None:
    assert choose_segments(chain, "tensorrt_rtx", None) == 1


def test_tensorrt_needs_more_than_the_library_for_rtx_and_a_head_more_than_its_share(tmp_path: Path) -> None:
    (whole,) = open_chain(write_graph(tmp_path), BuildLimits())[0].cut(1)
    assert GIB / 4 < needed_bytes(whole, "tensorrt_rtx") < needed_bytes(whole, "tensorrt")
    assert whole.largest_bytes > 0
