"""What applications do with LangChain's ChatOpenAI, against the server at argv[1]; AssertionError where it differs.

A program of its own: what LangChain imports warns.
"""

from __future__ import annotations

import asyncio
import sys

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


def main(url: str) -> None:
    models = [chat_model(url, uses_responses=uses_responses) for uses_responses in (False, True)]
    for model in models:
        calls(model)
        tool_calls(model)
        structured_output(model)
    asyncio.run(all_asynchronous_calls(models))


def chat_model(url: str, *, uses_responses: bool) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{url}/v1",
        api_key="none",  # type: ignore[arg-type]
        model="fake",
        max_retries=0,
        use_responses_api=uses_responses,
    )


class Point(BaseModel):
    """A place in the plane."""

    x: int
    y: int


@tool
def add(a: int, b: int) -> int:
    """The sum of two numbers."""
    return a + b


def tool_calls(model: ChatOpenAI) -> None:
    """The server repeats what the user says, so that the user says what the model should."""
    written = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
    with_tools = model.bind_tools([add])
    called = with_tools.invoke(written)
    (call,) = called.tool_calls
    assert (call["name"], call["args"]) == ("add", {"a": 1, "b": 2}), called
    result = add.invoke(call)
    assert with_tools.invoke([HumanMessage("1 + 2?"), called, result]).text == "3"
    streamed = None
    for chunk in with_tools.stream(written):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed is not None
    assert [(call["name"], call["args"]) for call in streamed.tool_calls] == [("add", {"a": 1, "b": 2})], streamed


def structured_output(model: ChatOpenAI) -> None:
    assert model.with_structured_output(Point).invoke('{"x": 1, "y": 2}') == Point(x=1, y=2)
    called = '<tool_call>\n{"name": "Point", "arguments": {"x": 3, "y": 4}}\n</tool_call>'
    assert model.with_structured_output(Point, method="function_calling").invoke(called) == Point(x=3, y=4)
    assert model.with_structured_output(None, method="json_mode").invoke('{"x": 5}') == {"x": 5}


def calls(model: ChatOpenAI) -> None:
    answer = model.invoke("hello")
    assert answer.text == "hello", answer
    assert answer.usage_metadata is not None
    assert (answer.usage_metadata["input_tokens"], answer.usage_metadata["output_tokens"]) == (5, 5), answer
    turns = [SystemMessage("be brief"), HumanMessage("one"), AIMessage("two"), HumanMessage("three")]
    assert model.invoke(turns).text == "three"
    chunks = list(model.stream("abc"))
    assert [chunk.text for chunk in chunks if chunk.text] == ["a", "b", "c"], chunks


async def all_asynchronous_calls(models: list[ChatOpenAI]) -> None:
    for model in models:
        await asynchronous_calls(model)


async def asynchronous_calls(model: ChatOpenAI) -> None:
    assert (await model.ainvoke("hello")).text == "hello"
    assert "".join([chunk.text async for chunk in model.astream("abc")]) == "abc"
    answers = await model.abatch(["one", "two"])
    assert [answer.text for answer in answers] == ["one", "two"]


main(sys.argv[1])
