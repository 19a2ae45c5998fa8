"""An answer of /v1/responses as it grows: the object that clients get, and the events that tell of every change.

response.created, response.in_progress
a message        output_item.added, content_part.added, output_text.delta …, output_text.done, content_part.done,
                 output_item.done
a function call  output_item.added, function_call_arguments.delta …, function_call_arguments.done, output_item.done
response.completed | response.incomplete | response.failed

A response that is stored ends when its end is stored: `usage` has all but the last event, `commit` gives that.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from tinycluster.cluster.generation import Delta
from tinycluster.engine.request import SamplingParams
from tinycluster.engine.tool_calls import Content, ToolCallParser, ToolCallStarted, ToolEvent
from tinycluster.serve.errors import ErrorReply
from tinycluster.serve.fields import or_default
from tinycluster.serve.responses_fields import ResponsesRequest
from tinycluster.serve.responses_items import message_item, new_id, text_part
from tinycluster.serve.responses_logprobs import MessageLogprobs, Written, encoded, filled

IN_PROGRESS = ("in_progress", "queued")
Keep = Callable[[Mapping[str, Any]], Awaitable[None]]
"""Stores a response as it ends."""


def new_response(asked: ResponsesRequest, model: str, defaults: SamplingParams, created_at: int) -> dict[str, Any]:
    """The object before anything is generated. Defaults are shown as they are used."""
    text_format = asked.text.format if asked.text is not None else None
    # The specification has no null for these; nor for the usage, which comes at the end.
    labels = {"prompt_cache_key": asked.prompt_cache_key, "safety_identifier": asked.safety_identifier}
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": created_at,
        "completed_at": None,
        "status": "in_progress",
        "background": bool(asked.background),
        "conversation": None if asked.conversation is None else {"id": asked.conversation},
        "error": None,
        "incomplete_details": None,
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "max_tool_calls": asked.max_tool_calls,
        "model": model,
        "output": [],
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": asked.previous_response_id,
        "reasoning": {"effort": None, "summary": None},
        "service_tier": "default",
        "store": asked.is_stored,
        "temperature": or_default(asked.temperature, defaults.temperature),
        "text": {"format": {"type": "text"} if text_format is None else text_format.as_answered()},
        "tool_choice": _shown_choice(asked.tool_choice),
        "tools": [tool.model_dump() for tool in asked.tools or ()],
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": or_default(asked.top_p, defaults.top_p),
        "presence_penalty": asked.presence_penalty or 0.0,
        "frequency_penalty": asked.frequency_penalty or 0.0,
        "truncation": asked.truncation or "disabled",
        "metadata": asked.metadata or {},
        **{name: label for name, label in labels.items() if label is not None},
    }


def _shown_choice(choice: Any) -> Any:
    return {"type": "function", "name": choice["function"]["name"]} if isinstance(choice, dict) else choice or "auto"


class ResponseEvents:
    """What EventStream takes as chunks: text of events for every change, while `response` changes with it.

    `now` is the time of day in seconds. With a `parser`, calls of functions are found in the text. `logprobs` are shown
    where they are given.
    """

    def __init__(
        self,
        response: dict[str, Any],
        now: Callable[[], float],
        keep: Keep,
        parser: ToolCallParser | None = None,
        logprobs: MessageLogprobs | None = None,
    ) -> None:
        self.response, self._logprobs = response, logprobs
        self._now, self._keep, self._parser = now, keep, parser
        self._num_events = 0
        self.is_ending = False
        self._end: dict[str, Any] | None = None
        self._finish_reason: str | None = None
        self._item: dict[str, Any] | None = None
        self._pieces: list[str] = []

    @property
    def written(self) -> Written:
        """The log-probabilities of the messages that have ended."""
        return {} if self._logprobs is None else self._logprobs.written

    def encoded(self) -> str:
        return encoded(self.response, self.written)

    @property
    def is_told(self) -> bool:
        """Whether anybody can know of the response."""
        return self._num_events > 0

    @property
    def is_over(self) -> bool:
        return self.response["status"] not in IN_PROGRESS

    def opening(self, _choice: int) -> str:
        return self._whole("response.created") + self._whole("response.in_progress")

    def delta(self, _choice: int, delta: Delta) -> str:
        if delta.finish_reason is not None:
            self._finish_reason = delta.finish_reason
        if self._logprobs is not None:
            self._logprobs.add(delta)
        if not delta.text:
            return ""
        return self.text(delta.text) if self._parser is None else self._parsed(self._parser.push(delta.text))

    def _parsed(self, parts: Sequence[ToolEvent]) -> str:
        events = []
        for part in parts:
            if isinstance(part, ToolCallStarted):
                events.append(self.call(part.name))
            else:
                events.append(self.text(part.text) if isinstance(part, Content) else self.arguments(part.text))
        return "".join(events)

    def text(self, text: str) -> str:
        """The model says something; what comes next to a message continues it."""
        begin = "" if self._is_open("message") else self._close("completed") + self._begin_message()
        self._pieces.append(text)
        logprobs = "" if self._logprobs is None else self._logprobs.take()
        return f'{begin}{self._begin_of_delta}"delta": {quoted(text)}, {self._place}, "logprobs": [{logprobs}]}}\n\n'

    def call(self, name: str) -> str:
        """The model begins to call a function."""
        ended = self._close("completed")
        self._drop_logprobs()
        item = {"id": new_id("fc"), "type": "function_call", "call_id": new_id("call"), "name": name}
        return ended + self._open(item | {"arguments": "", "status": "in_progress"})

    def arguments(self, text: str) -> str:
        self._drop_logprobs()
        self._pieces.append(text)
        return f'{self._begin_of_delta}"delta": {quoted(text)}, {self._place}}}\n\n'

    def usage(self, usage: Mapping[str, Any]) -> str:
        """The end of the answer, with the usage of its chat request."""
        cut_by = {"length": "max_output_tokens", "content_filter": "content_filter"}.get(self._finish_reason or "")
        is_whole = cut_by is None
        held_back = "" if self._parser is None else self._parsed(self._parser.finish())
        begin = "" if self._item is not None or self.response["output"] else self._begin_message()
        if self._logprobs is not None and self._logprobs.has_waiting and self._is_open("message"):
            begin += self.text("")
        status = "completed" if is_whole else "incomplete"
        ended = begin + self._close(status)
        self._end = {
            "status": status,
            "usage": _usage(usage),
            "completed_at": int(self._now()) if is_whole else None,
            "incomplete_details": None if is_whole else {"reason": cut_by},
        }
        return held_back + ended

    async def commit(self) -> str:
        """The last event of an answer that nobody cut short, once it is stored. What storing raises leaves the response
        in progress, to be told as `failed`."""
        assert self._end is not None
        if self.is_over:
            return ""
        self.is_ending = True
        try:
            await self._keep(self.response | self._end)
        finally:
            self.is_ending = False
        self.response.update(self._end)
        return self._whole(f"response.{self.response['status']}")

    def failed(self, reply: ErrorReply) -> str:
        """The end where generating or storing went wrong."""
        if self.is_over:
            return ""
        # Comments may have begun the stream before there was anything to tell.
        begin = "" if self._num_events else self.opening(0)
        self._close("incomplete")
        self.response |= {"status": "failed", "error": {"code": "server_error", "message": reply.message}}
        return begin + self._whole("response.failed")

    def cancel(self) -> None:
        """The end where nobody wants the rest, unless the answer is whole and being stored."""
        if not (self.is_over or self.is_ending):
            self._close("incomplete")
            self.response["status"] = "cancelled"

    def _is_open(self, kind: str) -> bool:
        return self._item is not None and self._item["type"] == kind

    def _begin_message(self) -> str:
        item = message_item("assistant", [""], "in_progress")
        return self._open(item | {"content": []}, item) + self._part("response.content_part.added", text_part(""))

    def _open(self, shown: dict[str, Any], item: dict[str, Any] | None = None) -> str:
        index = len(self.response["output"])
        self._item, self._pieces = item or shown, []
        is_message = self._item["type"] == "message"
        content_index = ', "content_index": 0' if is_message else ""
        self._place = f'"item_id": {quoted(self._item["id"])}, "output_index": {index}{content_index}'
        self._delta_kind = f"response.{'output_text' if is_message else 'function_call_arguments'}.delta"
        return self._event("response.output_item.added", output_index=index, item=shown)

    def _close(self, status: str) -> str:
        """The item that is open, if any, has all it will have."""
        if self._item is None:
            return ""
        item, text, self._item = self._item, "".join(self._pieces), None
        item["status"] = status
        if item["type"] == "message":
            item["content"] = [text_part(text)]
            logprobs = self._end_logprobs(item["id"])
            events = filled(self._at(item, "response.output_text.done", text=text, logprobs=[]), logprobs)
            events += filled(self._part("response.content_part.done", item["content"][0], item), logprobs)
        else:
            item["arguments"] = text
            name, logprobs = item["name"], ""
            events = self._at(item, "response.function_call_arguments.done", name=name, arguments=text)
        index = len(self.response["output"])
        self.response["output"].append(item)
        return events + filled(self._event("response.output_item.done", output_index=index, item=item), logprobs)

    def _drop_logprobs(self) -> None:
        """The tokens that are waiting are a call's."""
        if self._logprobs is not None:
            self._logprobs.drop()

    def _end_logprobs(self, message_id: str) -> str:
        if self._logprobs is None:
            return ""
        self._logprobs.end(message_id)
        return self._logprobs.written[message_id]

    def _part(self, kind: str, part: Mapping[str, Any], item: Mapping[str, Any] | None = None) -> str:
        item = self._item if item is None else item
        assert item is not None
        return self._at(item, kind, part=part)

    def _at(self, item: Mapping[str, Any], kind: str, **fields: Any) -> str:
        place = {"item_id": item["id"], "output_index": len(self.response["output"])}
        if item["type"] == "message":
            place["content_index"] = 0
        return self._event(kind, **place, **fields)

    @property
    def _begin_of_delta(self) -> str:
        """A delta comes with every token: it is written without a dict."""
        self._num_events += 1
        kind = self._delta_kind
        return f'event: {kind}\ndata: {{"type": "{kind}", "sequence_number": {self._num_events - 1}, '

    def _whole(self, kind: str) -> str:
        self._num_events += 1
        number, response = self._num_events - 1, self.encoded()
        return f'event: {kind}\ndata: {{"type": "{kind}", "sequence_number": {number}, "response": {response}}}\n\n'

    def _event(self, kind: str, **fields: Any) -> str:
        self._num_events += 1
        payload = {"type": kind, "sequence_number": self._num_events - 1, **fields}
        return f"event: {kind}\ndata: {json.dumps(payload)}\n\n"


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    num_cached = usage.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": num_cached, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }
