"""What each recipe costs in quality, at equal size, beside mlx-lm's and llama.cpp's own quantizers.

    python benchmarks/quality.py [stories15m smollm2-135m-instruct qwen2.5-coder-1.5b-instruct] [--windows N]

Every candidate is made from the same float16 folder and measured in the same run on the same text, which none was
calibrated on: both models stream through one float32 forward pass, so the figures are the error of the stored weights.
mlx-lm needs nothing beyond `edgekit[mlx]`; llama.cpp is measured where LLAMA_PYTHON names a Python with
llama-cpp-python, and left out where not. Prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from float_gguf import write_float_gguf
from stories15m import stories15m
from texts import stories, wikipedia

from edgekit.bundle.quality import Figures
from edgekit.export.architectures import describe
from edgekit.export.architectures.decoder import Decoder
from edgekit.export.artifacts.mlx import MlxTensors
from edgekit.export.checkpoints.gguf import GgufCheckpoint
from edgekit.export.evaluate import compare
from edgekit.export.forward import CheckpointTensors, Tensors
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.export.progress import silent
from edgekit.export.windows import Text, cut_windows
from edgekit.target import load_target

MODELS = ("stories15m", "smollm2-135m-instruct", "qwen2.5-coder-1.5b-instruct")
LENGTH = 256
# stories15M's 288 inputs do not divide by 64.
GROUPS = {"stories15m": 32}
# Windows of 512 tokens to calibrate on: every layer is run some seven times over all of them.
CALIBRATION = {"stories15m": 64, "qwen2.5-coder-1.5b-instruct": 8}


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
    parser.add_argument("--windows", type=int, default=16, help=f"windows of {LENGTH} tokens to measure on")
    parser.add_argument("--scratch", type=Path, help="folder for what is made [a temporary one]")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        for model in arguments.models:
            measure(model, arguments.windows, (arguments.scratch or Path(temporary)) / model)


def measure(model: str, windows: int, folder: Path) -> None:
    """Make every candidate of one model, measure it, and print the table."""
    folder.mkdir(parents=True, exist_ok=True)
    source, target = str(stories15m()) if model == "stories15m" else model, load_target("m2")
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
    for name, make in candidates(floats, folder, calibration, weights, model):
        start = time.monotonic()
        made = make()
        seconds = time.monotonic() - start
        if made is None:
            continue
        tensors, size = made
        figures, perplexity = against(decoder, MlxTensors(floats), tensors, ids)
        rows.append(Measured(name, size * 8 / weights, figures, seconds))
        print(f"  {model}: {name}: KL {figures.kl_mean:.4f}", file=sys.stderr)
    base = next(row.figures.kl_mean for row in rows if row.name.startswith("mlx-lm"))
    print(f"\n**{model}**: {ids.size:,} tokens, perplexity {perplexity:.3f} in float16\n")
    print("| recipe | bits per weight | perplexity | mean KL | 99th % KL | same top token | KL / mlx-lm's | made in |")
    print("|---|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: row.figures.kl_mean):
        one = row.figures
        print(
            f"| {row.name} | {row.bits:.2f} | {one.perplexity:.3f} | {one.kl_mean:.4f} | {one.kl_p99:.3f} "
            f"| {one.top1:.1%} | {one.kl_mean / base:.2f} | {row.seconds:.0f} s |"
        )
    sys.stdout.flush()


def texts(model: str, folder: Path) -> tuple[Path, str]:
    """The file to calibrate on, and the text to measure on: a story teller's own stories, Wikipedia for the others."""
    told = folder / "calibration.txt"
    if model == "stories15m":
        told.write_text(stories(stories15m(), "calibration"), encoding="utf-8")
        return told, stories(stories15m(), "evaluation")
    told.write_text(wikipedia("calibration"), encoding="utf-8")
    return told, wikipedia("evaluation")


Made = tuple[Tensors, int] | None


def candidates(
    floats: Path, folder: Path, calibration: Path, weights: int, model: str
) -> list[tuple[str, Callable[[], Made]]]:
    """Every candidate's name, and what makes it: its weights, and the bytes they take."""
    group = GROUPS.get(model, 64)
    # Codes, and two half-precision numbers per group: what `mlx_lm.convert -q` makes.
    bits = 4 + 32 / group
    text = {"calibrate_on": calibration, "calibration_windows": CALIBRATION.get(model, 32)}

    def ours(label: str, **options: object) -> tuple[str, Callable[[], Made]]:
        def make() -> Made:
            out = folder / label.replace(" ", "-").replace(",", "")
            if not out.exists():
                export_bundle(str(floats), load_target("m2"), out, ExportOptions(**options), silent)  # type: ignore[arg-type]
            return MlxTensors(out), sum(path.stat().st_size for path in out.glob("*.safetensors"))

        return f"edgekit {label}", make

    # Mixed bits at equal size need a coarser grid to save on, which not every width has; else half a bit more is given.
    widths = json.loads((floats / "config.json").read_text(encoding="utf-8"))
    coarser = widths["hidden_size"] % (2 * group) == 0
    mixed = {"group_size": 2 * group if coarser else group, "fit_bytes": int(weights * (bits + (not coarser) / 2) / 8)}
    return [
        ours("rtn", recipe="rtn", group_size=group),
        ours("lsq", recipe="lsq", group_size=group),
        ours("awq", recipe="awq", group_size=group, calibrate_on=calibration),
        ours("gptq", recipe="gptq", group_size=group, **text),
        ours("mixed", recipe="gptq", **mixed, **text),
        ("mlx-lm convert -q", lambda: mlx_lm(floats, folder / "mlx-lm", group)),
        *((f"llama.cpp {kind}", lambda kind=kind: llama_cpp(floats, folder, kind)) for kind in ("Q4_0", "Q4_K_S")),
    ]


def against(decoder: Decoder, reference: Tensors, other: Tensors, ids: np.ndarray) -> tuple[Figures, float]:
    """The figures of one set of weights, and the reference's perplexity."""
    divergence = compare(decoder, reference, other, ids, silent).divergence
    return divergence.figures(), divergence.perplexity()


def mlx_lm(floats: Path, out: Path, group: int) -> Made:
    """mlx-lm's own conversion with its default of 4 bits; its default group is 64."""
    if not out.exists():
        command = [sys.executable, "-m", "mlx_lm", "convert", "--hf-path", str(floats), "-q", "--mlx-path", str(out)]
        command += ["--q-group-size", str(group)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return MlxTensors(out), sum(path.stat().st_size for path in out.glob("*.safetensors"))


def llama_cpp(floats: Path, folder: Path, kind: str) -> Made:
    """llama.cpp's quantizer with its defaults and no importance matrix."""
    python = os.environ.get("LLAMA_PYTHON")
    if not python:
        return None
    whole, out = folder / "float.gguf", folder / f"{kind}.gguf"
    if not whole.exists():
        write_float_gguf(floats, whole)
    program = (
        "import sys, llama_cpp as c\n"
        "p = c.llama_model_quantize_default_params()\n"
        f"p.ftype = c.LLAMA_FTYPE_MOSTLY_{kind}\n"
        "sys.exit(c.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), p))"
    )
    subprocess.run([python, "-c", program, whole, out], check=True, capture_output=True)
    return CheckpointTensors(GgufCheckpoint(out)), out.stat().st_size


if __name__ == "__main__":
    main()
