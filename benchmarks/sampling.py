"""Time of sampling a token, relative to a decode step of a 7B model.

    scripts/bench sampling [--vocab 151936] [--gb-s 204.8] [--logits FILE.npy]

A decode step reads the weights once: 3.65 GB for a 7B model at 4 bits. Its minimum time on a device is that size over
the memory bandwidth (`--gb-s`; default: 204.8 of an AGX Orin; 0 measures this machine's). Sampling should take less
than 5 % of it. Logits are generated with a distribution like a model's, or read from a file; the last lines are the
worst case, flat logits.

numpy's float32 exponential is vectorized on x86 only. `NPY_DISABLE_CPU_FEATURES="AVX512F AVX2 FMA3 …"` in the
environment shows the cost without vectorization (`--scalar` sets it).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
from quick import parse

from edgekit.generation.sampling.sampler import Sampler
from edgekit.generation.types import Sampling

_STEP_GB = 3.65
_BOUND = 0.05

Logits = npt.NDArray[np.float32]


def chat_logits(vocab: int, rows: int) -> Logits:
    """Return logits `[rows, vocab]` distributed like a language model's while it answers.

    The top logits fall with the logarithm of their rank. As for SmolLM2-135M at temperature 1, 95 % of the probability
    is on 7 tokens in the median row, on 50 at the 75th percentile, on 660 at the 95th. Larger models are more certain.
    """
    random = np.random.default_rng(0)
    logits = random.normal(0, 2.2, (rows, vocab)).astype(np.float32)
    for row, share in zip(logits, (np.arange(rows) + 0.5) / rows, strict=True):
        row[random.choice(vocab, 1000, replace=False)] = (
            17 + 8 * share - (1.2 + 1.6 * share) * np.log(np.arange(1, 1001))
        )
    return logits


def flat_logits(vocab: int, rows: int) -> Logits:
    """Return flat logits, unlike a trained model's: 95 % of the probability is on half of the tokens."""
    return np.random.default_rng(0).normal(0, 1, (rows, vocab)).astype(np.float32)


