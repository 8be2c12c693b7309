"""Options of llama-server, vLLM and Ollama, and what stands for them in `edgekit serve`."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["foreign_hint"]

_BUNDLE = "the bundle is the argument: edgekit serve BUNDLE"
_NO_LAYERS = "leave it out: the runner takes the whole model, and `edgekit doctor` says which one works here"
_CONTEXT = "use --context-length"
_PARALLEL = "set generation.parallel in the configuration, or EDGEKIT_GENERATION_PARALLEL"
_KEY = "make a key with `edgekit key add NAME`; the daemon then asks for it"
_TLS = "set http.tls_certificate and http.tls_key in the configuration"

_HINTS = {
    "-m": _BUNDLE,
    "--model": _BUNDLE,
    "--model-path": _BUNDLE,
    "-mu": _BUNDLE,
    "-hf": _BUNDLE + ", which `edgekit export` makes of a hub id",
    "--hf-repo": _BUNDLE + ", which `edgekit export` makes of a hub id",
    "-a": "use --alias",
    "--served-model-name": "use --alias",
    "-c": _CONTEXT,
    "--ctx-size": _CONTEXT,
    "--max-model-len": _CONTEXT,
    "--num-ctx": _CONTEXT,
    "-t": "use --threads",
    "-np": _PARALLEL,
    "--parallel": _PARALLEL,
    "--max-num-seqs": _PARALLEL,
    "-ngl": _NO_LAYERS,
    "--gpu-layers": _NO_LAYERS,
    "--n-gpu-layers": _NO_LAYERS,
    "--num-gpu": _NO_LAYERS,
    "--api-key": _KEY,
    "--api-key-file": _KEY,
    "--ssl-key-file": _TLS,
    "--ssl-cert-file": _TLS,
    "--ssl-keyfile": _TLS,
    "--ssl-certfile": _TLS,
    "-md": "use --draft-bundle",
    "--speculative-model": "use --draft-bundle",
    "-v": "use --log-level debug",
    "--verbose": "use --log-level debug",
    "--jinja": "leave it out: the model's chat template is always used",
    "--enable-auto-tool-choice": "leave it out: tools are always on, in the model's own format",
    "--tool-call-parser": "leave it out: tools are always on, in the model's own format",
    "--enable-prefix-caching": "leave it out: the prefix cache is always on",
    "--gpu-memory-utilization": "set generation.kv_cache_mib in the configuration; by default it is what fits",
    "--metrics": "leave it out: /metrics is always served",
}


def foreign_hint(refused: str, words: Sequence[str]) -> str | None:
    """Return what to write in place of an option of another server; None if it is none of theirs.

    Args:
        refused: The option that click does not know: of `-np` `-n`, and of `-hf` `-f`, as it knows `-h`.
        words: The command line.
    """
    short = not refused.startswith("--")
    given = [word.partition("=")[0] for word in words]
    letters = (word for word in given if word in _HINTS and not word.startswith("--") and refused[1:] in word)
    found = next(letters, refused) if short else refused
    hint = _HINTS.get(found)
    return f"`{found}`: {hint}" if hint else None
