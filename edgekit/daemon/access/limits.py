"""Rate limits: requests and tokens per minute of each key, and failed attempts of each address.

All are token buckets that hold one minute's worth, so that a client may send its minute's requests at once. They begin
full when the daemon starts.
"""

from __future__ import annotations

import ipaddress
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from edgekit.daemon.access.keys import ApiKey
from edgekit.errors import RequestError, UnavailableError
from edgekit.generation.types import ChatRequest

__all__ = ["AttemptLimit", "KeyLimits", "Reservation", "estimate_tokens"]

Clock = Callable[[], float]

# As the engine expects of an answer without `max_tokens`.
_ANSWER_TOKENS = 256
_CHARS_PER_TOKEN = 4

ATTEMPTS_PER_MINUTE = 20
_MAX_ADDRESSES = 4096


class _Bucket:
    """A token bucket; not thread-safe."""

    def __init__(self, per_minute: int, now: float) -> None:
        self.capacity = float(per_minute)
        self._rate = per_minute / 60
        self._balance = self.capacity
        self._at = now

    def wait_s(self, amount: float, now: float) -> float:
        """Return the seconds until so much, or all that fits, can be taken; 0 if it can be now."""
        self._balance = min(self.capacity, self._balance + (now - self._at) * self._rate)
        self._at = now
        return max(0.0, (min(amount, self.capacity) - self._balance) / self._rate)

    def take(self, amount: float) -> None:
        """Take an amount, or give one back; the balance may become negative, and then more time must pass."""
        self._balance = min(self.capacity, self._balance - amount)


@dataclass(slots=True)
class _KeyBuckets:
    requests: _Bucket | None
    tokens: _Bucket | None


@dataclass(slots=True)
class Reservation:
    """What an admitted request has taken of its key's limits.

    Attributes:
        tokens: The tokens that it may use, estimated.
    """

    tokens: float
    _buckets: _KeyBuckets = field(repr=False)
    _lock: threading.Lock = field(repr=False)
    _settled: bool = False
    _cancelled: bool = False

    def settle(self, tokens: float) -> None:
        """Replace the estimate by the tokens that were used."""
        with self._lock:
            if not self._settled:
                self._settled = True
                if self._buckets.tokens is not None:
                    self._buckets.tokens.take(tokens - self.tokens)

    def cancel(self) -> None:
        """Give everything back: the request was not accepted, or one that is part of it was not.

        What a part has used by then stays taken.
        """
        self.settle(0)
        with self._lock:
            if not self._cancelled:
                self._cancelled = True
                if self._buckets.requests is not None:
                    self._buckets.requests.take(-1.0)


class KeyLimits:
    """The limits of all keys; any thread may use it.

    Args:
        clock: Replaceable in tests.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, _KeyBuckets] = OrderedDict()

    def admit(self, key: ApiKey, tokens: float) -> Reservation:
        """Count a request; see `admit_all`."""
        return self.admit_all(key, [tokens])[0]

    def admit_all(self, key: ApiKey, tokens: Sequence[float]) -> list[Reservation]:
        """Count requests that are sent as one: all of them, or none.

        Args:
            key: Their key.
            tokens: The tokens that each may use; together never more than one minute's count.

        Raises:
            RequestError: `too_many_prompts`: they are more than a minute's requests.
            UnavailableError: `rate_limited`, with the time after which they are admitted.
        """
        count, wanted = len(tokens), sum(tokens)
        with self._lock:
            now = self._clock()
            buckets = self._of(key, now)
            if buckets.requests is not None and count > max(1.0, buckets.requests.capacity):
                most = f"{buckets.requests.capacity:.0f}"
                raise RequestError(
                    f"{count} prompts are more than the {most} requests per minute of the API key `{key.name}`",
                    hint=f"send at most {most} prompts at a time",
                    code="too_many_prompts",
                    param="prompt",
                )
            for bucket, amount, unit in (
                (buckets.requests, float(count), "requests"),
                (buckets.tokens, wanted, "tokens"),
            ):
                wait_s = 0.0 if bucket is None else bucket.wait_s(amount, now)
                if bucket is not None and wait_s > 0:
                    raise UnavailableError(
                        f"the API key `{key.name}` has used its {bucket.capacity:.0f} {unit} per minute"
                        + (f", or too many of them for {count} prompts" if count > 1 else ""),
                        hint=f"ask again in about {max(0.1, round(wait_s, 1)):g} s",
                        code="rate_limited",
                        retry_after_s=wait_s,
                    )
            if buckets.requests is not None:
                buckets.requests.take(float(count))
            share = 0.0
            if buckets.tokens is not None and wanted > 0:
                share = min(wanted, buckets.tokens.capacity) / wanted
                buckets.tokens.take(wanted * share)
            return [Reservation(amount * share, buckets, self._lock) for amount in tokens]

    def _of(self, key: ApiKey, now: float) -> _KeyBuckets:
        found = self._buckets.get(key.id)
        if found is None:
            found = _KeyBuckets(
                *(
                    None if rate is None else _Bucket(rate, now)
                    for rate in (key.requests_per_minute, key.tokens_per_minute)
                )
            )
            self._buckets[key.id] = found
            # Twice as many as there can be keys.
            if len(self._buckets) > 2000:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(key.id)
        return found


class AttemptLimit:
    """Failed attempts to present a key, by address: an IPv6 network of 64 bits counts as one.

    Args:
        clock: Replaceable in tests.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def failed(self, address: str) -> None:
        """Count a failed attempt.

        Raises:
            UnavailableError: `too_many_attempts`: there were too many in the last minute.
        """
        place = _network(address)
        with self._lock:
            now = self._clock()
            bucket = self._buckets.setdefault(place, _Bucket(ATTEMPTS_PER_MINUTE, now))
            self._buckets.move_to_end(place)
            if len(self._buckets) > _MAX_ADDRESSES:
                self._buckets.popitem(last=False)
            wait_s = bucket.wait_s(1.0, now)
            if wait_s > 0:
                raise UnavailableError(
                    "too many requests with an invalid API key came from this address",
                    hint="check the key; the right one is accepted at any time",
                    code="too_many_attempts",
                    retry_after_s=wait_s,
                )
            bucket.take(1.0)


def estimate_tokens(request: ChatRequest) -> float:
    """Return how many tokens a request may use, before its prompt is tokenized."""
    texts = [message.content for message in request.messages]
    tokens = len(request.context)
    if isinstance(request.prompt, tuple):
        tokens += len(request.prompt)
    elif request.prompt is not None:
        texts.append(request.prompt)
    if request.infill is not None:
        texts += [request.infill.suffix, *(text for _, text in request.infill.files)]
    answer = _ANSWER_TOKENS if request.max_tokens is None else request.max_tokens
    return tokens + sum(map(len, texts)) / _CHARS_PER_TOKEN + request.n * answer


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if parsed.version == 4 or parsed.ipv4_mapped is not None:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False))
