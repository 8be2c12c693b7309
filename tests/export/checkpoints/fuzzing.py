"""Generates damaged and hostile checkpoints by the thousand, and reads them.

An input is a kind of checkpoint and a number; the same two always give the same bytes. Reading it must return values or
raise an `EdgekitError`, in little memory and little time. `tests/export/checkpoints/test_hostile.py` runs a few
thousand, `benchmarks/fuzz_checkpoints.py` any number.
"""

from __future__ import annotations

import json
import random
import re
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import EdgekitError
from edgekit.export.architectures import describe
from edgekit.export.checkpoints.gguf.blocks import BLOCKS
from edgekit.export.checkpoints.safetensors import INDEX
from edgekit.export.sources.open import open_checkpoint
from tests.export.checkpoints.gguf.files import rope_tables, write_gguf
from tests.export.checkpoints.packed_files import pack_checkpoint
from tests.variants import variant

# The tiny model behind each kind; together they cover every way of reading a configuration.
_MODELS = {
    "gguf": "llama",
    "gguf-k": "gemma3_text",
    "gguf-split": "phi3-longrope",
    "safetensors": "phi3-longrope",
    "shards": "gemma3_text",
    "gptq": "qwen2-yarn",
    "awq": "llama3",
}
KINDS = tuple(_MODELS)
MAX_GROWTH = 1 << 30
TIMEOUT_S = 10
_Change = Callable[[random.Random, bytes], bytes]

_INTEGERS = (
    0,
    1,
    2,
    3,
    7,
    255,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 1,
)
_VALUES: tuple[Any, ...] = (
    *(None, True, False, -1, -(2**63), 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf")),
    *("", "x", "\0", "\n", "\ud800", "F16", "I32", "F8_E4M3", "U64", "gguf", "gptq", "awq", "gemm", "x" * 5000),
    *("../model.safetensors", "/dev/zero", "/etc/passwd", "..", "model-00001-of-00002.safetensors"),
    *([], {}, [[]], [1, 2], [2**62, 2**62], {"a": 1}, [0] * 9, *_INTEGERS),
)
_LANDMARK = re.compile(rb"(?:general|split|tokenizer|llama|gemma3|phi3|blk\.\d|token_embd|output)[\w.]*")


@dataclass(frozen=True)
class Input:
    """One checkpoint.

    Attributes:
        kind: One of `KINDS`.
        number: Number of the input among those of its kind.
    """

    kind: str
    number: int


def seeded(seed: int | str) -> random.Random:
    """A random generator with a fixed seed."""
    return random.Random(seed)  # noqa: S311  nothing here is secret


def write_seeds(folder: Path) -> None:
    """Write one valid checkpoint of every kind, each in a folder of its name."""
    sizes = {"layers": 1, "hidden": 64, "intermediate": 32, "heads": 2, "kv_heads": 1, "vocab": 300}
    for kind, model in _MODELS.items():
        own = {"layer_types": ["sliding_attention"]} if model.startswith("gemma3") else {}
        written = variant(model, folder / kind, **sizes, **own)
        if kind in {"gptq", "awq"}:
            pack_checkpoint(written, kind)
        elif kind == "shards":
            _shard(written)
        elif kind.startswith("gguf"):
            _to_gguf(written, kind)


def _shard(folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for number, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), 1):
        name = f"model-{number:05}-of-00002.safetensors"
        save_file({key: tensors[key] for key in names}, folder / name)
        weight_map |= dict.fromkeys(names, name)
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))


