"""How much one key may ask for: token buckets and a count of what runs. Pure: the clock is passed in.

Limits are per process: each of several replicas counts for itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from tinycluster.engine.errors import RequestError, TinyclusterError
from tinycluster.serve.errors import ErrorReply, HttpError

MINUTE_S = 60.0


@dataclass(frozen=True)
class Limits:
    """None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_running: int | None = None


class Bucket:
    """What `per_minute` allows: a minute's worth at once, and then as it flows back. It may go into debt."""

    def __init__(self, per_minute: int, now_s: float) -> None:
        self.per_minute = per_minute
        self._level, self._at_s = float(per_minute), now_s

    def level(self, now_s: float) -> float:
        # A clock that goes back must not take anything away.
        passed_s = max(0.0, now_s - self._at_s)
        self._level = min(self.per_minute, self._level + passed_s * self.per_minute / MINUTE_S)
        self._at_s = max(now_s, self._at_s)
        return self._level

    def take(self, amount: float, now_s: float) -> None:
        self._level = self.level(now_s) - amount

    def wait_s(self, wanted: float, now_s: float) -> float:
        """Until it holds so much."""
        return max(0.0, wanted - self.level(now_s)) * MINUTE_S / self.per_minute


class Running(Protocol):
    """A request that is being answered."""

    def refuse(self, error: TinyclusterError) -> None:
        """End it with this error."""
        ...


class Account:
    """One key's use. A request counts when it comes, the tokens of its prompts when it begins, those of its answers
    when it ends: who has none left waits, so that a long answer is paid for afterwards.

    `clock` gives seconds that never go back.
    `began` is told when something begins that must end with the key.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float], began: Callable[[], None] = lambda: None) -> None:
        self._clock, self._max_running, self._began = clock, limits.max_running, began
        self._requests = self._bucket(limits.requests_per_minute)
        self._tokens = self._bucket(limits.tokens_per_minute)
        self._running: dict[Running, int] = {}
        """With the number of each one's answers."""
        self._streams: set[Running] = set()
        """What is only looked at, and counts for no limit."""

    @property
    def is_idle(self) -> bool:
        return not self._running and not self._streams

    def check_in(self) -> None:
        """Count a request. HttpError 429 where it is one too many."""
        self.check_running(1)
        if self._requests is not None:
            if self._requests.wait_s(1, self._clock()) > 0:
                raise self._refusal("requests", self._requests)
            self._requests.take(1, self._clock())

    def check_running(self, num_answers: int) -> None:
        """HttpError 429 while so many more answers must not run, or no tokens are left; RequestError (n) where they
        never may."""
        most = self._max_running
        if most is not None and num_answers > most:
            message = f"This request asks for {num_answers} answers at once; the limit of this key is {most}"
            raise RequestError(message, "n")
        if most is not None and sum(self._running.values()) + num_answers > most:
            raise _too_many(f"The limit of this key is {most} running answers", 1)
        if self._tokens is not None and self._tokens.wait_s(1, self._clock()) > 0:
            raise self._refusal("tokens", self._tokens)

    def begin(self, request: Running, num_answers: int, num_prompt_tokens: int) -> None:
        self._running[request] = num_answers
        self._take(num_prompt_tokens)
        self._began()

    def end(self, request: Running, num_completion_tokens: int) -> None:
        self._running.pop(request, None)
        self._take(num_completion_tokens)

    def _take(self, num_tokens: int) -> None:
        if self._tokens is not None:
            self._tokens.take(num_tokens, self._clock())

    @contextmanager
    def streaming(self, stream: Running) -> Iterator[None]:
        """The stream is refused with the key while the context lasts."""
        self._streams.add(stream)
        self._began()
        try:
            yield
        finally:
            self._streams.discard(stream)

    def refuse_running(self, error: TinyclusterError) -> None:
        """The key is good no more."""
        for request in [*self._running, *self._streams]:
            request.refuse(error)

    def headers(self) -> dict[str, str]:
        """What OpenAI's API tells of limits with every answer."""
        now_s, shown = self._clock(), dict[str, str]()
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                shown[f"x-ratelimit-limit-{name}"] = str(bucket.per_minute)
                shown[f"x-ratelimit-remaining-{name}"] = str(max(0, math.floor(bucket.level(now_s))))
                shown[f"x-ratelimit-reset-{name}"] = duration(bucket.wait_s(bucket.per_minute, now_s))
        return shown

    def _bucket(self, per_minute: int | None) -> Bucket | None:
        return None if per_minute is None else Bucket(per_minute, self._clock())

    def _refusal(self, what: str, bucket: Bucket) -> HttpError:
        wait_s = math.ceil(bucket.wait_s(1, self._clock()))
        return _too_many(f"The limit of this key is {bucket.per_minute} {what} per minute", wait_s)


def _too_many(message: str, wait_s: int) -> HttpError:
    retry = {"retry-after": str(wait_s)}
    return HttpError(ErrorReply(429, message, "rate_limit_exceeded", code="rate_limit_exceeded", headers=retry))


def duration(seconds: float) -> str:
    """As OpenAI writes it: 120ms, 1.5s, 2m30s."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest_s = divmod(math.ceil(seconds * 1000) / 1000, 60)
    return f"{int(minutes)}m{rest_s:.3f}".rstrip("0").rstrip(".") + "s" if minutes else f"{rest_s:g}s"
