"""A model behind an OpenAI-compatible server: edgekit, llama-server, Ollama, vLLM."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import httpx

from edgekit.errors import EdgekitError, nearest

__all__ = ["Answer", "Endpoint"]

_TIMEOUT_S = 3600.0
_TRIES = 6


@dataclass(frozen=True)
class Answer:
    """The answer to one request.

    Attributes:
        text: What the model wrote.
        finish: The server's `finish_reason`.
        prompt_tokens: Tokens of the prompt, as the server counts them; 0 if it does not.
        tokens: Tokens of the answer.
        seconds: From sending the request to the end of the reply.
    """

    text: str
    finish: str
    prompt_tokens: int
    tokens: int
    seconds: float


class Endpoint:
    """One model of one server.

    Args:
        url: The server's address, with or without `/v1`.
        key: An API key, or None.
        model: The model's name; None takes the only one.

    Raises:
        EdgekitError: The server does not answer, refuses the key, or has no such model.
    """

    def __init__(self, url: str, key: str | None, model: str | None) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        if "://" not in self.url:
            self.url = f"http://{self.url}"
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(headers=headers, timeout=httpx.Timeout(_TIMEOUT_S, connect=30))
        try:
            self.model = self._choose(model)
        except BaseException:
            self.close()
            raise

    def complete(self, prompt: str, **fields: Any) -> Answer:
        """Continue a text, greedily unless the fields say otherwise."""
        reply, seconds = self._post("/v1/completions", {"prompt": prompt, **fields})
        return _answer(reply, reply["choices"][0].get("text"), seconds)

    def chat(self, message: str, **fields: Any) -> Answer:
        """Answer one message."""
        body = {"messages": [{"role": "user", "content": message}], **fields}
        reply, seconds = self._post("/v1/chat/completions", body)
        return _answer(reply, (reply["choices"][0].get("message") or {}).get("content"), seconds)

    def server(self) -> str:
        """Return the server's name and version, if it has one of the endpoints that say so, else its address."""
        if "edgekit" in (ollama := self._json("/api/version")):
            return f"edgekit {ollama['edgekit']}"
        if "version" in ollama:
            return f"Ollama {ollama['version']}"
        if "build_info" in (llama := self._json("/props")):
            return f"llama-server {llama['build_info']}"
        if "version" in (vllm := self._json("/version")):
            return f"vLLM {vllm['version']}"
        return self.url

    def _json(self, path: str) -> dict[str, Any]:
        try:
            reply = self._http.get(f"{self.url}{path}").json()
        except (httpx.HTTPError, ValueError):
            return {}
        return reply if isinstance(reply, dict) else {}

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def _choose(self, wanted: str | None) -> str:
        names = _names(self._send("GET", "/v1/models", None))
        if wanted is None and len(names) == 1:
            return names[0]
        if not names:
            # mlx_lm.server lists the hub's cache, and not what it serves.
            if wanted is not None:
                return wanted
            raise EdgekitError(f"{self.url} lists no model", hint="it may still be loading; or choose one with --model")
        known = f"models: {', '.join(names)}"
        if wanted is None:
            raise EdgekitError(f"{self.url} has {len(names)} models", hint=f"choose one with --model; {known}")
        # Ollama lists `name:latest`.
        if wanted not in names and f"{wanted}:latest" not in names:
            near = nearest(wanted, names)
            raise EdgekitError(f"{self.url} has no model `{wanted}`", hint=f"did you mean `{near}`?" if near else known)
        return wanted

    def _post(self, path: str, body: dict[str, Any]) -> tuple[dict[str, Any], float]:
        for attempt in range(_TRIES):
            started = time.perf_counter()
            response = self._send("POST", path, {"model": self.model, **body})
            if response.status_code not in (429, 503) or attempt + 1 == _TRIES:
                break
            wait = response.headers.get("Retry-After", "")
            time.sleep(min(60.0, float(wait)) if wait.isdecimal() else 2.0**attempt)
        if response.status_code != 200:
            raise EdgekitError(f"{path} was answered with {response.status_code}: {_message(response)}")
        seconds = time.perf_counter() - started
        try:
            reply = response.json()
            _ = reply["choices"][0]
        except (ValueError, LookupError, TypeError) as error:
            raise EdgekitError(f"{path} was answered in another form than OpenAI's: {response.text[:100]}") from error
        return reply, seconds

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        try:
            response = self._http.request(method, f"{self.url}{path}", json=body)
        except httpx.InvalidURL as error:
            raise EdgekitError(f"{self.url} is not an address: {error}") from error
        except httpx.HTTPError as error:
            raise EdgekitError(f"{self.url} does not answer: {error}", hint="is the server running?") from error
        if response.status_code in (401, 403):
            raise EdgekitError(f"{path} refuses the key: {_message(response)}", hint="--key KEY, or $EDGEKIT_API_KEY")
        if body is None and response.status_code != 200:
            raise EdgekitError(f"{path} was answered with {response.status_code}: {_message(response)}")
        return response


def _names(response: httpx.Response) -> list[str]:
    try:
        return [str(entry["id"]) for entry in response.json()["data"]]
    except (ValueError, LookupError, TypeError):
        return []


def _answer(reply: dict[str, Any], text: str | None, seconds: float) -> Answer:
    usage = reply.get("usage") or {}
    return Answer(
        text or "",
        str(reply["choices"][0].get("finish_reason")),
        int(usage.get("prompt_tokens") or 0),
        int(usage.get("completion_tokens") or 0),
        seconds,
    )


def _message(response: httpx.Response) -> str:
    try:
        error = response.json()["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        return response.text[:200].strip() or response.reason_phrase