def masks(vocab: int) -> dict[str, npt.NDArray[np.int32]]:
    """Return grammar masks that allow nearly all tokens (as within a string), a random half, and a few."""
    random = np.random.default_rng(1)
    shares = {"nearly all": 0.95, "half": 0.5, "few": 0.0002}
    packed = {}
    for name, share in shares.items():
        bits = np.zeros((vocab + 31) // 32 * 32, np.uint8)
        bits[:vocab] = random.random(vocab) < share
        packed[name] = np.packbits(bits, bitorder="little").view(np.int32)
    return packed


def bandwidth_gb_s() -> float:
    """Measure the memory bandwidth of all cores together, reading, in GB/s."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    arrays = [np.ones(32 << 20, np.float32) for _ in range(cores)]
    best = 0.0
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(5):
            started = time.perf_counter()
            list(pool.map(np.max, arrays))
            best = max(best, sum(array.nbytes for array in arrays) / (time.perf_counter() - started) / 1e9)
    return best


def cases(vocab: int) -> dict[str, Callable[[Logits], object]]:
    """Return the functions to time, by name."""
    masked = masks(vocab)
    prompt = [int(token) for token in np.random.default_rng(2).integers(0, vocab, 2000)]
    bias = dict.fromkeys(prompt[:300], 1.0)

    def sampler(top: int | None = None, **fields: object) -> Sampler:
        created = Sampler(Sampling(seed=1, **fields), vocab_size=vocab, prompt=prompt, top_logprobs=top)
        for token in prompt[:500]:
            created.accept(token)
        return created

    def plain(top: int | None = None, **fields: object) -> Callable[[Logits], object]:
        return sampler(top, **fields).sample

    def with_mask(name: str, **fields: object) -> Callable[[Logits], object]:
        created = sampler(**fields)
        return lambda logits: created.sample(logits, masked[name])

    return {
        "greedy": plain(temperature=0.0),
        "greedy, penalties": plain(temperature=0.0, frequency_penalty=0.5, repetition_penalty=1.1),
        "greedy, mask half": with_mask("half", temperature=0.0),
        "temperature 0.7": plain(temperature=0.7),
        "temperature 1": plain(temperature=1.0),
        "top_p 0.95": plain(temperature=1.0, top_p=0.95),
        "top_k 40": plain(temperature=0.8, top_k=40),
        "top_k 40, top_p 0.95, min_p 0.05": plain(temperature=0.8, top_k=40, top_p=0.95, min_p=0.05),
        "min_p 0.05": plain(temperature=1.0, min_p=0.05),
        "typical_p 0.95": plain(temperature=1.0, typical_p=0.95),
        "top_p 0.95, penalties": plain(temperature=1.0, top_p=0.95, presence_penalty=0.5, repetition_penalty=1.1),
        "top_p 0.95, 300 biases": plain(temperature=1.0, top_p=0.95, logit_bias=bias),
        "top_p 0.95, mask nearly all": with_mask("nearly all", temperature=1.0, top_p=0.95),
        "top_p 0.95, mask half": with_mask("half", temperature=1.0, top_p=0.95),
        "top_p 0.95, mask few": with_mask("few", temperature=1.0, top_p=0.95),
        "greedy, top_logprobs 20": plain(20, temperature=0.0),
        "top_p 0.95, top_logprobs 20": plain(20, temperature=1.0, top_p=0.95),
        "everything": plain(
            20, temperature=1.0, typical_p=0.95, top_p=0.95, min_p=0.01, presence_penalty=0.5, repetition_penalty=1.1
        ),
    }


def timed(choose: Callable[[Logits], object], logits: Logits, rounds: int) -> float:
    """Return the milliseconds per token, the median over rounds."""
    for row in logits:
        choose(row)
    times = []
    for number in range(rounds):
        row = logits[number % len(logits)]
        started = time.perf_counter()
        choose(row)
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--gb-s", type=float, default=204.8, help="the device's memory bandwidth; 0: this machine's")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--logits", help="a .npy file with a float32 array [rows, vocab]")
    parser.add_argument("--scalar", action="store_true", help="without numpy's x86 vector instructions")
    parser.add_argument("--json", action="store_true")
    arguments = parse(parser, {"vocab": 8192, "rounds": 5})
    if arguments.scalar and "NPY_DISABLE_CPU_FEATURES" not in os.environ:
        features = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
        os.environ["NPY_DISABLE_CPU_FEATURES"] = " ".join(features)
        os.execv(sys.executable, [sys.executable, *sys.argv])  # noqa: S606  restarts this program
    logits = np.load(arguments.logits) if arguments.logits else chat_logits(arguments.vocab, 20)
    here = bandwidth_gb_s()
    device = arguments.gb_s or here
    step_ms = _STEP_GB / device * 1e3
    results = {name: timed(case, logits, arguments.rounds) for name, case in cases(logits.shape[1]).items()}
    flat = flat_logits(logits.shape[1], 5)
    for name in ("temperature 1", "top_p 0.95", "typical_p 0.95", "everything"):
        results[f"flat: {name}"] = timed(cases(logits.shape[1])[name], flat, arguments.rounds)
    if arguments.json:
        print(json.dumps({"ms": results, "step_ms": step_ms, "memory_gb_s": here}))
        return
    print(f"numpy {np.__version__}, {logits.shape[1]} tokens, median of {arguments.rounds}")
    print(f"decode step: {step_ms:.1f} ms ({_STEP_GB} GB at {device:g} GB/s); ", end="")
    print(f"here: {_STEP_GB / here * 1e3:.0f} ms ({here:.1f} GB/s measured, all cores reading)")
    print(f"{'':36}{'ms':>8}{'of a step':>11}{'here':>8}")
    for name, ms in results.items():
        late = "  above 5 %" if ms > _BOUND * step_ms else ""
        print(f"{name:36}{ms:8.3f}{ms / step_ms:11.2%}{ms * here / _STEP_GB / 1e3:8.2%}{late}")


if __name__ == "__main__":
    main()
