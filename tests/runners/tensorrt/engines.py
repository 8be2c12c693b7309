"""Exports tiny bundles, cuts their graphs into segments, and opens them on the doubles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import onnx
from onnx.utils import Extractor

from edgekit.export.writers.onnx.portable import BLOCK
from edgekit.runners.cuda.driver import Device
from edgekit.runners.tensorrt.load import load_engines
from edgekit.runners.tensorrt.runner import TensorRtRunner
from tests.runners.cuda.driver_double import DriverDouble
from tests.runners.cuda.host_kernels import host_kernel
from tests.runners.tensorrt.tensorrt_double import ILogger, TensorRtDouble, write_engine

__all__ = ["Opened", "build", "new_driver", "open_double", "window_of"]

Dialect = Literal["portable", "native"]


class Log(ILogger):
    """Keeps errors until they are taken."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def log(self, severity: int, msg: str) -> None:  # noqa: ARG002 - the double logs errors only
        self.messages.append(msg)

    def take(self) -> list[str]:
        messages, self.messages = self.messages, []
        return messages


@dataclass
class Opened:
    """A runner on the doubles."""

    runner: TensorRtRunner
    driver: DriverDouble
    log: Log


def build(
    graph: Path,
    *,
    context: int = 256,
    chunk: int = 64,
    batch: int = 4,
    segments: Sequence[int] = (),
    exact: bool = False,
) -> list[Path]:
    """Write the "engines" of a graph beside it.

    Args:
        graph: `model.onnx`.
        context: Max tokens of a sequence.
        chunk: Max tokens of a prefill chunk.
        batch: Max sequences that decode in one execution.
        segments: Layers behind which the graph is cut.
        exact: See `write_engine`.
    """
    model = onnx.load(graph)
    native = any(value.name == "write_indices" for value in model.graph.input)
    engines = []
    for index, part in enumerate(_cut(model, segments) if segments else [model]):
        if native:
            for value in (*part.graph.input, *part.graph.output):
                for dim in value.type.tensor_type.shape.dim:
                    if dim.dim_param == "capacity":
                        dim.dim_value = context
        path = graph.parent / f"segment-{index:02}-{batch}-{chunk}-{len(segments)}-{exact:d}.onnx"
        onnx.save(part, path)
        profiles = [_shapes(part, context, *of) for of in ((1, 1), (1, chunk), *([(batch, 1)] if batch > 1 else []))]
        outputs = [value.name for value in part.graph.output if value.name.startswith("present.")]
        aliases = {name: name.replace("present", "past_key_values") for name in outputs} if native else {}
        engines.append(write_engine(path.with_suffix(".engine"), path, profiles, aliases=aliases, exact=exact))
    return engines


def window_of(graph: Path) -> int | None:
    """The sliding window in a graph's metadata."""
    properties = {prop.key: prop.value for prop in onnx.load(graph, load_external_data=False).metadata_props}
    return int(properties["edgekit.window"]) if "edgekit.window" in properties else None


def new_driver(*, integrated: bool = True, memory: int = 1 << 30) -> DriverDouble:
    """A double of the driver with the kernels that the runner launches."""
    return DriverDouble(
        {"scatter_kv_rows": host_kernel("kv_rows", "scatter_kv_rows")}, integrated=integrated, memory=memory
    )


def open_double(engines: Sequence[Path], driver: DriverDouble | None = None, **options: Any) -> Opened:
    """Open engines on doubles, in a runner with these options."""
    driver = driver or new_driver()
    library, log = TensorRtDouble(driver), Log()
    module: Any = library
    device = Device(driver)
    opened = load_engines(module, log, engines, log.take)
    runner = TensorRtRunner(module, opened, device, errors=log.take, **options)
    return Opened(runner, driver, log)


def _cut(model: onnx.ModelProto, behind: Sequence[int]) -> list[onnx.ModelProto]:
    """Cut behind some layers; a part that reads only a cache's shape takes that of its own first layer."""
    outputs = {node.name: node.output[0] for node in model.graph.node}
    layers = 1 + max(int(value.name.split(".")[1]) for value in model.graph.output if value.name.startswith("present."))
    bounds = [outputs[f"/model/layers.{layer}/mlp/residual/Add"] for layer in behind]
    (hidden,) = next(tensor.dims for tensor in model.graph.initializer if tensor.name == "model.norm.weight")
    for name in bounds:
        shape = ["batch", "sequence", hidden]
        model.graph.value_info.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    starts = [0, *(layer + 1 for layer in behind), layers]
    parts = []
    for index, (first, last) in enumerate(pairwise(starts)):
        part = onnx.ModelProto()
        part.CopyFrom(model)
        for node in part.graph.node:
            if node.op_type == "Shape" and node.input[0].startswith("past_key_values."):
                node.input[0] = f"past_key_values.{first}.key"
        own = {f"{layer}.{kind}" for layer in range(first, last) for kind in ("key", "value")}
        entry = [bounds[index - 1]] if index else []
        inputs = [value.name for value in part.graph.input if not value.name.startswith("past_")]
        inputs += [value.name for value in part.graph.input if value.name.partition(".")[2] in own]
        wanted = [bounds[index]] if index < len(bounds) else ["logits"]
        wanted += [value.name for value in part.graph.output if value.name.partition(".")[2] in own]
        extracted = Extractor(part).extract_model([*entry, *inputs], wanted)
        read = {name for node in extracted.graph.node for name in node.input}
        kept = [value for value in extracted.graph.input if value.name in read]
        del extracted.graph.input[:]
        extracted.graph.input.extend(kept)
        extracted.metadata_props.extend(model.metadata_props)
        parts.append(extracted)
    return parts


def _shapes(model: onnx.ModelProto, context: int, batch: int, tokens: int) -> dict[str, list[list[int]]]:
    """Min, opt and max shape of every input, as `edgekit build` chooses them."""
    past = -(-(context - 1) // BLOCK)
    sizes = {
        "batch": (1, batch, batch),
        "sequence": (1, tokens, tokens),
        "rows": (1, 1, tokens),
        "blocks": (0, 1, past),
        "total": (1, BLOCK + tokens, past * BLOCK + tokens),
    }
    return {
        value.name: [
            [
                sizes[dim.dim_param][bound] if dim.dim_param else dim.dim_value
                for dim in value.type.tensor_type.shape.dim
            ]
            for bound in range(3)
        ]
        for value in model.graph.input
    }