def _to_gguf(folder: Path, kind: str) -> None:
    path, parts = folder.parent / f"{kind}.gguf", 2 if kind == "gguf-split" else 1
    others = [name for name in BLOCKS if name not in {"F32", "F16", "Q4_0"}] if kind == "gguf-k" else []
    rng = np.random.default_rng(0)
    # Any two bytes below 60 form a finite float16, so every block's scale is finite.
    blocks = {
        name: rng.integers(0, 60, (2, 256 // BLOCKS[name].length * BLOCKS[name].size), np.uint8) for name in others
    }
    tables = rope_tables(json.loads((folder / "config.json").read_text()))
    write_gguf(folder, path, encoding="Q4_0", pre="smollm", parts=parts, raw_tensors=blocks, extra_tensors=tables)
    shutil.rmtree(folder)
    folder.mkdir()
    for written in sorted(folder.parent.glob(f"{kind}*.gguf")):
        if written.stem == kind or written.stem.startswith(f"{kind}-0"):
            written.rename(folder / written.name)


def changed(which: Input, folder: Path) -> dict[str, bytes | None]:
    """The files of a valid checkpoint that an input changes; None for one that it deletes."""
    rng = seeded(f"{which.kind} {which.number}")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    weights = [path for path in files if path.suffix in {".gguf", ".safetensors"}]
    others = [path for path in files if path not in weights]
    changes: dict[str, bytes | None] = {}
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        path = rng.choice(others if others and rng.random() < 0.35 else weights)
        before = changes.get(path.name, path.read_bytes())
        if before is None or rng.random() < 0.01:
            changes[path.name] = None
        elif rng.random() < 0.02:
            changes[path.name] = rng.choice(files).read_bytes()
        else:
            changes[path.name] = rng.choice(_changes(path))(rng, before)
    return changes


def _changes(path: Path) -> list[_Change]:
    general: list[_Change] = [_flipped, _flipped, _cut, _grown, _numbered]
    if path.suffix == ".gguf":
        return [*general, *[_near_a_name] * 5]
    if path.suffix == ".safetensors":
        return [*general, *[_header_changed] * 5]
    return [*general, *[document_changed] * 5]


def _position(rng: random.Random, data: bytes, width: int = 1) -> int:
    """A random position in the data, more often near the start, where the structure is."""
    return rng.randrange(max(1, min(len(data), rng.choice((64, 600, 6000, 1 << 40))) - width))


def _flipped(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randrange(1, 9) if data else 0):
        out[_position(rng, data)] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    return bytes(out)


def _cut(rng: random.Random, data: bytes) -> bytes:
    return data[: _position(rng, data)]


def _grown(rng: random.Random, data: bytes) -> bytes:
    at = rng.choice((len(data), _position(rng, data)))
    return data[:at] + rng.choice((bytes, rng.randbytes))(rng.choice((1, 8, 33, 4096))) + data[at:]


def _numbered(rng: random.Random, data: bytes) -> bytes:
    return _overwritten(rng, data, _position(rng, data, 8))


def _near_a_name(rng: random.Random, data: bytes) -> bytes:
    """Change a number beside a key or a tensor's name: its length, type, value, dimension or offset."""
    ends = [match.span() for match in _LANDMARK.finditer(data[:40_000])]
    if not ends:
        return _flipped(rng, data)
    start, end = rng.choice(ends)
    # A key is followed by its type and value; a name by the number of dimensions, the dimensions, type and offset.
    after, width = rng.choice(
        ((0, 4), (4, 1), (4, 4), (4, 4), (4, 8), (8, 8), (12, 4), (12, 8), (16, 8), (20, 4), (24, 8))
    )
    at, width = (start - 8, 8) if rng.random() < 0.1 else (end + after, width)
    return _overwritten(rng, data, at, width)


def _overwritten(rng: random.Random, data: bytes, at: int, width: int | None = None) -> bytes:
    width = width or rng.choice((1, 4, 8))
    at = max(0, at)
    present = int.from_bytes(data[at : at + width], "little")
    known = (present + 1, present - 1, present * 2, present // 2, present + 32, rng.randrange(45))
    value = rng.choice(known if rng.random() < 0.5 else _INTEGERS) % (1 << 8 * width)
    return data[:at] + value.to_bytes(width, "little") + data[at + width :]


def _header_changed(rng: random.Random, data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    header = document_changed(rng, data[8 : 8 + length])
    stated = len(header) if rng.random() < 0.9 else rng.choice(_INTEGERS)
    return stated.to_bytes(8, "little") + header + data[8 + length :]


def document_changed(rng: random.Random, data: bytes) -> bytes:
    """Change values or keys of a JSON document."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return _flipped(rng, data)
    for _ in range(rng.choice((1, 1, 2))):
        items = list(_items(document))
        if not items:
            return json.dumps(rng.choice(_VALUES)).encode()
        inside, key = rng.choice(items)
        _change_item(rng, inside, key)
    text = json.dumps(document)
    if rng.random() < 0.05:
        depth = rng.choice((10, 5000, 200_000))
        text = text.replace("null", "[" * depth + "]" * depth, 1)
    return text.encode()


def _change_item(rng: random.Random, inside: Any, key: Any) -> None:
    action, value = rng.random(), inside[key]
    if action < 0.15:
        del inside[key]
    elif action < 0.35 and type(value) is int:
        inside[key] = rng.choice((value + 1, value - 1, value * 2, -value, value // 2, float(value)))
    elif action < 0.45:
        inside[key] = inside[rng.choice(list(inside))] if isinstance(inside, dict) else rng.choice(inside)
    elif action < 0.55 and isinstance(inside, dict):
        inside[rng.choice(("", "x", "lm_head.weight", f"{key}.weight", "\u202e", "x" * 3000))] = inside.pop(key)
    else:
        inside[key] = rng.choice(_VALUES)


def _items(document: Any) -> Iterator[tuple[Any, Any]]:
    items: Any = document.items() if isinstance(document, dict) else enumerate(document)
    if not isinstance(document, dict | list):
        return
    for key, value in list(items)[:200]:
        yield document, key
        if isinstance(value, dict | list):
            yield from _items(value)


class TooSlow(BaseException):
    """An input took too long. Not an `Exception`, so that no reader can swallow it."""


@contextmanager
def bounds() -> Iterator[None]:
    """Limit this process's growth to a gigabyte: a larger allocation raises MemoryError."""
    if sys.platform != "linux":
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MAX_GROWTH, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def attempt(folder: Path, rng: random.Random) -> str:
    """Open a checkpoint and read all of it.

    Returns:
        `read`, or `refused: ` and the error's code.

    Raises:
        AssertionError: A message would not print on one line.
        Exception: Anything else that the readers raise, which is what this looks for.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            _read_all(folder, rng)
    except EdgekitError as error:
        assert error.message.isprintable(), error.message[:200]  # noqa: PT017  that it is raised is not the point
        return f"refused: {error.code}"
    return "read"


def _read_all(folder: Path, rng: random.Random) -> None:
    ggufs = sorted(folder.glob("*.gguf"))
    with closing(open_checkpoint(rng.choice(ggufs) if ggufs else folder)) as checkpoint:
        for name, info in checkpoint.tensors.items():
            if info.encoding[0] in "IU" and not info.encoding.startswith("IQ"):
                continue  # integers are not weights
            rows = info.shape[0] if info.shape else 1
            cut = rng.randint(0, rows)
            checkpoint.read(name, 0, cut)
            checkpoint.read(name, cut)
        checkpoint.tokenizer()
        assert checkpoint.name is not None
        assert checkpoint.licence
        describe(checkpoint.config)


def run(which: Input, seeds: Path) -> str:
    """Turn a valid checkpoint's folder into an input, read it, and restore the folder.

    Returns:
        See `attempt`.

    Raises:
        TooSlow: It took longer than `TIMEOUT_S`.
    """
    folder = seeds / which.kind
    changes = changed(which, folder)
    before = {name: (folder / name).read_bytes() for name in changes}

    def stop(*_: object) -> None:
        raise TooSlow

    for name, data in changes.items():
        (folder / name).unlink()
        if data is not None:
            (folder / name).write_bytes(data)
    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, TIMEOUT_S)
    try:
        return attempt(folder, seeded(which.number))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        for name, data in before.items():
            (folder / name).write_bytes(data)
