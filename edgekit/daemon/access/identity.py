"""The sender of a request, and what that decides about the request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from edgekit.daemon.access.keys import ApiKey, Scope
from edgekit.errors import RequestError
from edgekit.generation.types import ChatRequest

__all__ = ["ANONYMOUS", "Identity", "key_identity", "user_identity"]


@dataclass(frozen=True, slots=True)
class Identity:
    """The sender of a request.

    Attributes:
        name: For the audit log.
        label: For the metrics.
        key: The API key; None without one.
        tenant: Owner of the sender's cached prompts and stored replies; empty for all who have no identity.
        client: Whom the fair queue counts the requests against; None is what the transport knows, such as an address.
        share: Weight in the fair queue.
        priority: The smallest priority of the requests; None is any.
    """

    name: str
    label: str
    key: ApiKey | None = None
    tenant: str = ""
    client: str | None = None
    share: float = 1.0
    priority: int | None = None

    def bind(self, request: ChatRequest) -> ChatRequest:
        """Return a request with the tenant, the share and the priority of its sender."""
        if self.client is None:
            return request
        priority = request.priority if self.priority is None else max(request.priority, self.priority)
        return replace(request, client=self.client, tenant=self.tenant, share=self.share, priority=priority)

    def check(self, scope: Scope, model: Sequence[str] = ()) -> None:
        """Check that the sender may use a scope, and a model.

        Args:
            scope: What the request needs.
            model: The model's name and aliases; empty if it uses none. A key for one of them is for the model.

        Raises:
            RequestError: `scope_missing` or `model_not_allowed`.
        """
        if self.key is None:
            return
        if scope not in self.key.scopes:
            raise RequestError(
                f"the API key `{self.name}` may not be used for this: it needs the scope `{scope}`",
                hint=f"make one with `edgekit key add NAME --scope {scope}`",
                code="scope_missing",
            )
        if model and self.key.models and not set(model) & set(self.key.models):
            raise RequestError(
                f"the API key `{self.name}` may not use the model `{model[0]}`",
                hint="it may use " + ", ".join(f"`{name}`" for name in self.key.models),
                code="model_not_allowed",
                param="model",
            )


ANONYMOUS = Identity("anonymous", "anonymous")
"""A sender without a key, where none is required."""


def key_identity(key: ApiKey) -> Identity:
    """Return the identity of a key's owner."""
    return Identity(
        name=key.name,
        label=key.name,
        key=key,
        # Neither a tenant's name nor a later key of the same name may reach another one's prompts.
        tenant=f"key:{key.id}:{key.created}" if key.tenant is None else f"tenant:{key.tenant}",
        client=f"key:{key.id}",
        share=key.share,
        priority=key.priority,
    )


def user_identity(user: str) -> Identity:
    """Return the identity of an MQTT user without a key of that name."""
    name = f"mqtt:{user}"
    return Identity(name=name, label=name, tenant=name, client=name, priority=0)
