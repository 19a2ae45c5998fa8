"""The JSON of a stream's chunks, as server-sent events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from json.encoder import encode_basestring_ascii as quoted
from typing import Any, Protocol

from tinycluster.cluster.generation import Delta
from tinycluster.serve.answer_form import Kind
from tinycluster.serve.errors import ErrorReply

DONE = "data: [DONE]\n\n"


class EventSource(Protocol):
    """What a stream is made of, as text of events. `usage` is asked for once, when all choices have ended."""

    def opening(self, choice: int) -> str: ...

    def delta(self, choice: int, delta: Delta) -> str: ...

    def usage(self, usage: Mapping[str, Any]) -> str: ...

    def failed(self, reply: ErrorReply) -> str: ...


class Chunks:
    """The chunks of an answer of which only the text counts. What repeats is encoded once: a token costs one string."""

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
        return text + self._end(choice, delta.finish_reason, delta.stop_reason)

    def usage(self, usage: Mapping[str, Any]) -> str:
        if not self._include_usage:
            return ""
        return f'{self._open}"choices": [], "usage": {json.dumps(usage)}}}\n\n'

    def failed(self, reply: ErrorReply) -> str:
        """The last event of a stream that cannot go on."""
        return f"data: {reply.body().decode()}\n\n"

    def _end(self, choice: int, finish_reason: str, stop_reason: str | int | None) -> str:
        end = f'{quoted(finish_reason)}, "stop_reason": {json.dumps(stop_reason)}'
        return self._chunk(choice, "{}" if self._is_chat else '""', end)

    def _text(self, text: str) -> str:
        return f'{{"content": {quoted(text)}}}' if self._is_chat else quoted(text)

    def _chunk(self, choice: int, content: str, finish_reason: str) -> str:
        field = "delta" if self._is_chat else "text"
        end = f'"logprobs": null, "finish_reason": {finish_reason}}}]{self._close}'
        return f'{self._open}"choices": [{{"index": {choice}, "{field}": {content}, {end}'
