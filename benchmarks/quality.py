"""Quality loss of each recipe at equal size, compared with mlx-lm's and llama.cpp's own quantizers.

    scripts/bench quality [stories15m smollm2-135m-instruct qwen2.5-coder-1.5b-instruct] [--windows N]

Every candidate is created from the same float16 folder and measured in the same run on the same text, which none was
calibrated on. Both models stream through one float32 forward pass, so the figures are the error of the stored weights.
mlx-lm and llama.cpp are optional (`peers.py`). Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from inputs.float_gguf import write_float_gguf
from inputs.llama_model import quantize
from inputs.make_checkpoint import make_checkpoint
from inputs.stories15m import stories15m
from inputs.texts import stories, wikipedia
from peers import LLAMA, MLX, add_peers, interpreter
from quick import parse

from edgekit.bundle.quality import Figures
from edgekit.export.architectures import describe
from edgekit.export.architectures.decoder import Decoder
from edgekit.export.checkpoints.gguf.checkpoint import GgufCheckpoint
from edgekit.export.evaluation.evaluate import compare
from edgekit.export.evaluation.readers.mlx import MlxTensors
from edgekit.export.forward import CheckpointTensors, Tensors
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.export.progress import silent
from edgekit.export.recipes.token_windows import Text, cut_windows
from edgekit.target import load_target

MODELS = ("stories15m", "smollm2-135m-instruct", "qwen2.5-coder-1.5b-instruct")
# Random weights, for `--quick`.
TINY = "tiny"
ROOT = Path(__file__).parent.parent
LENGTH = 256
# stories15M's 288 inputs are not a multiple of 64.
GROUPS = {"stories15m": 32}
# Calibration windows of 512 tokens: every layer runs about seven times over all of them.
CALIBRATION = {"stories15m": 64, "qwen2.5-coder-1.5b-instruct": 8, TINY: 2}


@dataclass(frozen=True)
class Measured:
    """One candidate's row."""

    name: str
    bits: float
    figures: Figures
    seconds: float


