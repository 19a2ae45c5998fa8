from __future__ import annotations

from typing import Any

import pytest

from tinycluster.engine.errors import RequestError
from tinycluster.engine.tool_definitions import read_tool_use

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


def tool(name: Any = "get", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def test_tools_are_read_with_what_templates_need() -> None:
    use = read_tool_use([tool(description="d", parameters=PARAMETERS, strict=True), tool("b")], None, None)
    assert use is not None
    assert (use.choice, use.is_parallel, use.names) == ("auto", True, {"get", "b"})
    assert [each.is_strict for each in use.tools] == [True, False]
    nothing = {"type": "object", "properties": {}, "additionalProperties": False}
    assert use.template_tools() == [
        tool(description="d", parameters=PARAMETERS),
        tool("b", parameters=nothing),
    ]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("auto", "auto"),
        ("required", "required"),
        ({"type": "function", "function": {"name": "get"}}, "get"),
        ({"type": "function", "name": "get"}, "get"),
    ],
)
def test_tools_may_be_called_must_be_called_or_one_of_them_must(choice: Any, expected: str) -> None:
    use = read_tool_use([tool()], choice, False)
    assert use is not None
    assert use.choice == expected
    assert not use.is_parallel


def test_a_model_that_may_call_nothing_is_told_of_no_tools() -> None:
    assert read_tool_use([tool()], "none", None) is None
    assert read_tool_use([], "auto", True) is None
    assert read_tool_use(None, None, None) is None


DEEP: dict[str, Any] = {}
for _ in range(100):
    DEEP = {"items": DEEP}


@pytest.mark.parametrize(
    ("tools", "choice", "parallel", "param"),
    [
        ("get", None, None, "tools"),
        ([tool(f"t{i}") for i in range(10_000)], None, None, "tools"),
        ([7], None, None, "tools[0]"),
        ([{"function": {"name": "a"}}], None, None, "tools[0].type"),
        ([{"type": "retrieval"}], None, None, "tools[0].type"),
        ([{"type": "function"}], None, None, "tools[0].function"),
        ([tool(None)], None, None, "tools[0].function.name"),
        ([tool("")], None, None, "tools[0].function.name"),
        ([tool('a"\n')], None, None, "tools[0].function.name"),
        ([tool("a\n")], None, None, "tools[0].function.name"),
        ([tool("é")], None, None, "tools[0].function.name"),
        ([tool("a" * 65)], None, None, "tools[0].function.name"),
        ([tool("required")], None, None, "tools[0].function.name"),
        ([tool(), tool()], None, None, "tools[1].function.name"),
        ([tool(description=1)], None, None, "tools[0].function.description"),
        ([tool(strict="yes")], None, None, "tools[0].function.strict"),
        ([tool(parameters=[])], None, None, "tools[0].function.parameters"),
        ([tool(parameters="{}")], None, None, "tools[0].function.parameters"),
        ([tool(parameters={"type": "string"})], None, None, "tools[0].function.parameters.type"),
        ([tool(parameters=DEEP)], None, None, "tools[0].function.parameters"),
        ([tool()], "sometimes", None, "tool_choice"),
        ([tool()], ["get"], None, "tool_choice"),
        ([tool()], {"type": "function", "function": {"name": "set"}}, None, "tool_choice"),
        ([tool()], {"type": "function", "function": {"name": 7}}, None, "tool_choice"),
        ([tool()], {"type": "function", "function": "get"}, None, "tool_choice"),
        ([tool()], {"type": "allowed_tools"}, None, "tool_choice"),
        ([], "required", None, "tool_choice"),
        (None, {"type": "function", "function": {"name": "get"}}, None, "tool_choice"),
        ([tool()], None, 1, "parallel_tool_calls"),
    ],
)
def test_a_malformed_field_is_named(tools: Any, choice: Any, parallel: Any, param: str) -> None:
    with pytest.raises(RequestError) as raised:
        read_tool_use(tools, choice, parallel)
    assert raised.value.param == param
    assert raised.value.message.startswith(param)
