"""A model that is not loaded: what is known of it, and the refusal of requests (MQTT's then wait)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from edgekit.bundle.bundle import Bundle
from edgekit.config import DaemonConfig
from edgekit.errors import UnavailableError
from edgekit.generation.engine.worker import OnEvent
from edgekit.generation.model_info import ModelInfo
from edgekit.generation.types import ChatRequest

__all__ = ["NotLoaded", "expected_info", "not_ready"]

RETRY_S = 5.0


def not_ready(activity: str) -> UnavailableError:
    """Return the error of a request that comes before the model is loaded.

    Args:
        activity: What the daemon does before; empty if it just loads the model.
    """
    return UnavailableError(
        f"the model is not loaded yet: {activity}" if activity else "the model is still loading",
        hint="retry in a moment",
        code="not_ready",
        retry_after_s=RETRY_S,
    )


def expected_info(bundle: Bundle, config: DaemonConfig) -> ModelInfo:
    """Return what is known of a bundle's model before it is loaded."""
    manifest = bundle.manifest
    context_length = config.generation.context_length or manifest.context_length
    return ModelInfo(manifest.name, created=0, context_length=context_length, aliases=config.aliases)


class NotLoaded:
    """Stands for the engine worker until there is one.

    Args:
        activity: Returns what the daemon does before it loads the model.
    """

    def __init__(self, activity: Callable[[], str]) -> None:
        self._activity = activity

    def submit(self, request: ChatRequest, on_event: OnEvent) -> NoReturn:  # noqa: ARG002  as `EngineWorker.submit`
        """Refuse a request.

        Raises:
            UnavailableError: Always.
        """
        raise not_ready(self._activity())
