"""onnxruntime-genai opens our bundles unchanged and generates the same tokens as our runner."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from edgekit.bundle.bundle import open_bundle, verify_bundle
from edgekit.export.pipeline import ExportOptions, export_bundle
from edgekit.generation.model import load_model
from edgekit.generation.types import ChatRequest, Message
from edgekit.runners.base import Chunk
from edgekit.runners.onnxruntime import OnnxRuntimeRunner
from edgekit.target import load_target
from tests.conftest import Export
from tests.variants import VARIANTS, variant

genai = pytest.importorskip("onnxruntime_genai", reason="has no wheel for this platform")

PROMPT = [int(token) for token in np.random.default_rng(11).integers(3, 512, 40)]
# Without the system prompt the first word of a 135M model is a near tie, and an answer in French is as likely.
SYSTEM, QUESTION = "Answer in one sentence.", "What is the capital of France?"


def bundle(folder: Path, name: str, **options: Any) -> Path:
    source = variant(name, folder / "hf", **options)
    done = export_bundle(str(source), load_target("cpu"), folder / "bundle", ExportOptions(), lambda *_: None)
    return done.path


def ours(folder: Path, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens of our runner, up to an end-of-sequence token of the bundle."""
    runner, ends = OnnxRuntimeRunner(folder, threads=1), open_bundle(folder).manifest.eos_token_ids
    tokens = [int(runner.run([Chunk(0, prompt)])[0][-1].argmax())]
    while len(tokens) < count and tokens[-1] not in ends:
        tokens.append(int(runner.run([Chunk(0, tokens[-1:])])[0][-1].argmax()))
    return tokens


def theirs(folder: Path, prompts: list[list[int]], count: int, **options: Any) -> list[list[int]]:
    """Greedy tokens of onnxruntime-genai, with only their number set."""
    model, longest = genai.Model(str(folder)), max(map(len, prompts))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=longest + count, batch_size=len(prompts), **options)
    generator = genai.Generator(model, parameters)
    pad = json.loads((folder / "genai_config.json").read_text())["model"]["pad_token_id"]
    padded = np.array([prompt + [pad] * (longest - len(prompt)) for prompt in prompts], np.int32)
    generator.append_tokens(padded if len(prompts) > 1 else padded[0])
    answers: list[list[int]] = [[] for _ in prompts]
    while not generator.is_done():
        generator.generate_next_token()
        for answer, token in zip(answers, generator.get_next_tokens(), strict=True):
            answer.append(int(token))
    return answers


@pytest.mark.parametrize("name", VARIANTS)
def test_genai_answers_as_our_runner_does(tmp_path: Path, name: str) -> None:
    folder = bundle(tmp_path, name)
    assert theirs(folder, [PROMPT], 40) == [ours(folder, PROMPT, 40)]


def test_a_prompt_gives_the_same_answer_in_chunks_and_in_one_run(tmp_path: Path) -> None:
    folder = bundle(tmp_path, "gemma3_text")
    assert theirs(folder, [PROMPT], 20, chunk_size=16) == theirs(folder, [PROMPT], 20, chunk_size=0)


def test_prompts_of_different_lengths_give_the_same_answers_in_a_batch_as_alone(tmp_path: Path) -> None:
    folder = bundle(tmp_path, "qwen2")
    prompts = [PROMPT, PROMPT[5:22]]
    together = theirs(folder, prompts, 20)
    for prompt, answer in zip(prompts, together, strict=True):
        alone = ours(folder, prompt, 20)
        assert answer[: len(alone)] == alone


def test_genais_tokenizer_encodes_and_decodes_as_ours_does(tmp_path: Path) -> None:
    folder = bundle(tmp_path, "llama")
    tokenizer, mine = genai.Tokenizer(genai.Model(str(folder))), Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in (QUESTION, "  naïve ☃ 日本語\n\n\tdef f(x): return x", "<|im_start|>user\nhi<|im_end|>\n"):
        ids = mine.encode(text, add_special_tokens=False).ids
        assert [int(token) for token in tokenizer.encode(text)] == ids
        assert tokenizer.decode(np.array(ids, np.int32)) == mine.decode(ids)


def test_the_bundle_lists_the_files_and_they_name_each_other(tmp_path: Path) -> None:
    folder = bundle(tmp_path, "qwen3")
    opened = open_bundle(folder)
    assert verify_bundle(opened) == []
    config = json.loads((folder / "genai_config.json").read_text())
    assert (folder / config["model"]["decoder"]["filename"]).is_file()
    assert {"genai_config.json", "model_genai.onnx"} <= {entry.path for entry in opened.manifest.files}
    assert config["model"]["eos_token_id"] == list(opened.manifest.eos_token_ids)
    assert (config["model"]["bos_token_id"], config["model"]["pad_token_id"]) == (1, 0)


def test_other_targets_have_no_such_files(tmp_path: Path) -> None:
    source = variant("qwen2", tmp_path / "hf")
    for target in ("orin", "m1"):
        folder = tmp_path / target
        export_bundle(str(source), load_target(target), folder, ExportOptions(), lambda *_: None)
        assert not [path.name for path in folder.iterdir() if "genai" in path.name]


def test_genai_and_our_runner_give_the_real_model_the_same_prompt_and_the_same_answer(export: Export) -> None:
    folder = export("cpu")
    tokenizer = genai.Tokenizer(genai.Model(str(folder)))
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    prompt = tokenizer.apply_chat_template(messages=json.dumps(messages), add_generation_prompt=True)
    ids = [int(token) for token in tokenizer.encode(prompt)]
    model = load_model(folder, context_length=256, threads=1)
    assert ids == model.prompt(ChatRequest("one", (Message("system", SYSTEM), Message("user", QUESTION)))).tokens
    model.close()
    answer = theirs(folder, [ids], 40)[0]
    assert answer == ours(folder, ids, 40)
    assert "Paris" in tokenizer.decode(np.array(answer[:-1], np.int32))
