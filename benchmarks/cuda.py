"""A bundle for Orin or `rtx` on onnxruntime's CUDA provider: logits against the CPU, prompt and decode speed.

    scripts/bench cuda [BUNDLE] [--device cpu] [--prompt 512] [--decode 128] [--check 96] [--rounds 3]

Prints one block to paste into an issue: what the provider is, whether it computes here, how far its logits are from
those of onnxruntime's CPU provider on the same graph, and tokens/s. `--device cpu` runs the same code without a GPU.
BUNDLE is of the `portable` or `native` dialect; default: SmolLM2-135M, exported for `rtx`. Without CUDA the exit status
is 1.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt
from inputs.bundles import exported, tiny_tensorrt_bundle
from quick import parse

from edgekit.bundle.bundle import open_bundle
from edgekit.runners.base import Chunk, Runner
from edgekit.runners.checking import CheckingRunner
from edgekit.runners.cuda_provider import cuda_provider
from edgekit.runners.native import NativeRunner
from edgekit.runners.on_device import NativeOnDevice, OnDeviceRunner, PortableOnDevice
from edgekit.runners.portable import PortableRunner
from edgekit.runners.session import CPU, CUDA, operators

_ON_DEVICE: dict[str, type[OnDeviceRunner]] = {"portable": PortableOnDevice, "native": NativeOnDevice}
_ON_CPU: dict[str, type[CheckingRunner]] = {"portable": PortableRunner, "native": NativeRunner}


def main() -> None:
    """Check and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the measured prompt")
    parser.add_argument("--decode", type=int, default=128, help="tokens decoded after it")
    parser.add_argument("--check", type=int, default=96, help="tokens whose logits are compared")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("work"), help="folder for the exported bundle")
    options = parse(parser, {"device": "cpu", "prompt": 64, "decode": 8, "check": 16, "rounds": 1})
    with tempfile.TemporaryDirectory() as name:
        if options.bundle is None:
            options.bundle = tiny_tensorrt_bundle(Path(name)) if options.quick else exported(options.work, target="rtx")
        _run(options)


def _run(options: argparse.Namespace) -> None:
    manifest = open_bundle(options.bundle).manifest
    dialect = manifest.artifact.dialect
    if dialect not in _ON_DEVICE:
        sys.exit(f"error: {options.bundle} is not of the portable or native dialect\n\nhint: export it for rtx or orin")
    found = cuda_provider()
    print(f"{manifest.name}, {dialect}, {manifest.recipe.get('summary', '')}; {time.strftime('%Y-%m-%d')}")
    print(f"machine: {platform.machine()}, {_gpu()}")
    print(f"onnxruntime: {', '.join(' '.join(one) for one in found.distributions)}; CUDA: {found.reason or 'computes'}")
    if options.device == "cuda" and found.reason is not None:
        sys.exit(f"error: onnxruntime's CUDA provider cannot be used: {found.reason}\n\nhint: {found.hint}")
    length = max(options.check, options.prompt + options.decode)
    device = CUDA if options.device == "cuda" else CPU
    began = time.perf_counter()
    with closing(_ON_DEVICE[dialect](options.bundle, context_length=length, device=device)) as runner:
        print(f"loaded on {device.name} in {time.perf_counter() - began:.1f} s, with a first step")
        for provider, types in (operators(runner._session) or {}).items():  # noqa: SLF001
            print(f"  {provider}: {', '.join(f'{count} {name}' for name, count in types.most_common())}")
        tokens = np.random.default_rng(1).integers(3, runner.limits.vocab_size, length).tolist()
        _compare(options, dialect, runner, tokens)
        _measure(options, runner, tokens)


def _compare(options: argparse.Namespace, dialect: str, runner: Runner, tokens: list[int]) -> None:
    """Compare logits in chunks and token by token, which are other kernels, with those of one step on the CPU."""
    count = options.check
    expected = _ON_CPU[dialect].logits(options.bundle, tokens[:count])
    for what, chunk in (("in one chunk", min(count, runner.limits.max_chunk)), ("token by token", 1)):
        chunks = [Chunk(0, tokens[start : min(start + chunk, count)], "all") for start in range(0, count, chunk)]
        logits = np.concatenate([runner.run([one])[0].copy() for one in chunks])
        runner.truncate(0, 0)
        same = (logits.argmax(-1) == expected.argmax(-1)).mean()
        print(
            f"logits {what}: at most {np.abs(logits - expected).max():.3f} from the CPU's, which are up to "
            f"{np.abs(expected).max():.1f}; the likeliest token agrees in {same:.1%}; KL {_kl(expected, logits):.2e}"
        )


def _kl(reference: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    """Mean KL divergence, in nats."""
    p, q = (x - x.max(-1, keepdims=True) for x in (reference.astype(np.float64), other.astype(np.float64)))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def _measure(options: argparse.Namespace, runner: Runner, tokens: list[int]) -> None:
    """Measure prompt and decode speed: medians of the rounds, after one that is not counted."""
    prompts, decodes = [], []
    for _ in range(options.rounds + 1):
        began = time.perf_counter()
        for start in range(0, options.prompt, runner.limits.max_chunk):
            runner.run([Chunk(0, tokens[start : min(start + runner.limits.max_chunk, options.prompt)])])
        prompted = time.perf_counter()
        for token in tokens[options.prompt : options.prompt + options.decode]:
            runner.run([Chunk(0, [token])])
        decoded = time.perf_counter()
        runner.truncate(0, 0)
        prompts.append(options.prompt / (prompted - began))
        decodes.append(options.decode / (decoded - prompted))
    prompt, decode = (statistics.median(rates[1:]) for rates in (prompts, decodes))
    print(f"prompt of {options.prompt} tokens: {prompt:.0f} tokens/s; then {options.decode}: {decode:.1f} tokens/s")


def _gpu() -> str:
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip().replace("\n", "; ")
    except (OSError, subprocess.CalledProcessError):
        model = Path("/proc/device-tree/model")
        return model.read_text().strip("\0") if model.exists() else "no NVIDIA GPU"


if __name__ == "__main__":
    main()
