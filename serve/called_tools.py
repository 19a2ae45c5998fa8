"""Calls of tools as clients read them, made from the events of a parser."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from tinycluster.engine.tool_calls import Content, ToolCallArguments, ToolCallStarted, ToolEvent


def delta_of(event: ToolEvent) -> str:
    """The JSON of a chunk's `delta`. A call has its id and its name in its first one only."""
    if isinstance(event, Content):
        return f'{{"content": {quoted(event.text)}}}'
    if isinstance(event, ToolCallStarted):
        call: dict[str, Any] = {"index": event.index, **_new_call(event.name)}
    else:
        call = {"index": event.index, "function": {"arguments": event.text}}
    return json.dumps({"tool_calls": [call]})


def _new_call(name: str) -> dict[str, Any]:
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": {"name": name, "arguments": ""}}


class CalledTools:
    """The content and the calls of one answer, gathered from its events."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._calls: list[dict[str, Any]] = []
        self._arguments: list[list[str]] = []

    def add(self, events: Sequence[ToolEvent]) -> None:
        for event in events:
            if isinstance(event, Content):
                self._content.append(event.text)
            elif isinstance(event, ToolCallStarted):
                self._calls.append(_new_call(event.name))
                self._arguments.append([])
            elif isinstance(event, ToolCallArguments):
                self._arguments[event.index].append(event.text)

    def message(self) -> dict[str, Any]:
        """The fields of the assistant's message. An answer that only calls has no content."""
        content = "".join(self._content)
        if not self._calls:
            return {"content": content}
        for call, arguments in zip(self._calls, self._arguments, strict=True):
            call["function"]["arguments"] = "".join(arguments)
        return {"content": content or None, "tool_calls": self._calls}
