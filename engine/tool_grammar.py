"""Rules that make a model call tools: in the form of its template, with arguments that follow the tools' schemas."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tinycluster.engine.errors import RequestError
from tinycluster.engine.grammar_source import JSON_SETTINGS, GrammarSpec
from tinycluster.engine.json_schema_limits import MAX_PATTERN_CHARS, num_pattern_chars
from tinycluster.engine.tool_definitions import Tool, ToolChoice
from tinycluster.engine.tool_format import CALL_BEGIN, CALL_END, ToolFormat

MAX_CALLS = 16
"""Of one answer that must hold calls: a model that never stops calling would fill the context."""


def tool_grammar(
    format: ToolFormat, tools: Sequence[Tool], tool_choice: ToolChoice, parallel: bool
) -> GrammarSpec | None:
    """None where the model is free not to call. Without `parallel`, and for a named tool, there is exactly one call.

    A tool that is not `strict` may have keywords in its schema that are not supported: they are ignored. RequestError
    where the tools' patterns together are larger than one schema's may be.
    """
    if tool_choice in ("none", "auto"):
        return None
    named = [tool for tool in tools if tool_choice in ("required", tool.name)]
    if sum(num_pattern_chars(tool.parameters) for tool in named) > MAX_PATTERN_CHARS:
        raise RequestError(f"the tools' patterns have more than {MAX_PATTERN_CHARS} characters together", "tools")
    bodies = [_body(index, tool, format) for index, tool in enumerate(named)]
    calls = " | ".join(f"body_{index}" for index in range(len(named)))
    if format == "hermes":
        call, separator = f"{_quoted(CALL_BEGIN + chr(10))} ({calls}) {_quoted(chr(10) + CALL_END)}", '"\\n"'
    else:
        call, separator = calls, '"; "'
    more = f" ({separator} call){{0,{MAX_CALLS - 1}}}" if parallel and tool_choice == "required" else ""
    return GrammarSpec("tool_calls", "\n".join([f"start: call{more}", f"call: {call}", *bodies, ""]))


def _body(index: int, tool: Tool, format: ToolFormat) -> str:
    key = "arguments" if format == "hermes" else "parameters"
    head = f'{{"name": {json.dumps(tool.name)}, "{key}": '
    return f"body_{index}: {_quoted(head)} %json {json.dumps(_schema(tool))} {_quoted('}')}"


def _schema(tool: Tool) -> Mapping[str, Any]:
    settings = {**JSON_SETTINGS, "lenient": not tool.is_strict}
    return {**tool.parameters, "type": "object", "x-guidance": settings}


def _quoted(text: str) -> str:
    return json.dumps(text)
