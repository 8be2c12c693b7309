"""edgekit takes a chat model from a checkpoint to an answering edge device.

The names in `__all__` are the public Python API; everything else is internal and may change in any release. They are
imported when they are first used, so that `import edgekit` costs next to nothing::

    import edgekit

    edgekit.export_model("smollm2-135m-instruct", target="cpu", output="smollm2")
    with edgekit.load("smollm2") as model:
        print(model.chat("What is the capital of Germany?").text)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgekit.api.export import export_model as export_model
    from edgekit.api.model import Model as Model
    from edgekit.api.model import load as load
    from edgekit.api.reply import AsyncStream as AsyncStream
    from edgekit.api.reply import Reply as Reply
    from edgekit.api.reply import Stream as Stream
    from edgekit.bundle.bundle import Bundle as Bundle
    from edgekit.bundle.bundle import open_bundle as open_bundle
    from edgekit.config import GenerationConfig as GenerationConfig
    from edgekit.errors import BundleError as BundleError
    from edgekit.errors import ConfigError as ConfigError
    from edgekit.errors import EdgekitError as EdgekitError
    from edgekit.errors import ExportError as ExportError
    from edgekit.errors import IncompatibleBundleError as IncompatibleBundleError
    from edgekit.errors import RequestError as RequestError
    from edgekit.errors import RunnerError as RunnerError
    from edgekit.errors import SignatureError as SignatureError
    from edgekit.errors import UnavailableError as UnavailableError
    from edgekit.errors import UpdateError as UpdateError
    from edgekit.generation.types import Delta as Delta
    from edgekit.generation.types import ToolCall as ToolCall
    from edgekit.generation.types import ToolCallDelta as ToolCallDelta

    __version__: str

_HOMES = {
    "edgekit.api.export": ("export_model",),
    "edgekit.api.model": ("Model", "load"),
    "edgekit.api.reply": ("AsyncStream", "Reply", "Stream"),
    "edgekit.bundle.bundle": ("Bundle", "open_bundle"),
    "edgekit.config": ("GenerationConfig",),
    "edgekit.errors": (
        "BundleError",
        "ConfigError",
        "EdgekitError",
        "ExportError",
        "IncompatibleBundleError",
        "RequestError",
        "RunnerError",
        "SignatureError",
        "UnavailableError",
        "UpdateError",
    ),
    "edgekit.generation.types": ("Delta", "ToolCall", "ToolCallDelta"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AsyncStream",
    "Bundle",
    "BundleError",
    "ConfigError",
    "Delta",
    "EdgekitError",
    "ExportError",
    "GenerationConfig",
    "IncompatibleBundleError",
    "Model",
    "Reply",
    "RequestError",
    "RunnerError",
    "SignatureError",
    "Stream",
    "ToolCall",
    "ToolCallDelta",
    "UnavailableError",
    "UpdateError",
    "export_model",
    "load",
    "open_bundle",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from edgekit.version import current_version

        return globals().setdefault(name, current_version())
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module `edgekit` has no attribute `{name}`")
    try:
        module = import_module(home)
    except ImportError as error:
        from edgekit.errors import import_failure

        failure = import_failure(error, "daemon")
        if failure is None:
            raise
        raise failure from error
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
