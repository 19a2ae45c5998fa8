"""How a model writes calls of tools, as far as its chat template tells, and what a model reads that has no such way.

    hermes   <tool_call>\\n{"name": "f", "arguments": {"x": 1}}\\n</tool_call>, one pair of tags for each call
             (Nous Hermes 2 Pro and later, Qwen 2.5, Qwen 3)
    llama3   {"name": "f", "parameters": {"x": 1}}, the whole answer, several separated by semicolons; a
             <|python_tag|> may stand in front (Llama 3.1 and later)

A template of neither kind gets no tools. They are described in a message instead, in the Hermes form, and calls and
their results become plain text: a model that never learned to call tools can follow that, and with
tool_choice "required" it has to.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

ToolFormat = Literal["hermes", "llama3"]
FALLBACK: ToolFormat = "hermes"
CALL_BEGIN, CALL_END = "<tool_call>", "</tool_call>"
INSTRUCTIONS = """You can call functions. They are described between <tools> and </tools>, one JSON object per line:
<tools>
%s
</tools>
To call a function, write its name and its arguments as a JSON object between <tool_call> and </tool_call>, like this:
<tool_call>
{"name": "the name of the function", "arguments": {"the name of an argument": "its value"}}
</tool_call>"""

Message = Mapping[str, Any]


def tool_format_of(source: str) -> ToolFormat | None:
    """The form that a template's source shows. None if it takes no tools, or in a form that is not known here."""
    if not re.search(r"\btools\b", source):
        return None
    if CALL_BEGIN in source:
        # Others write tags of XML between the same markers.
        is_json = re.search(r"\\?\"arguments\\?\"", source) is not None
        return "hermes" if is_json and not re.search(r"<function=|<arg_key>", source) else None
    if "ipython" in source and re.search(r"\\?\"parameters\\?\"", source):
        return "llama3"
    return None


def with_parsed_arguments(messages: Sequence[Message]) -> list[Message]:
    """Arguments of earlier calls as objects: templates of both forms write them as JSON themselves."""
    return [
        message
        if not message.get("tool_calls")
        else {**message, "tool_calls": list(map(_parsed, message["tool_calls"]))}
        for message in messages
    ]


def _parsed(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call["function"]
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": value}} if isinstance(value, dict) else call


def without_tools(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], *, takes_system: bool
) -> list[Message]:
    """The conversation for a template that knows neither tools nor calls nor their results.

    One that `takes_system` messages gets the tools there, another in the user's first message.
    """
    told: list[Message] = []
    is_after_result = False
    for message in messages:
        is_result = message.get("role") == "tool"
        if is_result:
            _add_result(told, message, is_after_result)
        else:
            told.append(_spoken(message) if message.get("tool_calls") else message)
        is_after_result = is_result
    if not tools:
        return told
    text = INSTRUCTIONS % "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return _with_system(told, text) if takes_system else _with_first_user(told, text)


def _spoken(message: Message) -> Message:
    calls = [f"{CALL_BEGIN}\n{_call_text(call['function'])}\n{CALL_END}" for call in message["tool_calls"]]
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": "\n".join(filter(None, [message.get("content"), *calls]))}


def _call_text(function: Mapping[str, Any]) -> str:
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return f'{{"name": {json.dumps(function["name"], ensure_ascii=False)}, "arguments": {text or "{}"}}}'


def _add_result(told: list[Message], message: Message, is_after_result: bool) -> None:
    """Results of several calls are one turn of the user, because templates may want turns to alternate."""
    text = f"<tool_response>\n{message.get('content') or ''}\n</tool_response>"
    if is_after_result:
        text = f"{told.pop()['content']}\n{text}"
    told.append({"role": "user", "content": text})


def _with_system(messages: Sequence[Message], text: str) -> list[Message]:
    first = messages[0] if messages else {}
    if first.get("role") == "system":
        content = f"{first.get('content') or ''}\n\n{text}".strip()
        return [{**first, "content": content}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _with_first_user(messages: Sequence[Message], text: str) -> list[Message]:
    for index, message in enumerate(messages):
        if message.get("role") == "user":
            told = {**message, "content": f"{text}\n\n{message.get('content') or ''}"}
            return [*messages[:index], told, *messages[index + 1 :]]
    return [{"role": "user", "content": text}, *messages]
