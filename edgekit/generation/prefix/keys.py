"""Names of blocks: a chain of hashes, so that equal prefixes meet in equal names and nothing else ever does.

    key(block i) = BLAKE2b(key(block i-1), tokens of block i)        tokens little-endian, 32 bits each
    key(block -1) = BLAKE2b(format, fingerprint, block size, tenant)

A key stands for all tokens up to its block's end, in one model, for one tenant. It knows no KV cache and no file.
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

from edgekit.bundle.manifest import Manifest
from edgekit.runners.base import Runner

__all__ = ["KEY_BYTES", "block_keys", "model_fingerprint", "root_key"]

KEY_BYTES = 32

_FORMAT = "edgekit prefix 1"

# What a KV cache was computed by: another version may compute other numbers. `edgekit` stands for the runners.
_LIBRARIES = ("edgekit", "onnxruntime", "onnxruntime-gpu", "mlx", "mlx-lm", "tensorrt", "tensorrt-rtx-cu12-libs")


def model_fingerprint(manifest: Manifest, runner: Runner, root: Path = Path("/")) -> str:
    """Return what must be the same for a KV cache to be used again.

    That is the bundle with every file's hash, the runner, its backend, the width of its cache, the libraries' versions,
    and what the CPU can do: kernels are chosen by it, and compute other last bits. The number of threads changes
    nothing.

    Args:
        manifest: The bundle's.
        runner: Which runs it.
        root: Where `proc` is.
    """
    bundle = hashlib.sha256(manifest.to_json().encode()).hexdigest()
    kind = f"{type(runner).__module__}.{type(runner).__qualname__}"
    versions = {name: found for name in _LIBRARIES if (found := _version(name))}
    backend, width = asdict(runner.backend), runner.limits.kv_bytes_per_token
    return json.dumps([bundle, kind, backend, width, platform.machine(), _cpu(root), versions])


def root_key(fingerprint: str, block_tokens: int, tenant: str) -> bytes:
    """Return the key that a tenant's chains start from."""
    # JSON keeps the parts apart: no tenant's name can run into a fingerprint.
    parts = json.dumps([_FORMAT, fingerprint, block_tokens, tenant])
    return hashlib.blake2b(parts.encode(), digest_size=KEY_BYTES).digest()


def block_keys(root: bytes, tokens: Sequence[int], block_tokens: int) -> list[bytes]:
    """Return the keys of the whole blocks in `tokens`, in order."""
    count = len(tokens) // block_tokens
    data = np.asarray(tokens[: count * block_tokens], dtype="<u4").tobytes()
    size = 4 * block_tokens
    keys, key = [], root
    for at in range(0, count * size, size):
        key = hashlib.blake2b(key + data[at : at + size], digest_size=KEY_BYTES).digest()
        keys.append(key)
    return keys


def _cpu(root: Path) -> str:
    """The CPU's instruction sets, where the system tells them; else its name."""
    try:
        lines = (root / "proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    # x86-64 says flags, ARM Features.
    found = [line for line in lines if line.startswith(("flags", "Features"))]
    return found[0] if found else platform.processor()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