def main() -> None:
    """Measure the models named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--windows", type=int, default=16, help=f"evaluation windows of {LENGTH} tokens")
    parser.add_argument("--scratch", type=Path, help="folder for the results [a temporary one]")
    add_peers(parser, MLX, LLAMA)
    arguments = parse(parser, {"models": [TINY], "windows": 2})
    pythons = {peer.name: interpreter(peer, arguments) for peer in (MLX, LLAMA)}
    with tempfile.TemporaryDirectory() as temporary:
        for model in arguments.models:
            measure(model, arguments.windows, (arguments.scratch or Path(temporary)) / model, pythons)


def measure(model: str, windows: int, folder: Path, pythons: Mapping[str, str | None]) -> None:
    """Create every candidate of one model, measure it, and print the table.

    Args:
        model: A name of the catalogue, `stories15m` or `tiny`.
        windows: Number of evaluation windows.
        folder: Folder for the results.
        pythons: The peers' interpreters, by name; without one a peer is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source, target = checkpoint(model, folder), load_target("m2")
    floats = folder / "float"
    if not floats.exists():
        export_bundle(source, target, floats, ExportOptions(recipe="none"), silent)
    decoder = describe(json.loads((floats / "config.json").read_text(encoding="utf-8")))
    calibration, evaluation = texts(model, folder)
    ids = cut_windows(
        (floats / "tokenizer.json").read_bytes(), Text("evaluation", "", evaluation), length=LENGTH, count=windows
    ).ids
    weights = sum(prod(shape) for shape in decoder.tensor_shapes().values())
    rows: list[Measured] = []
    perplexity = 0.0
    for name, make in candidates(floats, folder, calibration, weights=weights, model=model, pythons=pythons):
        start = time.monotonic()
        tensors, size = make()
        seconds = time.monotonic() - start
        figures, perplexity = against(decoder, MlxTensors(floats), tensors, ids)
        rows.append(Measured(name, size * 8 / weights, figures, seconds))
        print(f"  {model}: {name}: KL {figures.kl_mean:.4f}", file=sys.stderr)
    base = next((row.figures.kl_mean for row in rows if row.name.startswith("mlx-lm")), None)
    print(f"\n**{model}**: {ids.size:,} tokens, perplexity {perplexity:.3f} in float16\n")
    print("| recipe | bits per weight | perplexity | mean KL | 99th % KL | same top token | KL / mlx-lm's | made in |")
    print("|---|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: row.figures.kl_mean):
        figures = row.figures
        ratio = "" if base is None else f"{figures.kl_mean / base:.2f}"
        print(
            f"| {row.name} | {row.bits:.2f} | {figures.perplexity:.3f} | {figures.kl_mean:.4f} | {figures.kl_p99:.3f} "
            f"| {figures.top1:.1%} | {ratio} | {row.seconds:.0f} s |"
        )
    sys.stdout.flush()


def checkpoint(model: str, folder: Path) -> str:
    """Return the path or the catalogue name of the model's checkpoint."""
    if model == TINY:
        return str(make_checkpoint(folder / "checkpoint", TINY))
    return str(stories15m()) if model == "stories15m" else model


def texts(model: str, folder: Path) -> tuple[Path, str]:
    """Return the calibration file and the evaluation text: stories for stories15M, Wikipedia for other models."""
    calibration = folder / "calibration.txt"
    if model == TINY:
        return ROOT / "README.md", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    if model == "stories15m":
        calibration.write_text(stories(stories15m(), "calibration"), encoding="utf-8")
        return calibration, stories(stories15m(), "evaluation")
    calibration.write_text(wikipedia("calibration"), encoding="utf-8")
    return calibration, wikipedia("evaluation")


ExportResult = tuple[Tensors, int]
"""Weights, and their size in bytes."""


def candidates(
    floats: Path, folder: Path, calibration: Path, *, weights: int, model: str, pythons: Mapping[str, str | None]
) -> list[tuple[str, Callable[[], ExportResult]]]:
    """Return every candidate's name and a function that creates its weights and returns them with their size."""
    group = GROUPS.get(model, 64)
    # Codes, and two half-precision numbers per group, as in `mlx_lm.convert -q`.
    bits = 4 + 32 / group
    text = {"calibrate_on": calibration, "calibration_windows": CALIBRATION.get(model, 32)}

    def ours(label: str, **options: object) -> tuple[str, Callable[[], ExportResult]]:
        def make() -> ExportResult:
            out = folder / label.replace(" ", "-").replace(",", "")
            if not out.exists():
                export_bundle(str(floats), load_target("m2"), out, ExportOptions(**options), silent)  # type: ignore[arg-type]
            return MlxTensors(out), sum(path.stat().st_size for path in out.glob("*.safetensors"))

        return f"edgekit {label}", make

    # Mixed bits at equal size need coarser groups to save bytes. Widths that do not allow them get half a bit more.
    widths = json.loads((floats / "config.json").read_text(encoding="utf-8"))
    coarser = widths["hidden_size"] % (2 * group) == 0
    mixed = {"group_size": 2 * group if coarser else group, "fit_bytes": int(weights * (bits + (not coarser) / 2) / 8)}
    found = [
        ours("rtn", recipe="rtn", group_size=group),
        ours("lsq", recipe="lsq", group_size=group),
        ours("awq", recipe="awq", group_size=group, calibrate_on=calibration),
        ours("gptq", recipe="gptq", group_size=group, **text),
        ours("mixed", recipe="gptq", **mixed, **text),
    ]
    if mlx := pythons[MLX.name]:
        found.append(("mlx-lm convert -q", lambda: mlx_lm(mlx, floats, folder / "mlx-lm", group)))
    if llama := pythons[LLAMA.name]:
        found += [
            (f"llama.cpp {kind}", lambda kind=kind: llama_cpp(llama, floats, folder, kind))
            for kind in ("Q4_0", "Q4_K_S")
        ]
    return found


def against(decoder: Decoder, reference: Tensors, other: Tensors, ids: np.ndarray) -> tuple[Figures, float]:
    """Return the figures of one set of weights, and the reference's perplexity."""
    divergence = compare(decoder, reference, other, ids, silent).divergence
    return divergence.figures(), divergence.perplexity()


def mlx_lm(python: str, floats: Path, out: Path, group: int) -> ExportResult:
    """Convert with mlx-lm, with its default of 4 bits; its default group size is 64."""
    if not out.exists():
        command = [python, "-m", "mlx_lm", "convert", "--hf-path", str(floats), "-q", "--mlx-path", str(out)]
        command += ["--q-group-size", str(group)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return MlxTensors(out), sum(path.stat().st_size for path in out.glob("*.safetensors"))


def llama_cpp(python: str, floats: Path, folder: Path, kind: str) -> ExportResult:
    """Quantize with llama.cpp, with its defaults and without an importance matrix."""
    source = folder / "float.gguf"
    if not source.exists():
        write_float_gguf(floats, source)
    out = quantize(python, source, folder / f"{kind}.gguf", kind)
    return CheckpointTensors(GgufCheckpoint(out)), out.stat().st_size


if __name__ == "__main__":
    main()
