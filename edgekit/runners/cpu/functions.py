"""ctypes signatures of the functions that csrc/ exports, besides those of dispatch.c; both must change together."""

from __future__ import annotations

import ctypes
from typing import Any

__all__ = ["Functions"]

_INT, _FLOAT, _POINTER, _TEXT, _SIZE = ctypes.c_int, ctypes.c_float, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t

_TYPES: dict[str, tuple[Any, list[Any]]] = {
    "step": (_INT, [_POINTER, _INT, _POINTER, _INT, _POINTER, _INT, _POINTER, _POINTER]),
    "read_kv": (None, [_POINTER, _INT, _INT, _INT, _POINTER]),
    "write_kv": (None, [_POINTER, _INT, _INT, _INT, _POINTER]),
    "arena_new": (_POINTER, [_SIZE]),
    "arena_free": (None, [_POINTER]),
    "matrix_bytes": (_SIZE, [_INT] * 6),
    "matrix_new": (_POINTER, [_POINTER, _TEXT, *[_INT] * 5, *[_POINTER] * 4, _INT, _INT, _POINTER]),
    "matrix_free": (None, [_POINTER]),
    "model_new": (_POINTER, [_TEXT, *[_INT] * 9, _FLOAT, _INT, _FLOAT]),
    "model_embeddings": (None, [_POINTER, _POINTER, _POINTER]),
    "model_matrix": (None, [_POINTER, _INT, _INT, _POINTER]),
    "model_norm": (_INT, [_POINTER, _INT, _INT, _INT, _POINTER]),
    "model_layer": (None, [_POINTER, _INT, _INT, _FLOAT, _INT, *[_POINTER] * 4]),
    "model_free": (None, [_POINTER]),
}


class Functions:
    """The library's `ek_<name>` functions as attributes. Arrays are passed by address."""

    def __init__(self, library: ctypes.CDLL) -> None:
        for name, (result, arguments) in _TYPES.items():
            function = getattr(library, f"ek_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)
