"""Server-sent events: one write per client and engine step, ended by `data: [DONE]`."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import NamedTuple

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from tinycluster.engine.errors import TinyclusterError
from tinycluster.serve.choices import Choices
from tinycluster.serve.chunks import DONE, EventSource
from tinycluster.serve.disconnect import ClientGoneError, unless_disconnected
from tinycluster.serve.errors import reply_for
from tinycluster.serve.keep_alive import COMMENT, KeepAlive

log = logging.getLogger(__name__)

KEEP_ALIVE_S = 15.0
"""A stream in which nothing comes for so long gets a comment, which ends the time for an HTTP error, too."""


class Write(NamedTuple):
    """What one engine step added to the body."""

    content: bytes
    is_last: bool


async def events(choices: Choices, chunks: EventSource) -> AsyncGenerator[Write]:
    """The body, one item per engine step. The roles go out with the first tokens, the end with the last ones."""
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
            is_last = len(ended) == choices.num_choices
            if is_last:
                parts += [chunks.usage(choices.usage()), DONE]
            if any(parts):
                yield Write("".join(parts).encode(), is_last)


class EventStream(Response):
    """Streams the choices. An error before the first event is a plain HTTP error; a later one is the last event.

    A client that goes away aborts its choices at once. One that does not read loses its connection (connection.py).
    """

    def __init__(self, choices: Choices, chunks: EventSource) -> None:
        self._choices, self._chunks = choices, chunks
        self.status_code = 200
        self.background = None
        self.body = b""
        # The last one asks nginx, and what follows its ways, to pass every event on as it comes.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        self.init_headers({"content-type": "text/event-stream; charset=utf-8", **headers})
        # Response computes a length for its empty body; a stream has none.
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with suppress(ClientGoneError):
                await unless_disconnected(receive, self._send_all(scope, receive, send))
        finally:
            self._choices.abort()

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
            async with keep_alive, aclosing(events(self._choices, self._chunks)) as stream:
                async for content, is_last in stream:
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
            content = (self._chunks.failed(reply) + DONE).encode()
            await send({"type": "http.response.body", "body": content})
