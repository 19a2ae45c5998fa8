"""One HTTP request from its arrival until everything that it asked for has ended, and whoever wants to know of it then.

An answer may end after the response does: a session's goes on when its client leaves. So the end is the last of both.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinycluster.serve.choices import Choices

SCOPE_KEY = "tinycluster.exchange"
REQUEST_ID = re.compile(rb"[A-Za-z0-9_.-]{1,64}")


@dataclass
class Exchange:
    """Times are those of time.monotonic. `route` is the path as it is declared, never what the client wrote."""

    id: str
    method: str
    headers: Sequence[tuple[bytes, bytes]]
    tell: Callable[[Exchange], None]
    started_s: float = field(default_factory=time.monotonic)
    started_at_ns: int = field(default_factory=time.time_ns)
    route: str | None = None
    status: int = 499
    """499 where the client left before there was one."""
    key_name: str = ""
    model: str | None = None
    read_s: float | None = None
    """When the body had been read and checked."""
    tokenized_s: float | None = None
    num_answers: int = 0
    """Choices of the answers that have ended; the numbers that follow are theirs."""
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    num_completion_tokens: int = 0
    scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    finish_reasons: set[str] = field(default_factory=set)
    """"abort" where an answer did not end by itself."""
    responded_s: float | None = None
    ended_s: float = 0.0
    _num_running: int = 0

    def tokenized(self, model: str) -> None:
        self.model, self.tokenized_s = model, time.monotonic()

    def watch(self, choices: Choices) -> None:
        """Until these have ended, the exchange has not."""
        self._num_running += 1
        choices.when_ended(self._answered)

    def _answered(self, choices: Choices) -> None:
        self.num_answers += choices.num_choices
        self.num_prompt_tokens += choices.num_prompt_tokens
        self.num_cached_tokens += choices.num_cached_tokens
        self.num_completion_tokens += choices.num_completion_tokens
        self.finish_reasons.update(choices.finish_reasons)
        self.scheduled_s = self.scheduled_s or choices.scheduled_s
        self.first_token_s = self.first_token_s or choices.first_token_s
        self.last_token_s = choices.last_token_s or self.last_token_s
        self._num_running -= 1
        self._check_end()

    def responded(self) -> None:
        self.responded_s = time.monotonic()
        self._check_end()

    def _check_end(self) -> None:
        if self.responded_s is not None and self._num_running == 0:
            self.ended_s = time.monotonic()
            self.tell(self)

    @property
    def time_per_output_token_s(self) -> float | None:
        """A choice's mean time per token after its first."""
        num_after_first = self.num_completion_tokens - self.num_answers
        if self.first_token_s is None or self.last_token_s is None or num_after_first <= 0:
            return None
        return (self.last_token_s - self.first_token_s) * self.num_answers / num_after_first


def exchange_of(scope: Scope) -> Exchange | None:
    exchange: Exchange | None = scope.get(SCOPE_KEY)
    return exchange


class Exchanges:
    """Follows every request. Each response says the request's id, in x-request-id: the client's own, if it gave one of
    letters, digits and "_.-"; `app.state.exchange_ends` are told of the end."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        ends = scope["app"].state.exchange_ends

        def tell(exchange: Exchange) -> None:
            for end in ends:
                end(exchange)

        exchange = Exchange(_request_id(scope), scope["method"], scope["headers"], tell)
        id_header = (b"x-request-id", exchange.id.encode())
        scope[SCOPE_KEY] = exchange

        async def named_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), id_header]}
            await send(message)

        try:
            await self._app(scope, receive, named_send)
        finally:
            exchange.route = getattr(scope.get("route"), "path", None)
            exchange.responded()


def _request_id(scope: Scope) -> str:
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode() if REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
