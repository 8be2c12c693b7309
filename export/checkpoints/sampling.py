"""Reads a model's sampling defaults from `generation_config.json` or a GGUF file's `general.sampling` keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgekit.errors import RequestError
from edgekit.generation.types import MODEL_SAMPLING, Sampling

__all__ = ["gguf_sampling", "hf_generation_config", "hf_sampling"]

# Source: `llama-arch.cpp` of ggml-org/llama.cpp.
_GGUF = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}

# Settings of transformers that change answers and have no counterpart here, with the values that change nothing.
_LEFT_OUT: dict[str, tuple[Any, ...]] = {
    "bad_words_ids": ([],),
    "begin_suppress_tokens": ([],),
    "dola_layers": (),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "exponential_decay_length_penalty": (),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "frequency_penalty": (0,),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "num_beams": (1,),
    "penalty_alpha": (0,),
    "presence_penalty": (0,),
    "sequence_bias": ({}, []),
    "stop_strings": ([],),
    "suppress_tokens": ([],),
    "top_h": (),
    "watermarking_config": (),
}


def hf_sampling(
    generation: Mapping[str, Any], file: str = "generation_config.json"
) -> tuple[dict[str, float], list[str]]:
    """Return a model's sampling defaults, and a note on each value that is not usable.

    `do_sample: false` is greedy, whatever the temperature; `do_sample: true` without one means 1, as in transformers.

    Args:
        generation: The contents of `generation_config.json`; without one transformers takes the same keys of
            `config.json`.
        file: The file's name, for the notes.
    """
    stated = {name: generation[name] for name in MODEL_SAMPLING if generation.get(name) is not None}
    if generation.get("do_sample") is False:
        stated["temperature"] = 0.0
    elif generation.get("do_sample") is True:
        stated.setdefault("temperature", 1.0)
    found, notes = _usable(stated, file)
    left_out = [name for name, off in _LEFT_OUT.items() if generation.get(name) not in (None, *off)]
    return found, [*notes, *(f"{file} sets `{name}`, which edgekit does not apply" for name in left_out)]


def gguf_sampling(metadata: Mapping[str, Any], file: str) -> tuple[dict[str, float], list[str]]:
    """Return the sampling defaults of a GGUF file, and a note on each value that is not usable."""
    stated = {
        name: metadata[f"general.sampling.{key}"]
        for key, name in _GGUF.items()
        if f"general.sampling.{key}" in metadata
    }
    # Stored as float32: the shortest decimal that rounds to it is the number its author wrote.
    return _usable({k: float(f"{v:.7g}") if isinstance(v, float) else v for k, v in stated.items()}, file)


def hf_generation_config(sampling: Mapping[str, float]) -> dict[str, Any]:
    """Return sampling defaults under the keys of `generation_config.json`."""
    if "temperature" not in sampling:
        return dict(sampling)
    if sampling["temperature"] == 0:
        return {"do_sample": False} | {name: value for name, value in sampling.items() if name != "temperature"}
    return {"do_sample": True, **sampling}


def _usable(stated: Mapping[str, Any], file: str) -> tuple[dict[str, float], list[str]]:
    found: dict[str, float] = {}
    notes: list[str] = []
    for name in sorted(stated):
        # Off is -1 in some libraries, 0 in transformers and here.
        value: Any = stated[name]
        if name == "top_k" and isinstance(value, float) and value.is_integer():
            value = int(value)
        value = 0 if name == "top_k" and value == -1 else value
        try:
            replace(Sampling(), **{name: value})
        except RequestError as error:
            notes.append(f"{file} has an unusable default: {error.message}")
        else:
            found[name] = value
    return found, notes
