"""The tools that a request offers, checked: which functions there are, and which of them may or must be called."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tinycluster.engine.errors import RequestError
from tinycluster.engine.json_schema_limits import check_schema

MAX_TOOLS = 128
MAX_DESCRIPTION_CHARS = 2**16
NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")

ToolChoice = Literal["none", "auto", "required"] | str
"""Or the name of the tool that must be called; no tool has one of the three words as its name."""
_WORDS = ("none", "auto", "required")


@dataclass(frozen=True)
class Tool:
    """`parameters` is the JSON schema of the arguments, always of an object."""

    name: str
    parameters: Mapping[str, Any]
    description: str | None = None
    is_strict: bool = False

    def as_template_knows(self) -> dict[str, Any]:
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": {**function, "parameters": dict(self.parameters)}}


@dataclass(frozen=True)
class ToolUse:
    """What a request says of tools. With the choice "none" the model is told of no tools, and nothing is parsed."""

    tools: tuple[Tool, ...]
    choice: ToolChoice = "auto"
    is_parallel: bool = True

    @property
    def names(self) -> frozenset[str]:
        return frozenset(tool.name for tool in self.tools)

    def template_tools(self) -> list[dict[str, Any]]:
        return [tool.as_template_knows() for tool in self.tools]


def read_tool_use(tools: Any, tool_choice: Any, parallel_tool_calls: Any) -> ToolUse | None:
    """From the fields of a request, as JSON has them. None without tools, or where none may be called.

    RequestError names the field at fault.
    """
    if parallel_tool_calls is not None and not isinstance(parallel_tool_calls, bool):
        raise RequestError("parallel_tool_calls must be a boolean", "parallel_tool_calls")
    read = _tools(tools)
    choice = _choice(tool_choice, {tool.name for tool in read})
    if not read or choice == "none":
        return None
    return ToolUse(read, choice, parallel_tool_calls is not False)


def _tools(value: Any) -> tuple[Tool, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise RequestError("tools must be a list", "tools")
    if len(value) > MAX_TOOLS:
        raise RequestError(f"tools must have at most {MAX_TOOLS} entries, got {len(value)}", "tools")
    tools = tuple(_tool(entry, f"tools[{index}]") for index, entry in enumerate(value))
    names = [tool.name for tool in tools]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise RequestError(f"tools[{index}].function.name {name!r} is taken", f"tools[{index}].function.name")
    return tools


def _tool(entry: Any, param: str) -> Tool:
    if not isinstance(entry, dict):
        raise RequestError(f"{param} must be an object", param)
    if entry.get("type") != "function":
        raise RequestError(f"{param}.type must be 'function'", f"{param}.type")
    function, param = entry.get("function"), f"{param}.function"
    if not isinstance(function, dict):
        raise RequestError(f"{param} must be an object", param)
    name, description, strict = function.get("name"), function.get("description"), function.get("strict")
    if not isinstance(name, str) or not NAME.fullmatch(name) or name in _WORDS:
        rule = "must be 1 to 64 of the characters a-z, A-Z, 0-9, _ and -, and not none, auto or required"
        raise RequestError(f"{param}.name {rule}", f"{param}.name")
    if description is not None and (not isinstance(description, str) or len(description) > MAX_DESCRIPTION_CHARS):
        rule = f"must be a string of at most {MAX_DESCRIPTION_CHARS} characters"
        raise RequestError(f"{param}.description {rule}", f"{param}.description")
    if strict is not None and not isinstance(strict, bool):
        raise RequestError(f"{param}.strict must be a boolean", f"{param}.strict")
    return Tool(name, _parameters(function.get("parameters"), f"{param}.parameters"), description, strict is True)


def _parameters(value: Any, param: str) -> Mapping[str, Any]:
    """A function that says nothing of its parameters has none."""
    if value is None:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    if not isinstance(value, dict):
        raise RequestError(f"{param} must be a JSON schema of an object", param)
    if value.get("type", "object") != "object":
        raise RequestError(f"{param}.type must be 'object'", f"{param}.type")
    try:
        check_schema(value)
    except RequestError as error:
        raise RequestError(f"{param}: {error.message}", param) from error
    return value


def _choice(value: Any, names: set[str]) -> ToolChoice:
    if value is None or value == "auto":
        return "auto"
    if value == "none":
        return "none"
    if value == "required":
        if not names:
            raise RequestError("tool_choice 'required' needs tools", "tool_choice")
        return "required"
    name = _chosen_name(value)
    if name is None:
        rule = "must be 'none', 'auto', 'required' or {'type': 'function', 'function': {'name': '…'}}"
        raise RequestError(f"tool_choice {rule}", "tool_choice")
    if name not in names:
        raise RequestError(f"tool_choice names {name[:64]!r}, which is not among the tools", "tool_choice")
    return name


def _chosen_name(value: Any) -> str | None:
    """The name stands in `function`, or beside `type` as in requests to /v1/responses."""
    if not isinstance(value, dict) or value.get("type") != "function":
        return None
    function = value.get("function", value)
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None
