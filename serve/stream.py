"""Server-sent events: one write per client and engine step, ended by `data: [DONE]`."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import NamedTuple

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tinycluster.engine.errors import TinyclusterError
from tinycluster.serve.choices import Choices
from tinycluster.serve.chunks import DONE, EventSource
from tinycluster.serve.disconnect import ClientGoneError, unless_disconnected
from tinycluster.serve.errors import ErrorReply, reply_for
from tinycluster.serve.keep_alive import COMMENT, KeepAlive

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 15.0
"""A stream in which nothing comes for so long gets a comment, which ends the time for an HTTP error, too."""


class Write(NamedTuple):
    """What one engine step added to the body."""

    content: bytes
    is_last: bool


Commit = Callable[[], Awaitable[str]]
"""Keeps what was answered; the events that say so."""


async def events(choices: Choices, chunks: EventSource, commit: Commit | None = None) -> AsyncGenerator[Write]:
    """The body, one item per engine step. The roles go out with the first tokens, the end with the last ones.

    With `commit` the end comes after it, for itself; what it raises ends the stream.
    """
    opened, ended = set[int](), set[int]()
    async with aclosing(choices.steps()) as steps:
        async for step in steps:
            parts = []
            for choice, delta in step:
                if choice not in opened:
                    opened.add(choice)
                    parts.append(chunks.opening(choice))
                if delta.finish_reason is not None:
                    ended.add(choice)
                parts.append(chunks.delta(choice, delta))
            if is_last := len(ended) == choices.num_choices:
                parts += [chunks.usage(choices.usage()), DONE if commit is None else ""]
            if any(parts):
                yield Write("".join(parts).encode(), is_last and commit is None)
            if is_last and commit is not None:
                yield Write((await commit() + DONE).encode(), is_last)


class EventResponse(Response):
    """Sends the writes. An error before the first is a plain HTTP error; a later one becomes the last event, which
    `failed` makes of it.

    A client that goes away ends the writing at once. One that does not read loses its connection (connection.py).
    """

    def __init__(self, writes: AsyncGenerator[Write], failed: Callable[[ErrorReply], str]) -> None:
        self._writes, self._failed = writes, failed
        self.status_code = 200
        self.background = None
        self.body = b""
        # The last one asks nginx, and what follows its ways, to pass every event on as it comes.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        self.init_headers({"content-type": "text/event-stream; charset=utf-8", **headers})
        # Response computes a length for its empty body; a stream has none.
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with suppress(ClientGoneError):
            await unless_disconnected(receive, self._send_all(scope, receive, send))

    async def _send_all(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False
        start: Message = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}

        async def send_comment() -> None:
            nonlocal has_started
            if not has_started:
                has_started = True
                await send(start)
            await send({"type": "http.response.body", "body": COMMENT, "more_body": True})

        keep_alive = KeepAlive(send_comment, KEEP_ALIVE_S)
        try:
            async with keep_alive, aclosing(self._writes) as writes:
                async for content, is_last in writes:
                    keep_alive.num_sent += 1
                    if not has_started:
                        has_started = True
                        await send(start)
                    await send({"type": "http.response.body", "body": content, "more_body": not is_last})
        except Exception as error:
            if not isinstance(error, TinyclusterError):
                log.exception("a stream failed")
            reply = reply_for(error)
            if not has_started:
                await reply.response()(scope, receive, send)
                return
            content = (self._failed(reply) + DONE).encode()
            await send({"type": "http.response.body", "body": content})


class EventStream(EventResponse):
    """Streams the choices. A client that goes away aborts them at once."""

    def __init__(self, choices: Choices, chunks: EventSource, commit: Commit | None = None) -> None:
        super().__init__(events(choices, chunks, commit), chunks.failed)
        self._choices = choices

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._choices.abort()
