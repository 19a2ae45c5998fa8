"""Calls of tools in a model's text, found while the text comes.

Events do not depend on how the text was cut into pieces. Arguments are passed on as they are written, as text; what
looks like a call but names no known tool, or is not the JSON that a call is made of, is content like any other text.
A call that breaks off after its name and the beginning of its arguments stays a call: its arguments end there.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from tinycluster.engine.call_scanner import SPACE, CallScanner
from tinycluster.engine.tool_format import CALL_BEGIN, CALL_END, ToolFormat
from tinycluster.engine.tool_format import tool_format_of as tool_format_of

PYTHON_TAG = "<|python_tag|>"


@dataclass(frozen=True)
class Content:
    text: str


@dataclass(frozen=True)
class ToolCallStarted:
    """`index` counts an answer's calls from 0."""

    index: int
    name: str


@dataclass(frozen=True)
class ToolCallArguments:
    """The next part of the arguments of call `index`: JSON as the model wrote it, perhaps malformed."""

    index: int
    text: str


ToolEvent = Content | ToolCallStarted | ToolCallArguments


class ToolCallParser(Protocol):
    """Events of one piece are joined where they continue each other. `num_calls` counts the calls begun so far."""

    num_calls: int

    def push(self, text: str) -> list[ToolEvent]: ...

    def finish(self) -> list[ToolEvent]:
        """What was held back, at the end of the text."""
        ...


def tool_call_parser(format: ToolFormat, names: Collection[str], *, parallel: bool = True) -> ToolCallParser:
    """A parser for one answer. `names` are the tools that may be called; without `parallel`, calls after the first
    are dropped."""
    return (_Hermes if format == "hermes" else _Llama3)(frozenset(names), parallel)


class _Parser:
    """What both forms share: the events, and one call being read."""

    argument_keys: tuple[str, ...] = ()

    def __init__(self, names: frozenset[str], parallel: bool) -> None:
        self._names, self._parallel = names, parallel
        self._events: list[ToolEvent] = []
        self._call: CallScanner | None = None
        self._has_started = False
        self.num_calls = 0
        # Text of which it is not known yet whether it is content: spaces before a call, the beginning of a marker.
        self._held = ""

    def push(self, text: str) -> list[ToolEvent]:
        for character in text:
            self._feed(character)
        return self._taken()

    def finish(self) -> list[ToolEvent]:
        self._finish()
        return self._taken()

    def _feed(self, character: str) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        if self._call is not None and not self._has_started:
            self._say(self._held + self._call.raw)
        elif self._call is None and (self._held.strip(SPACE + ";") or not self.num_calls):
            self._say(self._held)
        self._held, self._call = "", None

    def _taken(self) -> list[ToolEvent]:
        events, self._events = self._events, []
        return events

    def _say(self, text: str) -> None:
        if not text:
            return
        if self._events and isinstance(last := self._events[-1], Content):
            self._events[-1] = Content(last.text + text)
        else:
            self._events.append(Content(text))

    def _argue(self, text: str) -> None:
        index = self.num_calls - 1
        if not text or self._is_surplus:
            return
        if self._events and isinstance(last := self._events[-1], ToolCallArguments) and last.index == index:
            self._events[-1] = ToolCallArguments(index, last.text + text)
        else:
            self._events.append(ToolCallArguments(index, text))

    @property
    def _is_surplus(self) -> bool:
        return self.num_calls > 1 and not self._parallel

    def _open(self, character: str) -> None:
        """A call may begin with this character."""
        self._call, self._has_started = CallScanner(self._names, self.argument_keys), False
        self._scan(character)

    def _scan(self, character: str) -> bool:
        """Give the open call a character. Returns whether the call took it; a broken or complete call is closed."""
        call = self._call
        assert call is not None
        call.feed(character)
        if call.has_begun and not self._has_started:
            self._has_started, self._held = True, ""
            self.num_calls += 1
            if not self._is_surplus:
                self._events.append(ToolCallStarted(self.num_calls - 1, call.name or ""))
        self._argue(call.take_arguments())
        if call.is_broken:
            if not self._has_started:
                self._say(self._held + call.raw)
                self._held = ""
            self._call = None
            return False
        if call.is_done:
            self._call = None
        return True


class _Hermes(_Parser):
    """Content, then calls between their markers; spaces around calls belong to neither."""

    argument_keys = ("arguments", "parameters")

    def __init__(self, names: frozenset[str], parallel: bool) -> None:
        super().__init__(names, parallel)
        self._marker = ""
        # After a call comes the end marker, or another call, or content where the model forgot the marker.
        self._is_after_call = False

    def _feed(self, character: str) -> None:
        if self._call is not None:
            if self._scan(character):
                self._is_after_call = self._call is None
                return
            self._is_after_call = self._has_started
        self._outside(character)

    def _outside(self, character: str) -> None:
        expected = CALL_END if self._is_after_call and CALL_END.startswith(self._marker + character) else CALL_BEGIN
        if expected.startswith(self._marker + character):
            self._marker += character
            if self._marker == expected:
                self._end_marker(expected)
            return
        if self._marker:
            marker, self._marker = self._marker, ""
            self._speak(marker)
            self._outside(character)
            return
        if character in SPACE:
            self._held += "" if self._is_after_call and self.num_calls else character
        elif character == "{" and self._is_after_call:
            self._open(character)
        else:
            self._speak(character)

    def _end_marker(self, marker: str) -> None:
        self._marker = ""
        if marker == CALL_BEGIN:
            self._held += marker
            self._call, self._has_started = CallScanner(self._names, self.argument_keys), False
        self._is_after_call = marker == CALL_END

    def _speak(self, text: str) -> None:
        self._say(self._held + text)
        self._held = ""
        self._is_after_call = False

    def _finish(self) -> None:
        marker, self._marker = self._marker, ""
        if marker and not (self._is_after_call and CALL_END.startswith(marker)):
            self._speak(marker)
        super()._finish()


class _Llama3(_Parser):
    """Calls are the whole answer: the first text that is none, and all after it, is content."""

    argument_keys = ("parameters", "arguments")

    def __init__(self, names: frozenset[str], parallel: bool) -> None:
        super().__init__(names, parallel)
        self._is_content = False
        self._tag = PYTHON_TAG

    def _feed(self, character: str) -> None:
        if self._is_content:
            self._say(character)
        elif self._call is not None:
            if not self._scan(character):
                self._speak(character)
        elif self._tag in ("", PYTHON_TAG) and (character in SPACE or (character == ";" and self.num_calls)):
            self._held += character
        elif self._tag in ("", PYTHON_TAG) and character == "{":
            self._open(character)
        elif self._tag.startswith(character) and not self.num_calls:
            self._held, self._tag = self._held + character, self._tag[1:]
        else:
            self._speak(character)

    def _speak(self, text: str) -> None:
        self._is_content = True
        self._say(self._held + text)
        self._held = ""
