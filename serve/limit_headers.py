"""What an account adds to the answers that are made for it: its limits, and the end of streams with its key."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tinycluster.engine.errors import TinyclusterError
from tinycluster.serve.errors import reply_for
from tinycluster.serve.key_limits import Account

EVENTS = b"text/event-stream"


class LimitHeaders:
    """The x-ratelimit headers on answers to requests that count against limits. Other streams of events, which no
    generation ends, end as if their client had left when their key is revoked, with an event that says why.

    Nothing where server.auth is none.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["app"].state.guard.has_limits:
            await self._app(scope, receive, send)
            return
        with ExitStack() as streaming:
            answer = _Answer(scope, receive, send, streaming)
            await self._app(scope, answer.receive, answer.send)
            await answer.end_refused()


class _Answer:
    """One answer on its way. `streaming` lasts as long as it does."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, streaming: ExitStack) -> None:
        self._scope, self._receive, self._send, self._streaming = scope, receive, send, streaming
        self._error: TinyclusterError | None = None
        self._is_refused = asyncio.Event()

    def refuse(self, error: TinyclusterError) -> None:
        self._error = error
        self._is_refused.set()

    async def receive(self) -> Message:
        # Who reads a stream begins to wait for its end before it has begun.
        if "tinycluster.metered" in self._scope:
            return await self._receive()
        coming, refused = asyncio.ensure_future(self._receive()), asyncio.ensure_future(self._wait())
        try:
            await asyncio.wait({coming, refused}, return_when=asyncio.FIRST_COMPLETED)
            return coming.result() if coming.done() else refused.result()
        finally:
            coming.cancel()
            refused.cancel()

    async def _wait(self) -> Message:
        await self._is_refused.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = self._begin(message)
        await self._send(message)

    async def end_refused(self) -> None:
        if self._error is not None:
            event = b"event: error\ndata: %s\n\n" % reply_for(self._error).body()
            await self._send({"type": "http.response.body", "body": event})

    def _begin(self, message: Message) -> Message:
        metered: Account | None = self._scope.get("tinycluster.metered")
        terms = self._scope.get("tinycluster.terms")
        if metered is not None:
            limits = [(name.encode(), value.encode()) for name, value in metered.headers().items()]
            return {**message, "headers": [*message["headers"], *limits]}
        is_stream = any(name == b"content-type" and value.startswith(EVENTS) for name, value in message["headers"])
        if is_stream and terms is not None and terms.account is not None:
            self._streaming.enter_context(terms.account.streaming(self))
        return message
