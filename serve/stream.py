"""Server-sent events: one write per client and engine step, ended by `data: [DONE]`."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Literal, NamedTuple

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tinycluster.cluster.generation import Delta
from tinycluster.engine.errors import TinyclusterError
from tinycluster.serve.choices import Choices
from tinycluster.serve.disconnect import ClientGoneError, unless_disconnected
from tinycluster.serve.errors import reply_for
from tinycluster.serve.limited_send import LimitedSend

log = logging.getLogger(__name__)

SEND_TIMEOUT_S = 30.0
"""A client that does not read for so long is dropped, and its blocks are freed."""

Kind = Literal["chat.completion", "text_completion"]
DONE = "data: [DONE]\n\n"


class Chunks:
    """The JSON of one answer's chunks. What repeats in every chunk is encoded once: a token costs one string."""

    def __init__(self, kind: Kind, head: Mapping[str, Any], include_usage: bool) -> None:
        self._is_chat = kind == "chat.completion"
        self._include_usage = include_usage
        chunk = {**head, "object": "chat.completion.chunk" if self._is_chat else kind}
        self._open = f"data: {json.dumps(chunk)[:-1]}, "
        self._close = ', "usage": null}\n\n' if include_usage else "}\n\n"

    def opening(self, choice: int) -> str:
        """The first chunk of a chat choice carries the role; completions have none."""
        return self._chunk(choice, '{"role": "assistant", "content": ""}', "null") if self._is_chat else ""

    def delta(self, choice: int, delta: Delta) -> str:
        """A chunk with the text, if any, and one with the finish reason, if it is the end."""
        text = self._chunk(choice, self._text(delta.text), "null") if delta.text else ""
        if delta.finish_reason is None:
            return text
        end = f'{quoted(delta.finish_reason)}, "stop_reason": {json.dumps(delta.stop_reason)}'
        return text + self._chunk(choice, "{}" if self._is_chat else '""', end)

    def usage(self, usage: Mapping[str, int]) -> str:
        if not self._include_usage:
            return ""
        return f'{self._open}"choices": [], "usage": {json.dumps(usage)}}}\n\n'

    def _text(self, text: str) -> str:
        return f'{{"content": {quoted(text)}}}' if self._is_chat else quoted(text)

    def _chunk(self, choice: int, content: str, finish_reason: str) -> str:
        field = "delta" if self._is_chat else "text"
        end = f'"logprobs": null, "finish_reason": {finish_reason}}}]{self._close}'
        return f'{self._open}"choices": [{{"index": {choice}, "{field}": {content}, {end}'


class Write(NamedTuple):
    """What one engine step added to the body."""

    content: bytes
    is_last: bool


async def events(choices: Choices, chunks: Chunks) -> AsyncGenerator[Write]:
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

    A client that goes away, or does not read for SEND_TIMEOUT_S, aborts its choices at once.
    """

    def __init__(self, choices: Choices, chunks: Chunks) -> None:
        self._choices, self._chunks = choices, chunks
        self.status_code = 200
        self.background = None
        self.body = b""
        self.init_headers({"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"})
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
        limited = LimitedSend(send, SEND_TIMEOUT_S)
        try:
            async with limited, aclosing(events(self._choices, self._chunks)) as stream:
                async for content, is_last in stream:
                    if not has_started:
                        has_started = True
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    await limited({"type": "http.response.body", "body": content, "more_body": not is_last})
        except TimeoutError:
            log.warning("a client did not read its stream for %g s and was dropped", SEND_TIMEOUT_S)
            return
        except Exception as error:
            if not isinstance(error, TinyclusterError):
                log.exception("a stream failed")
            reply = reply_for(error)
            if not has_started:
                await reply.response()(scope, receive, send)
                return
            content = b"data: " + reply.body() + b"\n\n" + DONE.encode()
            async with asyncio.timeout(SEND_TIMEOUT_S):
                await send({"type": "http.response.body", "body": content})
