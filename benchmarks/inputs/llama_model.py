"""Quantizes GGUF files with llama.cpp's own quantizer, in the interpreter in which llama-cpp-python is installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["q4_0_model", "quantize"]

_PROGRAM = """\
import sys, llama_cpp as c
source, out, kind = sys.argv[1:]
parameters = c.llama_model_quantize_default_params()
parameters.ftype = getattr(c, f"LLAMA_FTYPE_MOSTLY_{kind}")
parameters.allow_requantize = True
sys.exit(c.llama_model_quantize(source.encode(), out.encode(), parameters))
"""


def quantize(python: str, source: Path, out: Path, kind: str) -> Path:
    """Quantize a GGUF file, with llama.cpp's defaults and without an importance matrix, unless `out` exists.

    Args:
        python: The interpreter with llama-cpp-python.
        source: The file to quantize; 4-bit files are dequantized first.
        out: The result.
        kind: llama.cpp's name of the file type: `Q4_0`, `Q4_K_S`, …
    """
    if not out.exists():
        partial = out.with_name(f"{out.name}.partial")
        done = subprocess.run(
            [python, "-c", _PROGRAM, source, partial, kind], capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"error: llama.cpp could not quantize {source} to {kind}:\n{done.stderr[-2000:]}")
        partial.rename(out)
    return out


def q4_0_model(source: Path, work: Path, python: str) -> Path:
    """Return the model as Q4_0, which llama.cpp repacks when it loads it and computes prompts with much faster."""
    out = work / f"{source.stem}-Q4_0.gguf"
    if not out.exists():
        print(f"quantizing {source.name} to Q4_0 with llama.cpp …", file=sys.stderr)
    return quantize(python, source, out, "Q4_0")
