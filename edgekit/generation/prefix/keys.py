"""Block keys: a hash chain, so that equal prefixes, and only those, have equal keys.

    key(block i) = BLAKE2b(key(block i-1), tokens of block i)        tokens little-endian, 32 bits each
    key(block -1) = BLAKE2b(format, fingerprint, block size, tenant)

A key identifies all tokens up to its block's end, in one model, for one tenant.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from edgekit import __version__
from edgekit.bundle.manifest import Manifest
from edgekit.runners.base import Runner

__all__ = ["KEY_BYTES", "block_keys", "model_fingerprint", "root_key"]

KEY_BYTES = 32

_FORMAT = "edgekit prefix 1"

# Libraries that compute KV cache, with edgekit's own runners: another version may compute other values.
_LIBRARIES = ("onnxruntime", "onnxruntime-gpu", "mlx", "mlx-lm", "tensorrt", "tensorrt-rtx-cu12-libs")


def model_fingerprint(manifest: Manifest, runner: Runner, root: Path = Path("/")) -> str:
    """Return a string that must be equal for KV cache to be reusable.

    It covers the bundle with every file's hash, the runner, its backend, its KV bytes per token, the libraries'
    versions, and the CPU's instruction sets: kernels are selected by them, and differ in the last bits. The number of
    threads makes no difference.

    Args:
        manifest: The bundle's manifest.
        runner: The runner that loaded it.
        root: The folder that contains `proc`.
    """
    bundle = hashlib.sha256(manifest.to_json().encode()).hexdigest()
    kind = f"{type(runner).__module__}.{type(runner).__qualname__}"
    versions = {"edgekit": __version__} | {name: found for name in _LIBRARIES if (found := _version(name))}
    backend, width = asdict(runner.backend), runner.limits.kv_bytes_per_token
    return json.dumps([bundle, kind, backend, width, platform.machine(), _cpu(root), versions])


def root_key(fingerprint: str, block_tokens: int, tenant: str) -> bytes:
    """Return the key that starts a tenant's chains."""
    # JSON separates the parts unambiguously, whatever characters a tenant's name has.
    parts = json.dumps([_FORMAT, fingerprint, block_tokens, tenant])
    return hashlib.blake2b(parts.encode(), digest_size=KEY_BYTES).digest()


def block_keys(root: bytes, tokens: Sequence[int], block_tokens: int) -> list[bytes]:
    """Return the keys of the complete blocks in `tokens`, in order."""
    count = len(tokens) // block_tokens
    data = np.asarray(tokens[: count * block_tokens], dtype="<u4").tobytes()
    size = 4 * block_tokens
    keys, key = [], root
    for start in range(0, count * size, size):
        key = hashlib.blake2b(key + data[start : start + size], digest_size=KEY_BYTES).digest()
        keys.append(key)
    return keys


def _cpu(root: Path) -> str:
    """The CPU's instruction sets if the system lists them, else its name."""
    try:
        lines = (root / "proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    # `flags` on x86-64, `Features` on ARM.
    found = [line for line in lines if line.startswith(("flags", "Features"))]
    return found[0] if found else platform.processor()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
