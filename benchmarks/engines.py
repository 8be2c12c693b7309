"""One engine behind a pipe, for `generation.py`: reads `{"prompt": [ids], "decode": n}`, answers with seconds.

Each engine decodes greedily the way its own users do; tokens are not turned into text. It knows no table.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

Timing = dict[str, float]
CONTEXT = 2048
Timer = Callable[[list[int], int], Timing]


def edgekit(model: Path, threads: int) -> tuple[str, Timer]:
    """Edgekit's runner and greedy choice, on the bundle."""
    import edgekit as package
    from edgekit.runners.base import Chunk
    from edgekit.runners.onnxruntime import OnnxRuntimeRunner

    runner = OnnxRuntimeRunner(model, context_length=CONTEXT, threads=threads)
    step = runner.limits.max_chunk

    def timer(prompt: list[int], decode: int) -> Timing:
        runner.truncate(0, 0)
        start = time.perf_counter()
        for first in range(0, len(prompt), step):
            last = first + step >= len(prompt)
            logits = runner.run([Chunk(0, prompt[first : first + step], "last" if last else "none")])
        token = int(logits[0][-1].argmax())
        middle = time.perf_counter()
        for _ in range(decode):
            token = int(runner.run([Chunk(0, [token])])[0][-1].argmax())
        return {"prompt_s": middle - start, "decode_s": time.perf_counter() - middle}

    return package.__version__, timer


def llama_cpp(model: Path, threads: int) -> tuple[str, Timer]:
    """llama-cpp-python on the GGUF, with its defaults but for threads and context."""
    import llama_cpp as package
    import numpy as np

    llama = package.Llama(
        str(model), n_ctx=CONTEXT, n_batch=512, n_threads=threads, n_threads_batch=threads, verbose=False
    )
    vocab = llama.n_vocab()

    def greedy() -> int:
        # Straight from llama.cpp's own buffer: the Python sampler would cost it several percent.
        logits = package.llama_get_logits(llama.ctx)
        return int(np.ctypeslib.as_array(logits, shape=(vocab,)).argmax())

    def timer(prompt: list[int], decode: int) -> Timing:
        llama.reset()
        start = time.perf_counter()
        llama.eval(prompt)
        token = greedy()
        middle = time.perf_counter()
        for _ in range(decode):
            llama.eval([token])
            token = greedy()
        return {"prompt_s": middle - start, "decode_s": time.perf_counter() - middle}

    return package.__version__, timer


def genai(model: Path, threads: int) -> tuple[str, Timer]:
    """onnxruntime-genai on the model its own builder made (genai_model.py)."""
    import onnxruntime_genai as package

    config = package.Config(str(model))
    # No answer may end early, every engine decodes the same number: the end becomes a token that never comes.
    never = json.loads((model / "genai_config.json").read_text())["model"]["vocab_size"] - 1
    session = {"intra_op_num_threads": threads, "provider_options": []}
    config.overlay(json.dumps({"model": {"eos_token_id": never, "decoder": {"session_options": session}}}))
    loaded = package.Model(config)

    def timer(prompt: list[int], decode: int) -> Timing:
        parameters = package.GeneratorParams(loaded)
        parameters.set_search_options(max_length=CONTEXT, do_sample=False, past_present_share_buffer=True)
        generator = package.Generator(loaded, parameters)
        start = time.perf_counter()
        generator.append_tokens(prompt)
        generator.generate_next_token()
        middle = time.perf_counter()
        for _ in range(decode):
            generator.generate_next_token()
        return {"prompt_s": middle - start, "decode_s": time.perf_counter() - middle}

    return package.__version__, timer


ENGINES = {"edgekit": edgekit, "llama.cpp": llama_cpp, "onnxruntime-genai": genai}


def main() -> None:
    """Load one engine and serve timings until standard input ends."""
    name, model, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the engines print must not mix with the answers
    try:
        version, timer = ENGINES[name](model, threads)
    except ImportError:
        sys.exit(1)
    with contextlib.suppress(BrokenPipeError):
        print(json.dumps({"version": version}), file=answers, flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            print(json.dumps(timer(order["prompt"], order["decode"])), file=answers, flush=True)


if __name__ == "__main__":
    main()
